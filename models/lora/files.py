"""What is in a LoRA: safetensors only, laid out as diffusers (old and new), peft or kohya do."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from jobs import ErrorKind, JobError

HIGHEST_RANK = 128

Layer = tuple[str, str]
"""A part of the checkpoint (`unet`, `text_encoder`) and a module's path in it."""

_ROLE = re.compile(
    r"^(?P<layer>.+?)"
    r"(?:\.lora_(?P<peft>[AB])|[._]lora\.(?P<old>down|up)|\.lora_linear_layer\.(?P<older>down|up)"
    r"|\.lora_(?P<kohya>down|up))(?:\.default)?\.weight$"
)
_DOWN = {"A", "down"}
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's low-rank addition, up @ down, its alpha folded into `up`.

    `down` [rank, in] or [rank, in, kh, kw] of a convolution; `up` [out, rank]. On the CPU.
    """

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA as read. `key` changes when its file does, so a replaced file is another adapter."""

    name: str
    key: Hashable
    rank: int
    layers: Mapping[Layer, Factors]

    def touches(self, part: str) -> bool:
        return any(layer[0] == part for layer in self.layers)

    @property
    def nbytes(self) -> int:
        return sum(factors.down.nbytes + factors.up.nbytes for factors in self.layers.values())


class LoraReader:
    """Reads LoRAs for the layers of one checkpoint."""

    def __init__(
        self, layers: Mapping[Layer, torch.nn.Module], names: Mapping[str, Layer], dtype: torch.dtype
    ) -> None:
        """`layers` are those that a LoRA may touch, `names` what files call them."""
        self._dtype = dtype
        self._modules = layers
        self._names = names

    def read(self, name: str, path: Path, key: Hashable, config: Path | None = None) -> Adapter:
        """`config`: peft's own file beside the weights, where there is one.

        Raises `JobError` that names the LoRA when a file is broken or made for another model.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                alphas = _stated_alphas(metadata) if config is None else _peft_alphas(name, config)
                tensors = {held: file.get_tensor(held) for held in file.keys()}  # noqa: SIM118, not a mapping
        except FileNotFoundError as error:
            message = f"LoRA {name!r} was taken away just now."
            raise JobError(ErrorKind.NOT_FOUND, message, param="loras") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise _unusable(name, "its file is broken") from error
        layers = dict(self._layers(name, tensors, alphas))
        if not layers:
            raise _unusable(name, "it holds no LoRA layers")
        rank = max(factors.down.shape[0] for factors in layers.values())
        if rank > HIGHEST_RANK:
            raise _unusable(name, f"its rank is {rank} and the highest here is {HIGHEST_RANK}")
        return Adapter(name=name, key=key, rank=rank, layers=layers)

    def _layers(
        self, name: str, tensors: Mapping[str, torch.Tensor], stated: Mapping[str, Any]
    ) -> Iterator[tuple[Layer, Factors]]:
        halves: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            role = _ROLE.match(key)
            if role is not None:
                spelled = next(found for found in role.groups()[1:] if found)
                halves[role["layer"]]["down" if spelled in _DOWN else "up"] = tensor
            elif not key.endswith(".alpha"):
                raise _unusable(name, f"it holds {key!r}, which is no part of a plain LoRA")
        for spelling, pair in halves.items():
            layer = self._names.get(spelling)
            if layer is None:
                raise _unusable(name, f"this model has no layer {spelling!r}; it was made for another one")
            if len(pair) != 2:
                raise _unusable(name, f"half of layer {spelling!r} is missing")
            alpha = tensors.get(f"{spelling}.alpha")
            yield layer, self._factors(name, spelling, layer, pair, alpha, stated)

    def _factors(
        self,
        name: str,
        spelling: str,
        layer: Layer,
        pair: Mapping[str, torch.Tensor],
        alpha: torch.Tensor | None,
        stated: Mapping[str, Any],
    ) -> Factors:
        rank = pair["down"].shape[0] if pair["down"].dim() else 0
        inner, outer = layer_shape(self._modules[layer])
        fits = rank and pair["down"][0].numel() == inner.numel() and pair["up"].numel() == outer * rank
        if not fits or (alpha is not None and alpha.numel() != 1):
            raise _unusable(name, f"layer {spelling!r} has another shape than this model's")
        scale = _stated_scale(stated, layer, rank) if alpha is None else alpha.item() / rank
        down, up = pair["down"].float(), pair["up"].float() * scale
        if not (down.isfinite().all() and up.isfinite().all()):
            raise _unusable(name, f"layer {spelling!r} holds numbers that are not finite")
        return Factors(
            down=down.reshape(rank, *inner).to(self._dtype).contiguous(),
            up=up.reshape(outer, rank).to(self._dtype).contiguous(),
        )


def layer_shape(module: torch.nn.Module) -> tuple[torch.Size, int]:
    """What a layer takes ([in], or [in, kh, kw] of a convolution) and how many features it gives."""
    if isinstance(module, torch.nn.Conv2d):
        return torch.Size((module.in_channels, *module.kernel_size)), module.out_channels
    if isinstance(module, torch.nn.Linear):
        return torch.Size((module.in_features,)), module.out_features
    raise TypeError(f"no LoRA on a {type(module).__name__}")


def layers_of(parts: Mapping[str, torch.nn.Module]) -> dict[Layer, torch.nn.Module]:
    """Those that a LoRA may touch, of a checkpoint's modules by name (`unet`, `text_encoder`)."""
    return {
        (part, path): module
        for part, root in parts.items()
        for path, module in root.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def _peft_alphas(name: str, path: Path) -> dict[str, Any]:
    """peft's configuration. Raises `JobError` for what is no plain LoRA, `OSError`, `ValueError`."""
    stated = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stated, dict) or stated.get("peft_type") != "LORA":
        raise _unusable(name, "its adapter_config.json is not that of a LoRA")
    for odd in ("use_dora", "modules_to_save", "layer_replication", "trainable_token_indices"):
        if stated.get(odd):
            raise _unusable(name, f"it has {odd}, which is no part of a plain LoRA")
    patterns = stated.get("alpha_pattern") or {}
    alphas = [stated.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise _unusable(name, "its adapter_config.json has no alpha, or one that is no number")
    return stated


def _stated_alphas(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What diffusers writes beside the weights: peft's configuration, its keys led by the part's name."""
    stated = json.loads(metadata.get(_METADATA, "{}"))
    return stated if isinstance(stated, dict) else {}


def _stated_scale(stated: Mapping[str, Any], layer: Layer, rank: int) -> float:
    """alpha / rank as peft has it; 1 where nothing is said, as diffusers has it.

    `stated` has its keys led by the part's name, but for those of a peft folder.
    """
    part, path = layer

    def said(key: str) -> Any:
        return stated.get(f"{part}.{key}", stated.get(key))

    alpha = said("lora_alpha")
    patterns = said("alpha_pattern") or {}
    for pattern, own in patterns.items():
        if path == pattern or path.endswith(f".{pattern}"):
            alpha = own
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if said("use_rslora") else rank)


def _unusable(name: str, why: str) -> JobError:
    return JobError(ErrorKind.INVALID, f"LoRA {name!r} cannot be used: {why}.", param="loras")
