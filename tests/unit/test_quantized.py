"""Checkpoints that are quantized, or are to be: which engine, what it is told, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from models.catalog import Entry, Memory, Modality
from models.footprint import measure
from models.loading import LoadError, load_model
from models.protocol import ModelSpec
from models.quantized import quantized_by
from models.text.vllm_weights import weights_args
from models.text.weights import load_checkpoint
from runners.demand import want
from runners.machine import described, this_machine
from runners.placement import plan_for
from runners.text_engine import ours_obstacle, vllm_obstacle, vllm_refusal
from settings import Settings
from tests.unit.decoding import finished, job, started
from tests.unit.tiny_text import write_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def checkpoint(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    return folder


def entry(folder: Path, **fields: Any) -> Entry:
    return Entry(family="text.decoder", source=f"folder:{folder}", licence="none", **fields)


def gguf(folder: Path) -> Path:
    (folder / "model-q4_k_m.gguf").touch()
    return folder


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_vllm_takes_a_quantized_checkpoint_as_it_is(tmp_path: Path, method: str) -> None:
    folder = checkpoint(tmp_path, quantization_config={"quant_method": method})
    assert quantized_by(folder) == method
    args = weights_args(ModelSpec(name="m", folder=folder))
    assert args == {"model": str(folder), "dtype": "bfloat16"}
    assert weights_args(ModelSpec(name="m", folder=folder, dtype="float16"))["dtype"] == "float16"
    auto = Settings.model_validate({"text_engine": "auto"})
    assert vllm_obstacle({"m": entry(folder)}, "cuda:0", auto, installed=True) is None
    assert "quantized already" in (vllm_refusal(entry(folder, precision="fp8"), folder) or "")
    assert f"by {method}, which only vLLM reads" in (ours_obstacle(entry(folder)) or "")


@pytest.mark.parametrize(
    ("precision", "config", "capability", "expected"),
    [
        ("fp8", {}, None, "fp8_per_channel"),
        ("fp8", {}, 90, "fp8_per_channel"),
        ("fp8", {}, 80, "fp8_per_tensor"),
        ("int8", {"num_local_experts": 8}, 90, "int8_per_channel_weight_only"),
    ],
)
def test_vllm_quantizes_at_load(
    tmp_path: Path, precision: str, config: dict[str, Any], capability: int | None, expected: str
) -> None:
    folder = checkpoint(tmp_path, **config)
    spec = ModelSpec(name="m", folder=folder, quantization=precision)
    args = weights_args(spec, capability=capability)
    assert args == {"model": str(folder), "dtype": "bfloat16", "quantization": expected}
    auto = Settings.model_validate({"text_engine": "auto"})
    models = {"m": entry(folder, precision=precision)}
    assert vllm_obstacle(models, "cuda:0", auto, installed=True) is None


@pytest.mark.parametrize(
    ("precision", "config", "why"),
    [
        ("int8", {}, "m is int8 by bitsandbytes"),
        ("int4", {"num_local_experts": 8}, "m is int4 by bitsandbytes"),
        ("auto", {"quantization_config": {"quant_method": "bitsandbytes"}}, "m is quantized by bitsandbytes"),
    ],
)
def test_bitsandbytes_goes_to_our_engine_and_says_so(
    tmp_path: Path, precision: str, config: dict[str, Any], why: str
) -> None:
    models = {"m": entry(checkpoint(tmp_path, **config), precision=precision)}
    auto = Settings.model_validate({"text_engine": "auto"})
    assert why in (vllm_obstacle(models, "cuda:0", auto, installed=True) or "")
    assert ours_obstacle(models["m"]) is None
    assert vllm_refusal(models["m"], tmp_path)
    known = models["m"].model_copy(update={"memory": Memory(parameters=10**9, quantizable=9 * 10**8)})
    catalog = tmp_path / "catalog.yaml"
    told = {"models": {"m": known.model_dump(mode="json")}, "profiles": {"default": {"text": ["m"]}}}
    catalog.write_text(json.dumps(told))
    settings = Settings.model_validate({"profile": str(catalog), "runners": "text"})
    (note,) = plan_for(settings, described("1x24GiB", this_machine()), vllm=True).notes
    assert note.startswith(f"text runs on transformers, not on vLLM: {why}")


@pytest.mark.parametrize("bits", ["8", "4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_quantized_checkpoint_takes_what_the_plan_says(
    tmp_path: Path, bits: str, dtype: torch.dtype
) -> None:
    """Packed weights stay as they are; what is not packed becomes float32 on a CPU."""
    plain = write_model(tmp_path / "plain", hidden=128, head_dim=64)
    folder = write_model(tmp_path / "shrunk", hidden=128, head_dim=64)
    how = BitsAndBytesConfig(load_in_8bit=True) if bits == "8" else BitsAndBytesConfig(load_in_4bit=True)
    torch.compiler.set_stance("force_eager")
    made = AutoModelForCausalLM.from_pretrained(plain, quantization_config=how, dtype=dtype)
    made.save_pretrained(folder)
    model = load_checkpoint(ModelSpec(name="m", folder=folder)).model
    taken = sum(each.nbytes for each in [*model.parameters(), *model.buffers()]) / 2**30
    catalogs = Memory(parameters=10**9, quantizable=9 * 10**8, cache_values_per_token=64, context=192)
    for known in (None, catalogs):  # the catalog's figures are of the plain checkpoint
        (load,) = want(Modality.TEXT, {"m": entry(folder, memory=known)}).loads
        assert load.parts("cpu").weights == pytest.approx(taken, rel=0.1)
        assert not load.can_step_down()


def test_gguf_wants_its_plugin(tmp_path: Path) -> None:
    folder = gguf(tmp_path)
    with pytest.raises(ValueError, match="pip install vllm-gguf-plugin"):
        weights_args(ModelSpec(name="m", folder=folder))
    with pytest.raises(LoadError, match="quantized by gguf, which only vLLM reads"):
        load_model("m", entry(folder), "cpu")


def test_gguf_is_read_with_the_tokenizer_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "vllm_gguf_plugin.py").touch()
    monkeypatch.syspath_prepend(site)
    folder = tmp_path / "model"
    folder.mkdir()
    (gguf(folder) / "config.json").write_text("{}")
    args = weights_args(ModelSpec(name="m", folder=folder))
    file = str(folder / "model-q4_k_m.gguf")
    where = {"model": file, "tokenizer": str(folder), "hf_config_path": str(folder)}
    assert args == {**where, "dtype": "bfloat16"}
    (folder / "another.gguf").touch()
    with pytest.raises(ValueError, match="keep one GGUF file"):
        weights_args(ModelSpec(name="m", folder=folder))


def test_fp8_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    with pytest.raises(LoadError, match="fp8 is vLLM's"):
        load_model("m", entry(folder, precision="fp8"), "cpu")
    with pytest.raises(ValueError, match="fp8 is for"):
        Entry(family="text.seq2seq", source="hub:a/b", licence="none", precision="fp8")


def test_a_checkpoint_in_8_bits_is_the_same_in_any_company(tmp_path: Path) -> None:
    """Its own threshold would make rows depend on each other; the plan does not shrink it once more."""
    plain = write_model(tmp_path / "plain", hidden=128, head_dim=64, initializer_range=0.5)
    folder = write_model(tmp_path / "shrunk", hidden=128, head_dim=64)
    how = BitsAndBytesConfig(load_in_8bit=True)
    torch.compiler.set_stance("force_eager")
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=how).save_pretrained(folder)
    assert quantized_by(folder) == "bitsandbytes"
    model = load_model("m", entry(folder, max_rows=4), "cpu")
    orders = [job(prompt, logprobs=2) for prompt in ("hello world", "x", "a red circle on a blue background")]
    alone = [finished(model, [started(model, order)])[0] for order in orders]
    assert finished(model, [started(model, order) for order in orders]) == alone
    memory = measure(folder, "text.decoder")
    assert memory.quantizable == 0
    with pytest.raises(LoadError, match="quantized already"):
        load_model("m", entry(folder, precision="int4"), "cpu")
