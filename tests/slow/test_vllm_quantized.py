"""vLLM for real, on a CPU: what it makes of quantized checkpoints, and the embedded model in fp8."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import Done, Message, TextJob, TextResult
from models.protocol import ModelSpec
from models.text.vllm import VllmText
from models.text.vllm_options import VllmOptions
from models.text.vllm_weights import weights_args

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
    pytest.mark.timeout(900),
    # vLLM's own and its dependencies' business.
    pytest.mark.filterwarnings("ignore"),
]

FOLDER = Path(__file__).parents[2] / "models" / "embedded" / "tiny-llama"
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
FOUR_BITS = {"bits": 4, "group_size": 64}
KEPT: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "version": "gemm", "zero_point": True, **FOUR_BITS},
    "gptq": {"quant_method": "gptq", "desc_act": False, "sym": True, **FOUR_BITS},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
                "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
            }
        },
    },
}


@pytest.mark.parametrize("method", KEPT)
def test_a_checkpoint_is_read_as_it_is_quantized(tmp_path: Path, method: str) -> None:
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]

    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": KEPT[method]}))
    made: Any = AsyncEngineArgs(**weights_args(ModelSpec(name="tiny", folder=folder))).create_engine_config()
    assert method in str(made.model_config.quantization)
    assert made.model_config.dtype == torch.bfloat16


@pytest.mark.asyncio
async def test_it_counts_in_fp8() -> None:
    engine = VllmText(
        ModelSpec(name="tiny", folder=FOLDER, max_rows=4, quantization="fp8"), VllmOptions(max_waiting=2)
    )
    await engine.start()
    asked = (Message(role="user", content="Could you count from 3 to 9?"),)
    order = TextJob(id="q", timeout_s=120, seed=1, max_tokens=40, temperature=0, messages=asked)
    try:
        events = [event async for event in engine.events(order)]
    finally:
        await engine.close()
    assert isinstance(events[-1], Done)
    assert isinstance(events[-1].result, TextResult)
    assert "3, 4, 5, 6, 7, 8, 9" in events[-1].result.text
