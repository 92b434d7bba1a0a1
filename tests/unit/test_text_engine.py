"""Which engine steps text, and what is said about it."""

from __future__ import annotations

import importlib.util

from models.catalog import Entry
from runners.placement import Placement
from runners.text import vllm_obstacle
from settings import Settings


def why(engine: str = "auto", device: str = "cuda:0", **entry: str) -> str | None:
    fields = {"family": "text.decoder", "source": "hub:a/b", "licence": "x", **entry}
    entries = {"m": Entry.model_validate(fields)}
    return vllm_obstacle(entries, Placement(device, 0.3, 1), Settings.model_validate({"text_engine": engine}))


def test_auto_says_why_text_is_not_on_vllm() -> None:
    assert why(engine="vllm", device="cpu") is None
    assert "TRIPTYCH_TEXT_ENGINE" in (why(engine="transformers") or "")
    assert "CPU" in (why(device="cpu") or "")
    assert why(precision="int4") == "m is int4 by bitsandbytes, which vLLM has no more"
    assert "encoder-decoder" in (why(family="text.seq2seq") or "")
    if importlib.util.find_spec("vllm") is None:
        assert why() == "vLLM is not installed"
