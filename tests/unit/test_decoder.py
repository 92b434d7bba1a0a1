"""The decoder family on checkpoints written here: the same tokens as `generate`, alone and in any company."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import ErrorKind, Event, JobError, Message, TextDelta
from models.protocol import ModelSpec
from models.sources import EMBEDDED
from models.text.decoder import Decoder, load
from models.text.forwards import CHUNK
from models.text.row import Row
from models.text.weights import load_checkpoint
from tests.unit.decoding import advance, answer, finished, job, recorded, started
from tests.unit.tiny_text import CONTEXT, SHAPES, write_model

LONG = "a red circle on a blue background and a green star. " * 3
PROMPTS = ("hello world", LONG, "x", "🙂 été", LONG[:40])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    model = load(ModelSpec(name="tiny", folder=folder, max_rows=16))
    model.warm_up()
    return model


def generated(folder: Path, prompt: str, count: int) -> tuple[list[int], int]:
    """Plain greedy `generate`: the new tokens, and how many the prompt has."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    length = inputs.input_ids.shape[1]
    return ids[0, length:].tolist(), length


# --- the right tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_greedy_is_generate_token_by_token(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind)
    model = load(ModelSpec(name="tiny", folder=folder, max_rows=4))
    rows = [started(model, job(prompt)) for prompt in PROMPTS[:4]]
    results = finished(model, rows)
    for prompt, row, result in zip(PROMPTS, rows, results, strict=False):
        expected, length = generated(folder, prompt, 30)
        assert row.tokens == expected
        assert result.prompt_tokens == length
        assert result.completion_tokens == len(expected)


def watched(model: Decoder, seen: list[torch.Tensor], row: Row, others: Sequence[Row]) -> list[torch.Tensor]:
    """Runs to the row's end; the logits of each of its tokens."""
    logits: list[torch.Tensor] = []
    slot = row.slot
    assert slot is not None
    while model.lane(row):
        count = len(row.tokens)
        advance(model, [*others, row])
        if len(row.tokens) > count:
            logits.append(seen[-1][slot])
    return logits


def test_tokens_and_logits_are_the_same_bit_for_bit_in_any_company(folder: Path) -> None:
    seen: list[torch.Tensor] = []
    spec = ModelSpec(name="tiny", folder=folder, max_rows=8)
    model = Decoder(spec, recorded(load_checkpoint(spec), seen))
    order = job(LONG[:70], temperature=1.3, top_p=0.9, seed=7, max_tokens=40)
    row = started(model, order)
    alone = watched(model, seen, row, [])
    model.release(row)

    others = [
        started(model, job(prompt, seed=seed, temperature=0.5 * seed, top_k=3 * seed, max_tokens=70))
        for seed, prompt in enumerate(PROMPTS)
    ]
    for _ in range(3):
        advance(model, others)
    joined = started(model, order)
    assert joined.slot != row.slot
    together = watched(model, seen, joined, others)
    assert joined.tokens == row.tokens
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert torch.equal(torch.stack(alone), torch.stack(together))


def test_few_rows_take_few_slots_where_the_bits_allow_it() -> None:
    """Which sizes there are is the machine's to say; that the bits are the same is not."""
    seen: list[torch.Tensor] = []
    spec = ModelSpec(name="tiny", folder=EMBEDDED / "tiny-llama", max_rows=16)
    model = Decoder(spec, recorded(load_checkpoint(spec), seen))
    model.warm_up()
    sizes = [each for each in (1, 2, 4, 8) if any(len(logits) == each for logits in seen)]
    assert sizes == [1, 2, 4, 8], "it did not look"
    order = job("Once upon a time", temperature=1, max_tokens=24)
    row = started(model, order)
    alone = watched(model, seen, row, [])
    fewest = len(seen[-1])
    model.release(row)
    crowd = [started(model, job("Once", seed=seed, temperature=1, max_tokens=60)) for seed in range(15)]
    joined = started(model, order)
    together = watched(model, seen, joined, crowd)
    assert len(seen[-1]) == 16
    assert fewest <= 16
    assert joined.slot == 15
    assert torch.equal(torch.stack(alone), torch.stack(together))
    for other in crowd[1:]:
        model.release(other)
    model.release(joined)
    advance(model, crowd[:1])
    assert len(seen[-1]) == fewest, "a row alone did not go back to few slots"


def test_prompts_are_read_the_same_in_any_company() -> None:
    """A prompt alone takes few chunks, together all of them."""
    seen: list[torch.Tensor] = []
    spec = ModelSpec(name="tiny", folder=EMBEDDED / "tiny-llama", max_rows=4)
    model = Decoder(spec, recorded(load_checkpoint(spec), seen))
    model.warm_up()
    orders = [
        job(prompt * 12, seed=seed, temperature=1) for seed, prompt in enumerate(("a fox ", "seven ", "x"))
    ]
    alone: list[torch.Tensor] = []
    for order in orders:
        row = started(model, order)
        while row.to_prefill > 0:
            advance(model, [row])
        advance(model, [row])
        alone.append(seen[-1][row.slot or 0])
        model.release(row)
    rows = [model.prepare(order) for order in orders]
    assert all(model.reserve(row) for row in rows)
    while any(row.to_prefill > 0 for row in rows):
        waiting = [row for row in rows if row.to_prefill > 0]
        model.step(model.lane(waiting[0]) or pytest.fail("it has no lane"), waiting)
    advance(model, rows)
    for row, first in zip(rows, alone, strict=True):
        assert torch.equal(seen[-1][row.slot or 0], first)


