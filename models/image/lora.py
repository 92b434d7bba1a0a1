"""A bank of LoRAs beside a model's layers: every row of a forward has its own, and none shows in another's.

A layer that a LoRA touches gets two stacks, `down` [S, rank, in] and `up` [S, rank, out], a slot a LoRA. Slot
0 stays zero and stands for none. What a forward row adds to a layer's output is weight * up(down(x)) of its
own slots, gathered per row and applied in one batched product. A layer that no row touches is left alone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from models.image.lora_files import Adapter, Factors, Layer, layer_shape

MOST_LORAS_A_ROW = 4
SLOTS = {16: 16, 64: 8, 128: 4}
"""The most slots by rank: a bank of 16s next to few 128s, of about the same memory."""

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


Selection = Mapping[Layer, Sequence[Addition]]


class LoraBank:
    """The LoRAs in memory. `acquire` and `release` count who uses one; one thread's own."""

    def __init__(
        self,
        parts: Mapping[str, torch.nn.Module],
        device: torch.device,
        dtype: torch.dtype,
        budget_bytes: int,
    ) -> None:
        """`budget_bytes`: the most memory of all slots together, should LoRAs touch every layer there is.

        A row may name `MOST_LORAS_A_ROW` of one rank, so no rank has fewer slots, whatever the budget.
        """
        self._modules = {name: dict(root.named_modules()) for name, root in parts.items()}
        self._hooked: set[Layer] = set()
        self._selection: Selection = {}
        values = sum(_values_a_rank(module) for found in self._modules.values() for module in found.values())
        share = budget_bytes // len(SLOTS)
        self._shelves = [
            _Shelf(
                rank=rank,
                # One more than these is there, and stays zero.
                slots=min(most, max(MOST_LORAS_A_ROW, share // (values * rank * dtype.itemsize) - 1)),
                device=device,
                dtype=dtype,
            )
            for rank, most in SLOTS.items()
        ]

    def acquire(self, adapters: Sequence[Adapter]) -> bool:
        """Puts all of them into slots and holds them there, or none: False when the slots are in use."""
        shelved = [(shelf, self._on(shelf, adapters)) for shelf in self._shelves]
        if not all(shelf.has_room(wanted) for shelf, wanted in shelved):
            return False
        for shelf, wanted in shelved:
            for adapter in wanted.values():
                shelf.hold(adapter, wanted, self._modules)
                for layer in adapter.layers.keys() - self._hooked:
                    self._hook(layer)
        return True

    def release(self, adapters: Sequence[Adapter]) -> None:
        """Lets go what `acquire` held; they stay in their slots until another one needs the place."""
        for shelf in self._shelves:
            shelf.users.subtract(self._on(shelf, adapters).keys())

    def select(self, part: str, rows: Sequence[Chosen]) -> Selection:
        """What a forward of `part` over these rows adds, layer by layer; empty when no row has a LoRA."""
        selection: dict[Layer, list[Addition]] = {}
        for shelf in self._shelves:
            own = [[(a, w) for a, w in row if self._shelf_of(a) is shelf] for row in rows]
            for layer, addition in shelf.additions(part, own):
                selection.setdefault(layer, []).append(addition)
        return selection

    @contextmanager
    def applied(self, selection: Selection) -> Generator[None]:
        """Forwards inside add `selection`, whose rows must be theirs."""
        self._selection = selection
        try:
            yield
        finally:
            self._selection = {}

    def _shelf_of(self, adapter: Adapter) -> _Shelf:
        return next(shelf for shelf in self._shelves if adapter.rank <= shelf.rank)

    def _on(self, shelf: _Shelf, adapters: Sequence[Adapter]) -> dict[Hashable, Adapter]:
        return {adapter.key: adapter for adapter in adapters if self._shelf_of(adapter) is shelf}

    def _hook(self, layer: Layer) -> None:
        part, path = layer

        def add(
            module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            additions = self._selection.get(layer)
            if additions is None:
                return None
            for addition in additions:
                output = _added(module, inputs[0], output, addition)
            return output

        self._modules[part][path].register_forward_hook(add)
        self._hooked.add(layer)


class _Shelf:
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


def _values_a_rank(module: torch.nn.Module) -> int:
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


def _added(
    module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor, addition: Addition
) -> torch.Tensor:
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
