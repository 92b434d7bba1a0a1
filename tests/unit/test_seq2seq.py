"""Encoder-decoders on a T5 written here: `generate`'s tokens, alone and in company, in 8 and 4 bits too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from jobs import Constraint, JobError, Message, TextJob
from models.footprint import measure
from models.protocol import ModelSpec
from models.text.row import Row
from models.text.seq2seq import Seq2Seq, load
from models.text.weights import quantization_of
from tests.unit.decoding import job
from tests.unit.tiny_text import write_t5

PROMPTS = ("hello world", "a red circle on a blue background and a green star. " * 3, "x", "🙂 été")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Seq2Seq:
    made = load(ModelSpec(name="t5", folder=folder, max_rows=4))
    made.warm_up()
    return made


def advance(model: Seq2Seq, rows: list[Row]) -> None:
    for lane in {lane for row in rows if (lane := model.lane(row))}:
        at_it = [row for row in rows if model.lane(row) == lane]
        model.step(lane, at_it[: int(model.budget(lane))])


def run(model: Seq2Seq, *orders: Any, joining: int = 0) -> list[Row]:
    """Runs the orders together, each joining `joining` steps after the one before."""
    rows: list[Row] = []
    for order in orders:
        row = model.prepare(order)
        assert model.reserve(row)
        rows.append(row)
        for _ in range(joining):
            advance(model, rows)
    while any(model.lane(row) for row in rows):
        advance(model, rows)
    for row in rows:
        model.release(row)
    return rows


def tokens(model: Seq2Seq, *orders: Any, joining: int = 0) -> list[list[int]]:
    return [row.tokens for row in run(model, *orders, joining=joining)]


def test_greedy_is_generate_token_by_token(model: Seq2Seq, folder: Path) -> None:
    plain: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    orders = [job(prompt, max_tokens=70) for prompt in PROMPTS]
    seen: set[int] = set()
    for prompt, made in zip(PROMPTS, tokens(model, *orders, joining=5), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        expected = plain.generate(**inputs, max_new_tokens=70, do_sample=False)[0, 1:].tolist()
        assert made == expected
        seen |= set(made)
    assert len(seen) > 6


def test_the_same_tokens_alone_and_in_any_company(model: Seq2Seq) -> None:
    orders = [job(prompt, max_tokens=40, temperature=1.2, seed=i) for i, prompt in enumerate(PROMPTS)]
    alone = [tokens(model, order)[0] for order in orders]
    assert tokens(model, *orders, joining=7) == alone


def test_grammars_and_slots(model: Seq2Seq) -> None:
    pattern = Constraint(kind="regex", value="(yes|no)")
    row = model.prepare(job("hello", constraint=pattern))
    assert model.reserve(row)
    while lane := model.lane(row):
        model.step(lane, [row])
    model.release(row)
    result: Any = model.finish(row)
    assert result.text in ("yes", "no")
    rows = [model.prepare(job("x")) for _ in range(5)]
    assert [model.reserve(row) for row in rows] == [True] * 4 + [False]
    for row in rows:
        model.release(row)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes into its layers is beyond bitsandbytes' threshold for columns that stay in float16."""
    return write_t5(tmp_path_factory.mktemp("wide"), width=128)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("quantization", "most_off"), [("int8", 0.1), ("int4", 0.5)])
def test_in_fewer_bits_it_is_near_and_the_same_in_any_company(
    wide: Path, quantization: str, most_off: float, dtype: str
) -> None:
    """The same to the last bit of what it tells of each token."""
    plain = ModelSpec(name="t5", folder=wide, max_rows=4, dtype=dtype)
    model = load(replace(plain, quantization=quantization))
    first = [likelihoods(each, job("x", max_tokens=1, logprobs=100)) for each in (model, load(plain))]
    assert 0 < float((first[0] - first[1]).norm() / first[1].norm()) < most_off
    orders = [job(prompt, max_tokens=30, logprobs=2) for prompt in PROMPTS]
    alone = [model.finish(run(model, order)[0]) for order in orders]
    assert [model.finish(row) for row in run(model, *orders, joining=7)] == alone


def likelihoods(model: Seq2Seq, order: TextJob) -> Tensor:
    (row,) = run(model, order)
    return torch.tensor([other.logprob for other in row.logprobs[0].top])


def test_the_plan_knows_what_shrinks(wide: Path) -> None:
    how = quantization_of(ModelSpec(name="t5", folder=wide, quantization="int8"))
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(wide, quantization_config=how)
    shrunk = [each for each in model.modules() if isinstance(each, Linear8bitLt)]
    memory = measure(wide, "text.seq2seq")
    assert memory.quantizable == sum(each.in_features * each.out_features for each in shrunk) > 0
    assert memory.parameters == model.num_parameters()
    assert memory.cache_values_per_token == 2 * 2 * 2 * 128


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": (Message(role="user", content="hi"),)}, "messages", "no_chat_template"),
        ({"prompt": "x" * 600}, "prompt", "context_length_exceeded"),
        ({"prompt": "x", "max_tokens": 257}, "max_tokens", "context_length_exceeded"),
    ],
)
def test_what_does_not_fit_is_refused(model: Seq2Seq, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(JobError) as refused:
        model.prepare(job(**fields))
    assert (refused.value.param, refused.value.code) == (param, code)
    assert model.prepare(job("x", max_tokens=256)).max_tokens == 256


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(ValueError, match="kind bart"):
        load(ModelSpec(name="bart", folder=tmp_path))