def test_rows_join_and_leave_between_two_steps(decoder: Decoder) -> None:
    orders = [job(prompt, max_tokens=8 + 5 * i, seed=i, temperature=1) for i, prompt in enumerate(PROMPTS)]
    alone = [answer(decoder, order) for order in orders]
    rows: list[Row] = []
    for order in orders:
        rows.append(started(decoder, order))
        advance(decoder, rows)
        advance(decoder, rows)
    assert finished(decoder, rows) == alone


def test_prompt_is_prefilled_in_chunks_and_decoding_goes_on(decoder: Decoder) -> None:
    row = decoder.prepare(job("x" * (9 * CHUNK // 2), max_tokens=4))
    assert decoder.reserve(row)
    lane = decoder.lane(row)
    assert lane is not None
    assert lane.stage == "prefill"
    chunks = -(-(len(row.prompt) - 1) // CHUNK)
    assert decoder.cost(row) == min(chunks, decoder.budget(lane))
    while row.to_prefill > 0:
        assert not row.tokens
        advance(decoder, [row])
    assert decoder.cost(row) == 1
    finished(decoder, [row])


def test_more_chunks_than_a_forward_takes_are_refused(decoder: Decoder) -> None:
    rows = [started(decoder, job(LONG)) for _ in range(9)]
    lane = decoder.lane(rows[0])
    assert lane is not None
    assert sum(map(decoder.cost, rows)) > decoder.budget(lane)
    with pytest.raises(ValueError, match="chunks"):
        decoder.step(lane, rows)
    finished(decoder, rows)


# --- what a request says ------------------------------------------------------------------------------------


def test_same_seed_same_text_and_another_seed_another(decoder: Decoder) -> None:
    texts = [answer(decoder, job("hello", temperature=1.5, seed=seed)).text for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_deltas_only_when_asked_and_they_join_to_the_text(decoder: Decoder) -> None:
    for stream in (True, False):
        row = started(decoder, job("hello", stream=stream, temperature=1))
        events: list[Event] = []
        while decoder.lane(row):
            events += advance(decoder, [row])
        [result] = finished(decoder, [row])
        deltas = [event.text for event in events if isinstance(event, TextDelta)]
        assert len(deltas) == len(events)
        assert "".join(deltas) == (result.text if stream else "")
        assert result.text


def test_stop_string_cuts_the_text(decoder: Decoder) -> None:
    whole = answer(decoder, job("hello world", temperature=1))
    stop = whole.text[10:13]
    cut = answer(decoder, job("hello world", temperature=1, stop=("never", stop)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens


def test_end_tokens_stop_and_are_counted(folder: Path, tmp_path: Path) -> None:
    tokens, _ = generated(folder, "hello world", 12)
    spec = ModelSpec(name="tiny", folder=folder)
    ends = frozenset({tokens[5], 380})
    model = Decoder(spec, replace(load_checkpoint(spec), end_tokens=ends))
    result = answer(model, job("hello world"))
    count = tokens.index(tokens[5]) + 1
    assert (result.finish_reason, result.completion_tokens) == ("stop", count)
    assert answer(model, job("hello world", max_tokens=count - 1)).finish_reason == "length"
    on = answer(model, job("hello world", ignore_eos=True, max_tokens=12))
    assert (on.finish_reason, on.completion_tokens) == ("length", 12)
    listed = write_model(tmp_path, eos_token_id=[1, 7])
    assert load_checkpoint(ModelSpec(name="tiny", folder=listed)).end_tokens == {1, 7}


def test_messages_go_through_the_template(decoder: Decoder) -> None:
    messages = (Message(role="user", content="hello"),)
    chat = answer(decoder, job(messages=messages))
    assert (
        decoder.prepare(job(messages=messages)).prompt
        == decoder.prepare(job("user: hello\nassistant:")).prompt[1:]
    )  # the template has no beginning of sequence, a prompt gets the tokenizer's
    assert chat.completion_tokens == 30


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": LONG, "max_tokens": CONTEXT}, "max_tokens", "context_length_exceeded"),
        ({"messages": (Message(role="system", content="x"),)}, "messages", "chat_template_refused"),
        ({"prompt": None}, "prompt", None),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", None),
    ],
)
def test_bad_jobs_are_refused(decoder: Decoder, fields: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(JobError) as refused:
        decoder.prepare(job(**fields))
    assert (refused.value.kind, refused.value.param, refused.value.code) == (ErrorKind.INVALID, param, code)


def test_the_context_can_be_filled_to_the_last_token(decoder: Decoder) -> None:
    length = len(decoder.prepare(job(LONG, max_tokens=1)).prompt)
    result = answer(decoder, job(LONG, max_tokens=CONTEXT - length))
    assert result.prompt_tokens + result.completion_tokens == CONTEXT
    with pytest.raises(JobError, match=f"{length} tokens.*{CONTEXT + 1}.*{CONTEXT}"):
        decoder.prepare(job(LONG, max_tokens=CONTEXT - length + 1))


def test_a_model_without_template_says_so(tmp_path: Path) -> None:
    model = load(ModelSpec(name="base", folder=write_model(tmp_path, template=None)))
    with pytest.raises(JobError, match="no chat template") as refused:
        model.prepare(job(messages=(Message(role="user", content="hi"),)))
    assert refused.value.param == "messages"
