"""vLLM for real, on a CPU, on weights in 8 bits: those of a checkpoint, and the embedded model's at load."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import Done, Message, TextJob, TextResult
from models.protocol import ModelSpec
from models.text.vllm import VllmOptions, VllmText

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
    pytest.mark.timeout(900),
    # vLLM's own and its dependencies' business.
    pytest.mark.filterwarnings("ignore"),
]

FOLDER = Path(__file__).parents[2] / "models" / "embedded" / "tiny-llama"
QUESTION = "Could you count from 3 to 9?"
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}


def compressed(folder: Path) -> Path:
    """The embedded model as compressed-tensors keeps it in 8 bits: a scale for each output."""
    shutil.copytree(FOLDER, folder)
    for manifest in folder.glob("*.sha256"):
        manifest.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEME}))
    (file,) = folder.glob("*.safetensors")
    kept: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        if name.endswith("_proj.weight"):
            scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
            kept[name] = (weight.float() / scale).round().to(torch.int8)
            kept[name.replace("weight", "weight_scale")] = scale
        else:
            kept[name] = weight
    save_file(kept, file, {"format": "pt"})
    return folder


async def answer(spec: ModelSpec) -> TextResult:
    engine = VllmText(spec, VllmOptions(max_waiting=2))
    await engine.start()
    try:
        order = TextJob(
            id="q",
            timeout_s=120,
            seed=1,
            max_tokens=40,
            temperature=0,
            messages=(Message(role="user", content=QUESTION),),
        )
        events = [event async for event in engine.events(order)]
    finally:
        await engine.close()
    assert isinstance(events[-1], Done)
    assert isinstance(events[-1].result, TextResult)
    return events[-1].result


@pytest.mark.asyncio
async def test_it_counts_in_8_bits(tmp_path: Path) -> None:
    """Both engines at once: most of their time is starting, and they fit beside each other."""
    kept = ModelSpec(name="kept", folder=compressed(tmp_path / "model"), max_rows=4)
    made = ModelSpec(name="made", folder=FOLDER, max_rows=4, quantization="fp8")
    for result in await asyncio.gather(answer(kept), answer(made)):
        assert "3, 4, 5, 6, 7, 8, 9" in result.text, result.model
        assert result.finish_reason == "stop"
