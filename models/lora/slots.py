"""Slots for LoRAs of one rank: a layer's stacks of them, and what a forward adds to the layer from them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from models.lora.files import Adapter, Factors, Layer, layer_shape

Chosen = Sequence[tuple[Adapter, float]]
"""The LoRAs of one row with their weights."""


@dataclass(slots=True)
class Stack:
    """One layer's LoRAs on one shelf. `written`: the slots that hold anything here."""

    down: torch.Tensor
    up: torch.Tensor
    written: set[int] = field(default_factory=set[int])


@dataclass(slots=True)
class Addition:
    """What one forward adds to one layer: `slots` [F * K], and `scale` [F, K * rank, 1] of their weights."""

    stack: Stack
    slots: torch.Tensor
    scale: torch.Tensor
    kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`down` [F * K, rank, in] and `up` [F, K * rank, out], scaled, of each forward row's own slots.

        On a CPU they are kept while the same rows step together, whose adapters keep their slots: gathering
        them anew was a fifth of a step (measured). A GPU gathers fast and has less memory to spare.
        """
        if self.kept is not None:
            return self.kept
        up = self.stack.up[self.slots].unflatten(0, (len(self.scale), -1)).flatten(1, 2) * self.scale
        gathered = (self.stack.down[self.slots], up)
        if up.device.type == "cpu":
            self.kept = gathered
        return gathered


class Shelf:
    """The slots of one rank. The least recently used one that nobody holds makes room."""

    def __init__(self, *, rank: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.rank = rank
        self.users: Counter[Hashable] = Counter()
        self._placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._free = list(range(slots, 0, -1))
        self._stacks: dict[Layer, Stack] = {}

    def has_room(self, wanted: Mapping[Hashable, Adapter]) -> bool:
        missing = wanted.keys() - self._slots.keys()
        idle = [key for key in self._slots if not self.users[key] and key not in wanted]
        return len(missing) <= len(self._free) + len(idle)

    def hold(
        self,
        adapter: Adapter,
        wanted: Mapping[Hashable, Adapter],
        modules: Mapping[str, Mapping[str, torch.nn.Module]],
    ) -> None:
        """Call only after `has_room(wanted)`."""
        if adapter.key not in self._slots:
            slot = self._free.pop() if self._free else self._evict(wanted)
            self._slots[adapter.key] = slot
            for (part, path), factors in adapter.layers.items():
                stack = self._stacks.get((part, path)) or self._new_stack((part, path), modules[part][path])
                _write(stack, slot, factors)
        self._slots.move_to_end(adapter.key)
        self.users[adapter.key] += 1

    def _evict(self, wanted: Mapping[Hashable, Adapter]) -> int:
        key = next(key for key in self._slots if not self.users[key] and key not in wanted)
        slot = self._slots.pop(key)
        for stack in self._stacks.values():
            if slot in stack.written:
                stack.down[slot].zero_()
                stack.up[slot].zero_()
                stack.written.discard(slot)
        return slot

    def _new_stack(self, layer: Layer, module: torch.nn.Module) -> Stack:
        inner, outer = layer_shape(module)
        slots = 1 + len(self._slots) + len(self._free)
        stack = Stack(
            down=torch.zeros((slots, self.rank, *inner), **self._placement),
            up=torch.zeros((slots, self.rank, outer), **self._placement),
        )
        self._stacks[layer] = stack
        return stack

    def additions(self, part: str, rows: Sequence[Chosen]) -> list[tuple[Layer, Addition]]:
        most = max((len(row) for row in rows), default=0)
        if most == 0:
            return []
        slots = torch.zeros((len(rows), most), dtype=torch.int64)
        weights = torch.zeros((len(rows), most))
        for at, row in enumerate(rows):
            for k, (adapter, weight) in enumerate(row):
                slots[at, k], weights[at, k] = self._slots[adapter.key], weight
        active = set(slots.unique().tolist())
        scale = weights.repeat_interleave(self.rank, dim=1).unsqueeze(2).to(**self._placement)
        flat = slots.flatten().to(self._placement["device"])
        return [
            (layer, Addition(stack, flat, scale))
            for layer, stack in self._stacks.items()
            if layer[0] == part and stack.written & active
        ]


def values_a_rank(module: torch.nn.Module) -> int:
    """What a LoRA of rank 1 holds for a layer; 0 for what no LoRA touches."""
    if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
        return 0
    inner, outer = layer_shape(module)
    return inner.numel() + outer


def _write(stack: Stack, slot: int, factors: Factors) -> None:
    rank = factors.down.shape[0]
    stack.down[slot, :rank].copy_(factors.down)
    stack.up[slot, :rank].copy_(factors.up.T)
    stack.written.add(slot)


def added(module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor, addition: Addition) -> torch.Tensor:
    """`output` + weight * up(down(x)) of each forward row's own slots."""
    rows = len(x)
    down, up = addition.factors()
    if isinstance(module, torch.nn.Conv2d):
        # One group a row: its own filters see its own picture.
        low = torch.nn.functional.conv2d(
            x.reshape(1, -1, *x.shape[2:]),
            down.flatten(0, 1),
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=rows,
        )
        low = low.reshape(rows, -1, output.shape[2] * output.shape[3])
        return torch.baddbmm(output.flatten(2), up.transpose(1, 2), low).reshape(output.shape)
    down = down.unflatten(0, (rows, -1)).flatten(1, 2)
    low = torch.bmm(x.reshape(rows, -1, x.shape[-1]), down.transpose(1, 2))
    return torch.baddbmm(output.reshape(rows, -1, output.shape[-1]), low, up).reshape(output.shape)
