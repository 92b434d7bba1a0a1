"""A bank of LoRAs beside a model's layers: every row of a forward has its own, and none shows in another's.

A layer that a LoRA touches gets two stacks, `down` [S, rank, in] and `up` [S, rank, out], a slot a LoRA. Slot
0 stays zero and stands for none. What a forward row adds to a layer's output is weight * up(down(x)) of its
own slots, gathered per row and applied in one batched product. A layer that no row touches is left alone.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from models.lora.files import Adapter, Layer
from models.lora.slots import Addition, Chosen, Shelf, added, values_a_rank

MOST_LORAS_A_ROW = 4
SLOTS = {16: 16, 64: 8, 128: 4}
"""The most slots by rank: a bank of 16s next to few 128s, of about the same memory."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What one forward of a part does about LoRAs.

    `additions` to layers' outputs; and `merged` weights in place of a layer's own, where all rows have the
    same LoRAs: then it costs no more than none.
    """

    additions: Mapping[Layer, Sequence[Addition]]
    merged: Mapping[Layer, torch.nn.Parameter]

    def __bool__(self) -> bool:
        return bool(self.additions or self.merged)


NONE = Selection({}, {})


class LoraBank:
    """The LoRAs in memory. `acquire` and `release` count who uses one; one thread's own."""

    def __init__(
        self,
        parts: Mapping[str, torch.nn.Module],
        device: torch.device,
        dtype: torch.dtype,
        budget_bytes: int,
        *,
        merges: bool = True,
    ) -> None:
        """`budget_bytes`: the most memory of all slots together, should LoRAs touch every layer there is.

        `merges`: whether rows that all have the same LoRAs get weights with them in, on a CPU, whose last
        bits are not those of a row among others.

        A row may name `MOST_LORAS_A_ROW` of one rank, so no rank has fewer slots, whatever the budget.
        """
        self._modules = {name: dict(root.named_modules()) for name, root in parts.items()}
        self._hooked: set[Layer] = set()
        self._selection = NONE
        # A GPU's forwards are compiled, and it has less memory to spare.
        self._merges_on = merges and device.type == "cpu"
        values = sum(values_a_rank(module) for found in self._modules.values() for module in found.values())
        share = budget_bytes // len(SLOTS)
        self._shelves = [
            Shelf(
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
        additions: dict[Layer, list[Addition]] = {}
        for shelf in self._shelves:
            own = [[(a, w) for a, w in row if self._shelf_of(a) is shelf] for row in rows]
            for layer, addition in shelf.additions(part, own):
                additions.setdefault(layer, []).append(addition)
        if not self._merges_on or any(_named(row) != _named(rows[0]) for row in rows):
            return Selection(additions, {})
        merged = {
            layer: weight
            for layer, those in additions.items()
            if (weight := _merged(self._modules[layer[0]][layer[1]], those)) is not None
        }
        return Selection({layer: additions[layer] for layer in additions.keys() - merged.keys()}, merged)

    @contextmanager
    def applied(self, selection: Selection) -> Generator[None]:
        """Forwards inside add `selection`, whose rows must be theirs."""
        own: dict[torch.nn.Module, Any] = {}
        for (part, path), weight in selection.merged.items():
            module = self._modules[part][path]
            own[module] = module.weight
            module.weight = weight
        self._selection = selection
        try:
            yield
        finally:
            self._selection = NONE
            for module, weight in own.items():
                module.weight = weight

    def _shelf_of(self, adapter: Adapter) -> Shelf:
        return next(shelf for shelf in self._shelves if adapter.rank <= shelf.rank)

    def _on(self, shelf: Shelf, adapters: Sequence[Adapter]) -> dict[Hashable, Adapter]:
        return {adapter.key: adapter for adapter in adapters if self._shelf_of(adapter) is shelf}

    def _hook(self, layer: Layer) -> None:
        part, path = layer

        def add(
            module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            additions = self._selection.additions.get(layer)
            if additions is None:
                return None
            for addition in additions:
                output = added(module, inputs[0], output, addition)
            return output

        self._modules[part][path].register_forward_hook(add)
        self._hooked.add(layer)


def _named(row: Chosen) -> list[tuple[Hashable, float]]:
    return [(adapter.key, weight) for adapter, weight in row]


def _merged(module: torch.nn.Module, additions: Sequence[Addition]) -> torch.nn.Parameter | None:
    """The layer's weight with what the first row's LoRAs add; None for one that is quantized or elsewhere."""
    weight = module.weight
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.is_meta:
        return None
    total = weight.float()
    for addition in additions:
        down, up = addition.factors()
        low = down[: len(down) // len(up)].flatten(0, 1).flatten(1)
        total = total + (up[0].T.float() @ low.float()).reshape(weight.shape)
    return torch.nn.Parameter(total.to(weight.dtype), requires_grad=False)
