"""A language model laid over several devices: the tokens of one that is not, or a plain error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs import TextResult
from models.catalog import Entry, Modality
from models.loading import LoadError, load_model
from models.protocol import ModelSpec
from models.text.decoder import Decoder
from models.text.slots import SlotCache
from models.text.weights import load_checkpoint
from runners.machine import Machine
from runners.placement import place
from runners.stepping import loaded_models
from settings import Settings
from tests.unit.decoding import finished, job, started
from tests.unit.tiny_text import write_model

PROMPTS = ("hello world", "a red circle on a blue background and a green star. " * 3, "x")
LAYER_BYTES = 64 * 4 * (64 * 2 + 32 * 2 + 128 * 3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=6)


def entry(folder: Path, *, offload: bool) -> Entry:
    return Entry(
        family="text.decoder", source=f"folder:{folder}", licence="none", max_rows=4, offload=offload
    )


def told(model: Decoder) -> list[TextResult]:
    """Of all prompts together, with how likely each token was."""
    return finished(model, [started(model, job(prompt, logprobs=2)) for prompt in PROMPTS])


def test_what_stays_in_files_makes_the_same_tokens(folder: Path) -> None:
    room = {"cpu": 6 * LAYER_BYTES}
    spec = ModelSpec(name="tiny", folder=folder, offload=True, room=room)
    body = load_checkpoint(spec).hidden
    assert isinstance(body, torch.nn.Module)
    places = {weight.device.type for weight in body.parameters()}
    assert places == {"cpu", "meta"}, "it was not laid out"
    plain: Decoder = load_model("tiny", entry(folder, offload=False), "cpu")
    laid: Decoder = load_model("tiny", entry(folder, offload=True), "cpu", room)
    for model in (plain, laid):
        model.warm_up()
    expected = told(plain)
    assert told(laid) == expected
    alone = [finished(laid, [started(laid, job(prompt, logprobs=2))])[0] for prompt in PROMPTS]
    assert alone == expected


def test_the_plan_says_what_its_device_takes(folder: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    made = entry(folder, offload=True).model_dump(mode="json", exclude_defaults=True)
    catalog.write_text(json.dumps({"models": {"tiny": made}, "profiles": {"default": {"text": ["tiny"]}}}))
    settings = Settings.model_validate({"profile": str(catalog), "runners": "text"})
    placement = place(Modality.TEXT, settings, machine=Machine((), cores=2, memory_gib=1))
    assert list(placement.room["tiny"]) == ["cpu"]
    assert 0 < placement.room["tiny"]["cpu"] < 2**30
    models = loaded_models(placement.applied({"tiny": entry(folder, offload=True)}), placement, settings)
    assert models.present("tiny")


@pytest.mark.parametrize(
    ("offload", "room", "said"),
    [(False, {"cpu": 2 * LAYER_BYTES}, "too little"), (True, {}, "give its `memory`")],
)
def test_what_cannot_be_laid_out_is_said(
    folder: Path, offload: bool, room: dict[str, int], said: str
) -> None:
    with pytest.raises(LoadError, match=said):
        load_model("tiny", entry(folder, offload=offload), "cpu", room)


@pytest.mark.parametrize(
    "fields", [{"family": "text.seq2seq"}, {"family": "speech.bark"}, {"precision": "int8"}]
)
def test_offload_that_would_do_nothing_is_refused_in_the_catalog(fields: dict[str, str]) -> None:
    whole = {"family": "text.decoder", "source": "hub:a/b", "licence": "none", "offload": True, **fields}
    with pytest.raises(ValueError, match="offload"):
        Entry.model_validate(whole)


def test_layers_of_other_devices_have_the_same_places() -> None:
    """The device without memory stands for a second card: its layer gets indices that are there."""
    cache = SlotCache(2, slots=2, length=64, limit=64)
    read = cache.place(torch.tensor([0, 64]), slots=torch.tensor([0, 1]), longest=1)
    for layer, device in enumerate(("cpu", "meta")):
        states = torch.ones(2, 1, 1, 4, device=device)
        keys, values = cache.update(states, states, layer)
        assert {keys.device.type, values.device.type} == {device}
        assert keys.shape == (2, 1, read, 4)
