"""A decoder-only checkpoint in memory, with what the engine needs to know of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from models.protocol import ModelSpec
from models.quantized import BITSANDBYTES, quantized_by
from models.text.chat import end_tokens
from models.text.layout import check_layout, layout
from models.text.slots import ATTENTION

SMALL = 100_000_000
"""Below so many parameters a forward is mostly overhead, so a prefill of many chunks is nearly free."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    tokenizer: Any
    model: Any
    """The module, for what is added to its layers."""
    logits: Callable[..., Tensor]
    """A forward to logits [rows, tokens, vocabulary]."""
    hidden: Callable[..., Any]
    """The same forward without the vocabulary, for tokens of which nothing is asked."""
    dtype: torch.dtype
    layers: int
    groups: int
    """Query heads to a key head."""
    windows: dict[str, int | None]
    """Kinds of attention layers, and how far back each sees (None: all)."""
    context: int
    """Tokens of prompt and answer together."""
    vocabulary: int
    """The width of the logits."""
    end_tokens: frozenset[int]
    prefill_chunks: int
    """Rows of a prefill forward."""


def load_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Raises `ValueError` for an architecture that the slot cache cannot run."""
    how = quantization_of(spec)
    whole = config_of(spec)
    config = whole.get_text_config(decoder=True)
    windows = _windows(spec.name, config)
    tokenizer = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True)
    model = _model(spec, whole, how)
    body = model.get_decoder()

    def logits(**inputs: Any) -> Tensor:
        return model(**inputs).logits

    return Checkpoint(
        tokenizer=tokenizer,
        model=model,
        logits=logits,
        hidden=body,
        dtype=getattr(torch, spec.dtype),
        layers=config.num_hidden_layers,
        groups=config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads),
        windows=windows,
        context=_context(config, tokenizer),
        vocabulary=config.vocab_size,
        end_tokens=end_tokens(model.generation_config.to_dict(), tokenizer),
        prefill_chunks=8 if model.num_parameters() < SMALL or spec.device != "cpu" else 2,
    )


def _model(spec: ModelSpec, config: Any, how: BitsAndBytesConfig | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        spec.folder,
        config=config,
        local_files_only=True,
        use_safetensors=True,
        dtype=getattr(torch, spec.dtype),
        attn_implementation=ATTENTION,
        quantization_config=how,
        **layout(spec),
    )
    check_layout(spec, model)
    return model.eval()


def config_of(spec: ModelSpec) -> Any:
    """The checkpoint's, with what `quantization_of` says of 8 bits where it is in 8 bits already."""
    config: Any = AutoConfig.from_pretrained(spec.folder, local_files_only=True)
    kept = getattr(config, "quantization_config", None)
    if isinstance(kept, dict) and "llm_int8_threshold" in kept:
        kept["llm_int8_threshold"] = 0.0
    return config


def quantization_of(spec: ModelSpec) -> BitsAndBytesConfig | None:
    """How bitsandbytes shrinks it, None for not at all or as the checkpoint says. Raises `ValueError`."""
    kept = quantized_by(spec.folder)
    if kept not in (None, BITSANDBYTES):
        raise ValueError(f"{spec.name}: it is quantized by {kept}, which only vLLM reads")
    if kept is not None and spec.quantization is not None:
        raise ValueError(f"{spec.name}: it is quantized already; its precision is auto")
    if spec.quantization == "fp8":
        raise ValueError(f"{spec.name}: fp8 is vLLM's; TRIPTYCH_TEXT_ENGINE=vllm asks for it on a CPU too")
    if spec.quantization is None and kept is None:
        return None
    if spec.quantization not in ("int8", "int4", None):
        raise ValueError(f"{spec.name}: quantization {spec.quantization} is not known; int8 and int4 are")
    # It warns at every product that it casts its input to float16, which is how it works.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if spec.device == "cpu":
        # It tries to compile its CPU kernels, which takes many seconds to find out that there is no compiler.
        torch.compiler.set_stance("force_eager")
    if spec.quantization is None:
        return None
    if spec.quantization == "int8":
        # Its threshold keeps columns in float16 by what any row of a forward has in them, so that a row's
        # numbers would depend on its neighbours. Without it each row is scaled by itself alone.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=getattr(torch, spec.dtype))


def _windows(name: str, config: Any) -> dict[str, int | None]:
    """Refuses what would run and be wrong: other kinds of layers, and scores with a cap."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - KNOWN_LAYERS:
        raise ValueError(f"{name}: layers of kind {', '.join(sorted(unknown))} do not run on the slot cache")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError(f"{name}: attn_logit_softcapping does not run on the slot cache")
    window = getattr(config, "sliding_window", None)
    if not kinds:
        kinds = {"full_attention" if window is None else "sliding_attention"}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def _context(config: Any, tokenizer: Any) -> int:
    """Position encodings that change with the longest row in the forward keep to their first length: past it
    a row would depend on its neighbours, and the keys in the cache would be of another encoding."""
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        context = min(context, rope.get("original_max_position_embeddings") or context)
    return int(context)
