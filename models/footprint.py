"""What memory a model takes, counted from its files: their headers and configurations, without loading it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from models.catalog import WHOLE_CALLS, Entry, Memory
from models.manifest import BrokenFileError, read_header
from models.quantized import quantized_by
from models.sources import local_folder
from models.speech.slots import CPU_ROWS

FIRST_LENGTH = 2048
"""Tokens a slot of a language model has memory for at first; it grows when a row needs more."""

QUANTIZED_WIDTH = 64
"""Linear layers whose inputs are no multiple of so many stay as they are (`models.quantize`)."""

_PARTS = ("text_encoder", "text_encoder_2", "unet", "vae", "safety_checker")
"""Of a picture checkpoint, those that are loaded."""

_DECODER_TENSORS = 4
"""Full-size tensors of a VAE's last level alive at once: a convolution's input, its output, the one added,
and a copy in the order that the convolution wants."""


def memory_of(entry: Entry) -> Memory | None:
    """What the catalog tells, else what the model's files do; None where there is neither."""
    folder = local_folder(entry.source, entry)
    if folder is None or (entry.memory is not None and not quantized_by(folder)):
        return entry.memory
    try:
        found = measure(folder, entry.family)
    except (ValueError, BrokenFileError):
        found = None
    if entry.memory is None:
        return found
    # The catalog tells of the plain weights, and these are quantized.
    told = (found or entry.memory).model_dump(include={"parameters", "packed_bytes"})
    return entry.memory.model_copy(update={"quantizable": 0, **told})


def measure(folder: Path, family: str) -> Memory:
    """Of a model in the hub's layout. Raises `ValueError` or `BrokenFileError` for one that is not."""
    counts = {"text": _text, "image": _image, "speech": _speech}
    modality = family.partition(".")[0]
    if modality not in counts:
        raise ValueError(f"there is no modality {modality}")
    counts |= dict.fromkeys((*WHOLE_CALLS, "speech.vits"), _whole_call) | {"text.seq2seq": _seq2seq}
    count = counts.get(family, counts[modality])
    try:
        return count(folder)
    except (KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError):
        raise ValueError(f"the configuration in {folder} is not of family {family}") from None


def _text(folder: Path) -> Memory:
    config = _config(folder / "config.json")
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    key_heads = config.get("num_key_value_heads") or heads
    weights = _weights(folder)
    linear = {name: shape for name, shape in weights.items() if ".layers." in name and len(shape) == 2}
    kept = quantized_by(folder) is not None
    return Memory(
        parameters=_count(_plain(folder) if kept else weights),
        quantizable=0 if kept else _count(linear),
        packed_bytes=_bytes(folder) - 2 * _count(_plain(folder)) if kept else 0,
        cache_values_per_token=2 * config["num_hidden_layers"] * key_heads * head_size,
        context=config["max_position_embeddings"],
    )


def _plain(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of a quantized checkpoint its weights of 16 bits: all else stays what it is at any precision."""
    return {name: shape for name, (kind, shape) in _tensors(folder).items() if kind in ("BF16", "F16")}


def _seq2seq(folder: Path) -> Memory:
    """T5: its `wo` stays as it is in 8 and 4 bits, for what goes into it is beyond float16."""
    config = _config(folder / "config.json")
    layers = config.get("num_decoder_layers") or config["num_layers"]
    weights = _weights(folder)
    linear = {
        name: shape
        for name, shape in weights.items()
        if ".layer." in name and len(shape) == 2 and ".wo." not in name and "attention_bias" not in name
    }
    return Memory(
        parameters=_count(weights),
        quantizable=_count(linear),
        # A token of the prompt is kept for the decoder to attend to, one of the answer for itself.
        cache_values_per_token=2 * 2 * layers * config["num_heads"] * config["d_kv"],
        context=config.get("n_positions") or 512,
    )


def _whole_call(folder: Path) -> Memory:
    """It keeps nothing between two calls, and its forwards are cut to a size that hardly counts."""
    return Memory(parameters=_count(_weights(folder)))


def _speech(folder: Path) -> Memory:
    config, generation = _config(folder / "config.json"), _config(folder / "generation_config.json")
    semantic, coarse = config["semantic_config"], config["coarse_acoustics_config"]
    # What the stages write and read at most, where the checkpoint does not say what Bark does.
    says, codes = generation.get("semantic_config", {}), generation.get("coarse_acoustics_config", {})
    lengths = {
        "semantic_config": says.get("max_input_semantic_length", 256) + says.get("max_new_tokens", 768),
        "coarse_acoustics_config": codes.get("max_coarse_input_length", 256)
        + codes.get("max_coarse_history", 630)
        + codes.get("sliding_window_len", 60),
    }
    kept = {name: min(length, config[name]["block_size"]) for name, length in lengths.items()}
    values = sum(
        2 * config[name]["num_layers"] * config[name]["hidden_size"] * count for name, count in kept.items()
    )
    context = max(kept.values())
    return Memory(
        parameters=_count(_weights(folder)),
        # Of attention four widths times width, of the two layers behind it eight.
        quantizable=sum(
            12 * stage["num_layers"] * stage["hidden_size"] ** 2
            for stage in (semantic, coarse, config["fine_acoustics_config"])
        ),
        # Each stage keeps a cache of its own length: counted as if both had the longer one's.
        cache_values_per_token=round(values / context),
        context=context,
        cache_rows=CPU_ROWS,
    )


def _image(folder: Path) -> Memory:
    parts = [name for name in _PARTS if (folder / name).is_dir()]
    unet, vae = _config(folder / "unet/config.json"), _config(folder / "vae/config.json")
    levels: list[int] = vae["block_out_channels"]
    side = unet["sample_size"] * 2 ** (len(levels) - 1)
    linear = {
        name: shape
        for name, shape in _weights(folder / "unet").items()
        if len(shape) == 2 and not shape[1] % QUANTIZED_WIDTH
    }
    return Memory(
        parameters=sum(_count(_weights(folder / part)) for part in parts),
        quantizable=_count(linear),
        # Its last level works on whole pictures, and takes more than any forward of the UNet.
        work_values=_DECODER_TENSORS * side * side * levels[min(1, len(levels) - 1)],
    )


def _config(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"there is no {file}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is not JSON that can be read") from None


def _weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes."""
    return {name: shape for name, (_, shape) in _tensors(folder).items()}


def _tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes; of several precisions of one file the plain one counts."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if ".fp16" not in file.name]
    if not files:
        raise ValueError(f"there are no weights in {folder} (*.safetensors)")
    return {name: tensor for file in plain or files for name, tensor in read_header(file).items()}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _count(weights: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in weights.values())
