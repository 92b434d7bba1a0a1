"""What Bark's stages read and draw, against transformers' own arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BarkConfig,
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.bark.generation_configuration_bark import BarkSemanticGenerationConfig

from models.speech.generation import Sampling, read_rules
from models.speech.sampling import Temperatures, draws, pick
from models.speech.voices import check_voice
from models.speech.windows import coarse_history
from tests.unit.tiny_speech import make_config, make_generation, make_model


@pytest.mark.parametrize("sampling", [Sampling(top_k=k, top_p=p) for k in (0, 3, 50) for p in (1.0, 0.7)])
def test_tokens_are_drawn_from_the_distribution_of_transformers(sampling: Sampling) -> None:
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    warpers: list[Any] = [TemperatureLogitsWarper(0.7), TopPLogitsWarper(sampling.top_p)]
    if sampling.top_k:
        warpers.insert(1, TopKLogitsWarper(sampling.top_k))
    wanted = scores
    for warp in warpers:
        wanted = warp(torch.zeros(1, 1, dtype=torch.long), wanted)
    wanted = wanted.softmax(-1)[0]
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    temperatures = Temperatures.of([0.7] * 20_000, torch.device("cpu"))
    drawn = pick(scores.expand(20_000, -1), temperatures, uniform, sampling)
    torch.testing.assert_close(drawn.bincount(minlength=12) / 20_000, wanted, atol=2e-4, rtol=0)


def test_each_row_is_drawn_at_its_own_temperature() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.9]]).expand(3, -1)
    temperatures = Temperatures.of([0.0, 1e-4, 1e4], torch.device("cpu"))
    drawn = pick(scores, temperatures, torch.tensor([0.99, 0.99, 0.99]), Sampling(top_k=50, top_p=1.0))
    assert drawn.tolist() == [1, 1, 2]


def test_the_end_comes_as_soon_as_it_is_likely_enough() -> None:
    scores = torch.log(torch.tensor([[0.7, 0.1, 0.2], [0.85, 0.1, 0.05]]))
    temperatures = Temperatures.of([0.0, 0.0], torch.device("cpu"))
    sampling = Sampling(top_k=50, top_p=1.0, min_eos_p=0.15)
    assert pick(scores, temperatures, torch.zeros(2), sampling).tolist() == [2, 0]


def test_random_numbers_depend_on_their_place_alone() -> None:
    assert torch.equal(draws(5, 1, 0, "coarse"), draws(9, 1, 0, "coarse")[:5])
    assert not torch.equal(draws(5, 1, 0, "coarse"), draws(5, 1, 1, "coarse"))


@pytest.mark.parametrize("semantic", [2, 3, 60, 211, 700])
@pytest.mark.parametrize("frames", [1, 2, 7, 300, 900])
def test_the_history_of_a_coarse_window_is_that_of_transformers(semantic: int, frames: int) -> None:
    rules = read_rules(BarkConfig(), GenerationConfig())
    random = np.random.default_rng(semantic * frames)
    arrays = {
        "semantic_prompt": random.integers(0, 10_000, semantic),
        "coarse_prompt": random.integers(0, 1024, (2, frames)),
        "fine_prompt": random.integers(0, 1024, (8, frames)),
    }
    reference: Any = make_model()
    wanted = reference.coarse_acoustics.preprocess_histories(
        max_coarse_history=630,
        semantic_to_coarse_ratio=rules.coarse_per_semantic,
        batch_size=1,
        semantic_generation_config=BarkSemanticGenerationConfig(),
        codebook_size=1024,
        history_prompt={name: torch.from_numpy(array) for name, array in arrays.items()},
    )
    found = coarse_history(check_voice("any", arrays, rules), rules)
    assert [*found] == [tokens[0].tolist() for tokens in wanted]


def test_the_defaults_are_those_of_transformers() -> None:
    rules = read_rules(BarkConfig(), GenerationConfig())
    assert rules.semantic.max_tokens == 768
    assert rules.max_seconds == pytest.approx(15.39, abs=0.01)
    assert (rules.semantic.sampling.top_k, rules.max_semantic_history) == (50, 209)


@pytest.mark.parametrize("more", [{"sliding_window_len": 11}, {"max_coarse_history": 200}])
def test_stages_that_do_not_fit_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="coarse"):
        read_rules(make_config(), make_generation(coarse=more))
