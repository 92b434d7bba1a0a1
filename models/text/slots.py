"""The slot cache: keys and values of a fixed number of rows, each row at a position of its own.

A transformers `Cache`: before every forward `place` says for each token of it which slot and position it is
written to, and how much of the cache attention reads. All layers share that one placement.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

READ_STEP = 64
"""Attention reads the cache up to a multiple of this. What is masked adds exactly nothing, so how far a
neighbour makes a row read does not change its bits (`tests/unit/test_decoder.py` proves it)."""

ATTENTION = "triptych_slots"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one forward writes and reads; the indices are where the forward begins."""

    write: Tensor
    """[rows * tokens], int64: the flat place (slot * length + position) of each token."""
    slots: Tensor | None
    """[rows], int64: the slot each row reads; None when row i of the forward is slot i."""
    read: int
    """Positions 0 to `read` are read."""
    elsewhere: dict[torch.device, Placement] = field(default_factory=dict["torch.device", "Placement"])
    """The same for layers on other devices, brought there once a forward."""

    def on(self, device: torch.device) -> Placement:
        if self.write.device == device:
            return self
        if device not in self.elsewhere:
            slots = None if self.slots is None else self.slots.to(device)
            self.elsewhere[device] = Placement(write=self.write.to(device), slots=slots, read=self.read)
        return self.elsewhere[device]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [(slots + 1) * length, kv_heads, head_dim]; the last slot is padding's."""

    is_compileable = False
    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._room(key_states)
        self.values = self._room(value_states)
        self.is_initialized = True

    def _room(self, states: Tensor) -> Tensor:
        """Zeros, not empty memory: a masked value still meets the weight 0, and 0 times NaN is NaN."""
        shape = ((self._owner.slots + 1) * self._owner.length, states.shape[1], states.shape[3])
        return states.new_zeros(shape)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes [rows, kv_heads, tokens, head_dim]; gives back [rows, kv_heads, read, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._put_and_get(self.keys, key_states), self._put_and_get(self.values, value_states)

    def _put_and_get(self, room: Tensor | None, states: Tensor) -> Tensor:
        if room is None:
            raise RuntimeError("the layer has no memory yet")
        placement = self._owner.placement.on(room.device)
        room.index_copy_(0, placement.write, states.transpose(1, 2).flatten(0, 1))
        by_slot = room.view(self._owner.slots + 1, self._owner.length, *room.shape[1:])[:, : placement.read]
        rows = by_slot[: states.shape[0]] if placement.slots is None else by_slot[placement.slots]
        return rows.transpose(1, 2)

    def grow(self, old_length: int) -> None:
        """Moves to the owner's new, larger length."""
        self.keys = self._moved(self.keys, old_length)
        self.values = self._moved(self.values, old_length)

    def _moved(self, room: Tensor | None, old_length: int) -> Tensor | None:
        if room is None:
            return None
        slots = self._owner.slots + 1
        larger = room.new_zeros((slots * self._owner.length, *room.shape[1:]))
        larger.view(slots, self._owner.length, *room.shape[1:])[:, :old_length] = room.view(
            slots, old_length, *room.shape[1:]
        )
        return larger

    def fill(self, positions: int, how: Callable[[Tensor], object]) -> None:
        for room in (self.keys, self.values):
            if room is not None:
                how(room.view(self._owner.slots + 1, self._owner.length, *room.shape[1:])[:, :positions])

    def clear(self, slot: int) -> None:
        for room in (self.keys, self.values):
            if room is not None:
                room[slot * self._owner.length : (slot + 1) * self._owner.length] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise NotImplementedError(f"the caller makes the masks of its {query_length} tokens itself")

    def get_seq_length(self) -> int:
        """Rows differ in length, so there is no one length; positions are always given by the caller."""
        return 0

    def get_max_length(self) -> int:
        return self._owner.length


class SlotCache(Cache):
    """`slots` rows of up to `limit` tokens; memory for `length` of them, doubled when a row needs more."""

    def __init__(self, layers: int, *, slots: int, length: int, limit: int) -> None:
        self.slots = slots
        self.limit = _rounded(limit)
        self.length = min(_rounded(length), self.limit)
        self._placement: Placement | None = None
        self._slot_layers = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._slot_layers))

    @property
    def placement(self) -> Placement:
        if self._placement is None:
            raise RuntimeError("`place` comes before a forward")
        return self._placement

    def place(self, write: Tensor, *, slots: Tensor | None, longest: int) -> int:
        """Sets where the next forward writes and reads; gives back the number of positions it reads."""
        read = min(_rounded(longest), self.length)
        self._placement = Placement(write=write, slots=slots, read=read)
        return read

    @property
    def spare(self) -> int:
        """The flat place that padding is written to; nothing ever reads it."""
        return self.slots * self.length

    @contextmanager
    def noise(self, positions: int) -> Generator[None]:
        """Inside, the first `positions` of every slot hold random numbers; afterwards zeros, as at first."""
        for layer in self._slot_layers:
            layer.fill(positions, lambda room: room.normal_())
        try:
            yield
        finally:
            for layer in self._slot_layers:
                layer.fill(positions, lambda room: room.zero_())

    @torch.inference_mode()
    def ensure(self, tokens: int) -> None:
        """Makes room for rows of `tokens`, at most `limit`. Raises `torch.OutOfMemoryError`, nothing lost."""
        if tokens <= self.length:
            return
        old_length, kept = self.length, [(layer.keys, layer.values) for layer in self._slot_layers]
        self.length = min(max(_rounded(tokens), 2 * old_length), self.limit)
        try:
            for layer in self._slot_layers:
                layer.grow(old_length)
        except RuntimeError as error:  # as which torch tells that a CPU has no more memory
            self.length = old_length
            for layer, (keys, values) in zip(self._slot_layers, kept, strict=True):
                layer.keys, layer.values = keys, values
            raise torch.OutOfMemoryError(f"no memory for rows of {tokens} tokens") from error

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Wipes a slot whose numbers went wrong, so that its next row does not read them even as 0 * NaN."""
        for layer in self._slot_layers:
            layer.clear(slot)


def slot_mask(positions: Tensor, read: int, *, groups: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What each token may look at, as attention adds it: 0 or -infinity, [rows, 1, groups * tokens, read].

    `positions` is [rows, tokens]. A token sees itself and what is before it; with a sliding window only the
    last `window` positions, itself included. `groups` is the number of query heads to a key head.
    """
    keys = torch.arange(read, device=positions.device)
    queries = positions[:, None, :, None]
    hidden = keys > queries
    if window is not None:
        hidden = hidden | (keys <= queries - window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, float("-inf")).repeat(1, 1, groups, 1)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention that folds the query heads of one key head into its queries: keys are not copied per head.

    query [rows, heads, tokens, dim], key and value [rows, kv_heads, read, dim] -> [rows, tokens, heads, dim].
    Raises `NotImplementedError` for scores changed in a way this does not know.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} needs {name}, which the slot cache has not")
    rows, heads, tokens, dim = query.shape
    folded = query.reshape(rows, key.shape[1], -1, dim)
    mixed = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)


def _rounded(length: int) -> int:
    return -(-length // READ_STEP) * READ_STEP
