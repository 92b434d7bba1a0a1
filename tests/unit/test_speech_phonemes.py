"""The speech recipe's semantic tokens, and starting from an earlier model: no espeak-ng, no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BarkModel

from models.training.speech_attention import alike, headless
from models.training.speech_data import VOICES
from models.training.speech_model import COARSE_SEMANTIC, CODEBOOK_SIZE, SEMANTIC_VOCAB, build_config
from models.training.speech_phonemes import BLOCK, PHONEMES, STATES, phoneme_index, phoneme_tokens
from models.training.speech_start import start_from

FOLDER = Path(__file__).parents[2] / "models" / "embedded" / "tiny-bark"
HOP = 640


def names(tokens: np.ndarray) -> list[str]:
    return [f"{PHONEMES[token % BLOCK // STATES]}{token % STATES}" for token in tokens.tolist()]


def test_a_token_tells_the_phoneme_and_its_third() -> None:
    tokens = phoneme_tokens([(0, "s"), (3 * HOP, "aI")], 9 * HOP, HOP, 0)
    assert names(tokens) == ["s0", "s1", "s2", "aI0", "aI0", "aI1", "aI1", "aI2", "aI2"]


def test_a_token_tells_the_voice() -> None:
    said = [phoneme_tokens([(0, "s")], 3 * HOP, HOP, voice) for voice in range(len(VOICES))]
    assert [int(tokens[0]) // BLOCK for tokens in said] == list(range(len(VOICES)))
    assert np.array_equal(said[0] + BLOCK, said[1])


def test_a_short_phoneme_is_not_lost() -> None:
    # `t` sounds between the middles of the second and the third token.
    tokens = phoneme_tokens([(0, "eI"), (1000, "t"), (1500, "s")], 4 * HOP, HOP, 0)
    assert [name[0] for name in names(tokens)].count("t") == 1
    assert {name[0] for name in names(tokens)} == {"e", "t", "s"}


def test_before_the_first_phoneme_is_a_pause() -> None:
    assert names(phoneme_tokens([(2 * HOP, "s")], 3 * HOP, HOP, 0))[:2] == ["_0", "_2"]


@pytest.mark.parametrize(
    ("name", "known"), [("aI", "aI"), ("aI?", "aI"), ("t~x", "t"), ("?", "_"), ("", "_")]
)
def test_an_unknown_phoneme_counts_as_its_known_beginning(name: str, known: str) -> None:
    assert PHONEMES[phoneme_index(name)] == known


def test_alike_tokens_start_alike() -> None:
    rows = torch.randn(SEMANTIC_VOCAB, 64, generator=torch.Generator().manual_seed(0))
    alike(rows)
    near = torch.nn.functional.cosine_similarity(rows[:BLOCK], rows[BLOCK : 2 * BLOCK]).mean()
    far = torch.nn.functional.cosine_similarity(rows[:BLOCK], rows[BLOCK : 2 * BLOCK].roll(STATES, 0)).mean()
    assert near > far + 0.3


@pytest.fixture(scope="module")
def started() -> BarkModel:
    torch.manual_seed(0)
    model = BarkModel(build_config(300))
    start_from(FOLDER, model)
    return model


def test_a_start_takes_over_what_fits(started: BarkModel) -> None:
    given = BarkModel.from_pretrained(FOLDER, dtype=torch.float32)
    for part in ("codec_model", "fine_acoustics"):
        ours, theirs = (getattr(model, part).state_dict() for model in (started, given))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (model.coarse_acoustics.state_dict() for model in (started, given))
    for name in ("layers.2.mlp.in_proj.weight", "lm_head.weight", "input_embeds_layer.weight"):
        assert torch.equal(ours[name][-CODEBOOK_SIZE:], theirs[name][-CODEBOOK_SIZE:])
    places = "position_embeds_layer.weight"
    assert torch.equal(ours[places][:COARSE_SEMANTIC], theirs[places][:COARSE_SEMANTIC])


def test_without_its_head_a_stage_returns_what_the_head_reads(started: BarkModel) -> None:
    model = started.coarse_acoustics.eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        with headless(model) as head:
            hidden = model(input_ids=ids).logits
        assert torch.equal(head(hidden), model(input_ids=ids).logits)
