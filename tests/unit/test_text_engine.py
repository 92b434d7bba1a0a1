"""Which engine steps text, and what is said about it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from models.catalog import Entry
from models.protocol import ModelSpec
from models.text.vllm import VllmText
from runners.text_engine import vllm_obstacle
from settings import Settings


def why(engine: str = "auto", device: str = "cuda:0", **entry: Any) -> str | None:
    fields = {"family": "text.decoder", "source": "hub:a/b", "licence": "x", **entry}
    entries = {"m": Entry.model_validate(fields)}
    return vllm_obstacle(entries, device, Settings.model_validate({"text_engine": engine}))


def test_auto_says_why_text_is_not_on_vllm() -> None:
    assert why(engine="vllm", device="cpu") is None
    assert "TRIPTYCH_TEXT_ENGINE" in (why(engine="transformers") or "")
    assert "CPU" in (why(device="cpu") or "")
    assert why(precision="int4") == "m is int4 by bitsandbytes, which vLLM has no more"
    assert "encoder-decoder" in (why(family="text.seq2seq") or "")
    assert "offload" in (why(offload=True) or "")
    with pytest.raises(ValueError, match="offload"):
        VllmText(ModelSpec(name="m", folder=Path("m"), offload=True))
    if importlib.util.find_spec("vllm") is None:
        assert why() == "vLLM is not installed"
