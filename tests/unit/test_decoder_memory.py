"""The decoder's memory and mishaps: slots, growth, steps that fail, quantization, what is refused at load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.protocol import ModelSpec, OutOfMemoryError
from models.text.decoder import Decoder, load
from models.text.slots import SlotCache
from models.text.weights import load_checkpoint
from tests.unit.decoding import advance, answer, finished, job, recorded, started
from tests.unit.tiny_text import write_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"))


def test_slots_are_bounded_and_come_back(folder: Path) -> None:
    model = load(ModelSpec(name="tiny", folder=folder, max_rows=2))
    rows = [started(model, job("x")) for _ in range(2)]
    late = model.prepare(job("x"))
    assert not model.reserve(late)
    model.release(rows[0])
    assert model.reserve(late)
    model.release(model.prepare(job("never reserved")))
    assert not model.reserve(rows[0])


def test_a_step_out_of_memory_changes_nothing(folder: Path) -> None:
    spec = ModelSpec(name="tiny", folder=folder, max_rows=2)
    checkpoint = load_checkpoint(spec)
    expected = answer(Decoder(spec, checkpoint), job("hello", temperature=1))
    calls = 0

    def logits(**inputs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        made = checkpoint.logits(**inputs)
        if calls % 3 == 0:
            raise torch.OutOfMemoryError
        return made

    model = Decoder(spec, replace(checkpoint, logits=logits))
    row = started(model, job("hello", temperature=1))
    failures = 0
    while lane := model.lane(row):
        before = len(row.tokens)
        try:
            model.step(lane, [row])
        except OutOfMemoryError:
            failures += 1
            assert len(row.tokens) == before
    assert failures > 5
    assert finished(model, [row]) == [expected]


def test_a_row_of_bad_numbers_fails_and_its_slot_is_wiped(folder: Path) -> None:
    spec = ModelSpec(name="tiny", folder=folder, max_rows=1)
    checkpoint = load_checkpoint(spec)
    poison = False

    def logits(**inputs: Any) -> torch.Tensor:
        made = checkpoint.logits(**inputs)
        if poison:
            for layer in inputs["past_key_values"].layers:
                layer.values.fill_(float("nan"))
        return made * float("nan") if poison else made

    model = Decoder(spec, replace(checkpoint, logits=logits))
    expected = answer(model, job("hello"))
    poison = True
    row = started(model, job("hello"))
    lane = model.lane(row)
    assert lane is not None
    while row.to_prefill > 0:
        advance(model, [row])
    with pytest.raises(ArithmeticError):
        advance(model, [row])
    assert not row.tokens
    model.release(row)
    poison = False
    assert answer(model, job("hello")) == expected


@torch.inference_mode()
def test_the_cache_grows_and_keeps_what_it_holds() -> None:
    cache = SlotCache(1, slots=2, length=64, limit=1000)
    states = torch.randn(2, 3, 1, 8)
    assert cache.place(torch.tensor([5, 64 + 7]), slots=None, longest=8) == 64
    keys, _ = cache.update(states, states, 0)
    assert keys.shape == (2, 3, 64, 8)
    cache.ensure(65)
    assert cache.length == 128
    assert cache.place(torch.tensor([cache.spare] * 2), slots=None, longest=100) == 128
    keys, values = cache.update(states, states, 0)
    for row, position in ((0, 5), (1, 7)):
        assert torch.equal(keys[row, :, position], states[row, :, 0])
        assert torch.equal(values[row, :, position], states[row, :, 0])
    cache.ensure(1000)
    assert cache.length == 1024
    cache.clear(1)
    cache.place(torch.tensor([cache.spare] * 2), slots=torch.tensor([1, 0]), longest=8)
    keys, _ = cache.update(states, states, 0)
    assert not keys[0].any()
    assert torch.equal(keys[1, :, 5], states[0, :, 0])


@torch.inference_mode()
def test_a_cache_that_cannot_grow_stays_as_it_is() -> None:
    cache = SlotCache(2, slots=2, length=64, limit=10**12)
    states = torch.randn(2, 3, 1, 8)
    cache.place(torch.tensor([5, 64 + 7]), slots=None, longest=8)
    for layer in range(2):
        cache.update(states, states, layer)
    with pytest.raises(torch.OutOfMemoryError):
        cache.ensure(10**12)
    assert cache.length == 64
    cache.place(torch.tensor([cache.spare] * 2), slots=None, longest=64)
    for layer in range(2):
        keys, _ = cache.update(states, states, layer)
        assert torch.equal(keys[1, :, 7], states[1, :, 0])


# --- loading ------------------------------------------------------------------------------------------------


def first_logits(spec: ModelSpec) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    model = Decoder(spec, recorded(load_checkpoint(spec), seen))
    row = started(model, job("hello", max_tokens=4))
    slot = row.slot
    assert slot is not None
    assert finished(model, [row])[0].completion_tokens == 4
    return seen[0][slot]


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.05), ("int4", 0.4)])
def test_quantized_by_bitsandbytes(tmp_path: Path, quantization: str, error: float) -> None:
    spec = ModelSpec(
        name="tiny", folder=write_model(tmp_path, hidden=128, head_dim=64, initializer_range=0.05), max_rows=2
    )
    plain = first_logits(spec)
    quantized = first_logits(replace(spec, quantization=quantization))
    off = float((quantized - plain).norm() / plain.norm())
    assert 0 < off < error


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("gemma2", {"head_dim": 16}, "softcap"),
        ("llama4_text", {"head_dim": 16}, "chunked_attention"),
    ],
)
def test_what_would_run_wrong_is_refused(tmp_path: Path, kind: str, fields: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load(ModelSpec(name="tiny", folder=write_model(tmp_path, kind, **fields)))


def test_unknown_quantization_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="int8 and int4"):
        load(ModelSpec(name="tiny", folder=folder, quantization="int2"))
