"""Vectors of texts: what each pooling makes of the plain encoder's states, alone and in company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from jobs import EmbedJob, JobError
from models.protocol import ModelSpec
from models.text.embedder import Embedder, load
from tests.unit.tiny_readers import READS, write_embedder

TEXTS = ("hello world", "a red circle on a blue background", "x", "🙂 été")


def order(*texts: str, **more: Any) -> EmbedJob:
    return EmbedJob(id="a", timeout_s=10, texts=texts, **more)


def made(model: Embedder, *orders: EmbedJob) -> list[Tensor]:
    """Of each order [texts, width], all answered in one call."""
    results = model.answer([model.prepare(each) for each in orders])
    return [torch.tensor(result.vectors) for result in results]


def states(folder: Path, text: str) -> Tensor:
    """[tokens, width] of the plain encoder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    encoder: Any = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize(
    ("pooling", "of"),
    [
        ("mean_tokens", lambda states: states.mean(dim=0)),
        ("cls_token", lambda states: states[0]),
        ("max_tokens", lambda states: states.amax(dim=0)),
        ("lasttoken", lambda states: states[-1]),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_vector_is_what_the_checkpoint_says(tmp_path: Path, pooling: str, of: Any, normalize: bool) -> None:
    folder = write_embedder(tmp_path, pooling=pooling, normalize=normalize)
    (vectors,) = made(load(ModelSpec(name="e", folder=folder)), order(*TEXTS))
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = of(states(folder, text))
        expected = expected / expected.norm() if normalize else expected
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)


def test_a_plain_encoder_gives_the_mean(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path, pooling=None)
    (vectors,) = made(load(ModelSpec(name="e", folder=folder)), order(TEXTS[1]))
    torch.testing.assert_close(vectors[0], states(folder, TEXTS[1]).mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = write_embedder(
        tmp_path_factory.mktemp("e5"), prompts={"query": "hello ", "passage": ""}, default_prompt_name=None
    )
    return load(ModelSpec(name="e5", folder=folder, prompts={"title": "a star: "}))


def test_company_changes_no_vector_and_each_job_has_its_own(model: Embedder) -> None:
    orders = [order(TEXTS[0], TEXTS[1]), order(TEXTS[2]), order(*TEXTS * 10)]
    together = made(model, *orders)
    for alone, shared in zip((made(model, each)[0] for each in orders), together, strict=True):
        torch.testing.assert_close(alone, shared, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0][0], together[1][0], atol=1e-2)


def test_a_prompt_stands_before_each_text(model: Embedder) -> None:
    (told,) = made(model, order("world", prompt_name="query"))
    (said,) = made(model, order("hello world"))
    torch.testing.assert_close(told, said)
    (catalog,) = made(model, order("x", prompt_name="title"))
    torch.testing.assert_close(catalog, made(model, order("a star: x"))[0])
    with pytest.raises(JobError, match=r"no prompt 'nope'.*query, passage, title") as error:
        model.prepare(order("world", prompt_name="nope"))
    assert error.value.param == "prompt_name"


def test_a_default_prompt_is_used_without_asking(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path, prompts={"query": "hello "}, default_prompt_name="query")
    model = load(ModelSpec(name="e", folder=folder))
    torch.testing.assert_close(
        made(model, order("world"))[0], made(model, order("world", prompt_name="query"))[0]
    )


def test_a_text_that_is_too_long_is_refused_by_its_number_or_cut(model: Embedder) -> None:
    long = "a red circle " * 40
    with pytest.raises(JobError, match=rf"`texts`\[1\] has \d+ tokens, and e5 reads {READS}") as error:
        model.prepare(order("x", long))
    assert (error.value.param, error.value.code) == ("texts", "text_too_long")
    row = model.prepare(order(long, truncate=True))
    assert len(row[0]) == READS
    assert model.answer([row])[0].tokens == (READS,)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"type": "sentence_transformers.models.Dense"}, "Dense"),
        ({"type": "sentence_transformers.models.Pooling", "path": ""}, "pooling none"),
    ],
)
def test_a_layout_that_is_not_known_is_refused(tmp_path: Path, broken: dict[str, str], told: str) -> None:
    folder = write_embedder(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1] |= broken
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=told):
        load(ModelSpec(name="e", folder=folder))
