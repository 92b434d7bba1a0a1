"""The encoder-decoder family on a T5 written here: the tokens of `generate`, alone and in any company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast, T5Config

from jobs import Constraint, JobError, Message
from models.protocol import ModelSpec
from models.text.row import Row
from models.text.seq2seq import Seq2Seq, load
from tests.unit.decoding import job
from tests.unit.tiny_text import EOS, VOCABULARY, byte_level

PROMPTS = ("hello world", "a red circle on a blue background and a green star. " * 3, "x", "🙂 été")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("t5")
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=byte_level(), model_max_length=256, **special).save_pretrained(
        made
    )
    torch.manual_seed(5)
    build: Any = T5Config
    config = build(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=1.5,
        eos_token_id=EOS,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Seq2Seq:
    made = load(ModelSpec(name="t5", folder=folder, max_rows=4))
    made.warm_up()
    return made


def advance(model: Seq2Seq, rows: list[Row]) -> None:
    for lane in {lane for row in rows if (lane := model.lane(row))}:
        at_it = [row for row in rows if model.lane(row) == lane]
        model.step(lane, at_it[: int(model.budget(lane))])


def tokens(model: Seq2Seq, *orders: Any, joining: int = 0) -> list[list[int]]:
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
    return [row.tokens for row in rows]


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


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"messages": (Message(role="user", content="hi"),)}, "no_chat_template"),
        ({"prompt": "x" * 600}, "context_length_exceeded"),
        ({"prompt": "x", "max_tokens": 257}, "context_length_exceeded"),
    ],
)
def test_what_does_not_fit_is_refused(model: Seq2Seq, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(JobError) as refused:
        model.prepare(job(**fields))
    assert refused.value.code == code
    assert model.prepare(job("x", max_tokens=256)).max_tokens == 256


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(ValueError, match="kind bart"):
        load(ModelSpec(name="bart", folder=tmp_path))
