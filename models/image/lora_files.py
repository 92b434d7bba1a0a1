"""What is in a LoRA file: safetensors only, laid out as diffusers (old and new), peft or kohya do."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from jobs import ErrorKind, JobError
from models.image.original_names import original_name

HIGHEST_RANK = 128

Layer = tuple[str, str]
"""A part of the checkpoint (`unet`, `text_encoder`) and a module's path in it."""

_ROLE = re.compile(
    r"^(?P<layer>.+?)"
    r"(?:\.lora_(?P<peft>[AB])|[._]lora\.(?P<old>down|up)|\.lora_linear_layer\.(?P<older>down|up)"
    r"|\.lora_(?P<kohya>down|up))(?:\.default)?\.weight$"
)
_DOWN = {"A", "down"}
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_ATTENTION = {"unet": {"to_out": "to_out.0"}, "text_encoder": _TEXT, "text_encoder_2": _TEXT}
"""What attention layers were called in diffusers' first LoRA layout, and are called in the modules."""
_KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
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
    """Reads LoRAs for the layers of one checkpoint. `parts`: its modules by name (`unet`, `text_encoder`)."""

    def __init__(self, parts: Mapping[str, torch.nn.Module], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._modules: dict[Layer, torch.nn.Module] = {}
        self._names: dict[str, Layer] = {}
        for part, root in parts.items():
            for path, module in root.named_modules():
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                    self._modules[part, path] = module
                    self._names.update(dict.fromkeys(_spellings(part, path), (part, path)))
            if part == "unet":
                self._names.update(_original_spellings(root))

    def read(self, name: str, path: str, key: Hashable) -> Adapter:
        """Raises `JobError` that names the LoRA when the file is broken or made for another model."""
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                alphas = _stated_alphas(file.metadata() or {})
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


def _spellings(part: str, path: str) -> Iterator[str]:
    """What LoRA files call a layer: diffusers, peft, kohya, and diffusers' first layout."""
    roots = ("",) if part == "unet" else ("", "text_model.")
    path = path.removeprefix("text_model.")
    for root in roots:
        yield f"{part}.{root}{path}"
        if part != "text_encoder_2":  # which of the two a name without its part means, nobody can say
            yield f"base_model.model.{root}{path}"
            yield f"{root}{path}"
        for kohya in _KOHYA[part]:
            yield kohya + f"{root}{path}".replace(".", "_")
        for old, new in _OLD_ATTENTION[part].items():
            if path.endswith(f".{new}"):
                yield f"{part}.{root}{path.removesuffix(new)}{old}"
        if part == "unet" and ".to_" in path:
            attention, _, layer = path.rpartition(".to_")
            yield f"unet.{attention}.processor.to_{layer.removesuffix('.0')}"


def _original_spellings(unet: Any) -> Iterator[tuple[str, Layer]]:
    """kohya's names for SDXL, which keep the original ones of the blocks."""
    modules = dict(unet.named_modules())
    for path, module in modules.items():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            block = ".".join(path.split(".")[:2])
            attends = f"{block}.attentions" in modules
            name = original_name(path, unet.config.layers_per_block, attends)
            if name is not None:
                yield "lora_unet_" + name.replace(".", "_"), ("unet", path)


def _stated_alphas(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What diffusers writes beside the weights: peft's configuration, its keys led by the part's name."""
    stated = json.loads(metadata.get(_METADATA, "{}"))
    return stated if isinstance(stated, dict) else {}


def _stated_scale(stated: Mapping[str, Any], layer: Layer, rank: int) -> float:
    """alpha / rank as peft has it; 1 where nothing is said, as diffusers has it."""
    part, path = layer
    alpha = stated.get(f"{part}.lora_alpha")
    patterns = stated.get(f"{part}.alpha_pattern") or {}
    for pattern, own in patterns.items():
        if path == pattern or path.endswith(f".{pattern}"):
            alpha = own
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if stated.get(f"{part}.use_rslora") else rank)


def _unusable(name: str, why: str) -> JobError:
    return JobError(ErrorKind.INVALID, f"LoRA {name!r} cannot be used: {why}.", param="loras")
