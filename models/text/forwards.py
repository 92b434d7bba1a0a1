"""The forwards of a decoder-only model over its slots: what of a row goes where in the tensors.

A forward has all slots (or the most chunks), or as few as this machine has shown to give a row the same bits
(`prove`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.footprint import FIRST_LENGTH
from models.protocol import ModelSpec
from models.text.adapters import Adapters
from models.text.row import Loras, Row
from models.text.slots import SlotCache, slot_mask
from models.text.weights import Checkpoint

CHUNK = 32
"""Tokens of one prompt in one row of a prefill forward."""

PROBED = (5, 127)
"""Positions at which fewer slots are tried."""


class Forwards:
    """The model with its cache; under `torch.inference_mode`. Rows have a slot of `slots`."""

    def __init__(self, spec: ModelSpec, checkpoint: Checkpoint, adapters: Adapters) -> None:
        self._checkpoint = checkpoint
        self._adapters = adapters
        self._device = torch.device(spec.device)
        self._slots = spec.max_rows
        self._sizes = [spec.max_rows]
        """Slots of a decode, rising: the last is all of them."""
        self._chunks = [checkpoint.prefill_chunks]
        """Chunks of a prefill, likewise."""
        self.cache = SlotCache(
            checkpoint.layers, slots=spec.max_rows, length=FIRST_LENGTH, limit=checkpoint.context
        )

    def prefill(self, chunks: Sequence[tuple[Row, int]], longest: int) -> None:
        """Writes the tokens of each row's prompt from each place on, `CHUNK` of them but never the last.

        Each chunk is a row of the forward. Chunks of one prompt may go together: all are written before
        any is read, layer by layer. What fills up a chunk goes to the cache's spare place.
        """
        most = self._checkpoint.prefill_chunks
        with_loras = any(row.loras for row, _ in chunks)
        count = most if with_loras else next(each for each in self._chunks if each >= (len(chunks) or most))
        ids = [[0] * CHUNK for _ in range(count)]
        positions = [[0] * CHUNK for _ in range(count)]
        write = [[self.cache.spare] * CHUNK for _ in range(count)]
        slots = [self._slots] * count
        for i, (row, start) in enumerate(chunks):
            part = row.prompt[start : min(start + CHUNK, len(row.prompt) - 1)]
            first = self._place(row, start)
            ids[i][: len(part)] = part
            positions[i][: len(part)] = range(start, start + len(part))
            write[i][: len(part)] = range(first, first + len(part))
            slots[i] = slot_of(row)
        loras = [row.loras for row, _ in chunks]
        with self._adapters.applied([*loras, *[()] * (count - len(loras))]):
            self._hidden(ids, positions, write, slots, longest)

    def decode(self, rows: Sequence[Row], longest: int) -> Tensor:
        """The newest token of each row -> logits [slots, vocabulary]; slots of no row run on padding."""
        used = max(map(slot_of, rows), default=self._slots - 1) + 1
        # Few slots are proven for the plain model; with a LoRA among them it is always all.
        with_loras = any(row.loras for row in rows)
        slots = self._slots if with_loras else next(each for each in self._sizes if each >= used)
        loras: list[Loras] = [()] * slots
        ids = [0] * slots
        positions = [0] * slots
        write = [self.cache.spare] * slots
        for row in rows:
            slot = slot_of(row)
            ids[slot] = row.newest
            positions[slot] = row.written
            write[slot] = self._place(row, row.written)
            loras[slot] = row.loras
        with self._adapters.applied(loras):
            return self._logits(ids, positions, write, longest)

    # --- how few rows a forward may have --------------------------------------------------------------------

    def prove(self) -> None:
        """Looks with how few slots a decode gives a row the bits that it has among all.

        A CPU makes products of one row in another order than those of many, but often not those of four.
        """
        with self.cache.noise(max(PROBED) + 1):
            self._sizes = _proven(self._slots, self._probe_decode)
            self._chunks = _proven(self._checkpoint.prefill_chunks, self._probe_prefill)

    def _probe_decode(self, position: int) -> Callable[[int], Tensor]:
        ids = self._some_ids(position, self._slots)
        spare = self.cache.spare
        return lambda count: self._logits(ids[:count], [position] * count, [spare] * count, position + 1)

    def _probe_prefill(self, position: int) -> Callable[[int], Tensor]:
        """Chunks of the slots' own tokens, at the slots' beginnings: what they write is noise to others."""
        count = self._checkpoint.prefill_chunks
        ids = self._some_ids(position, count * CHUNK)
        rows = [ids[at : at + CHUNK] for at in range(0, count * CHUNK, CHUNK)]
        places = [list(range(CHUNK))] * count
        spare = [[self.cache.spare] * CHUNK] * count
        slots = [number % self._slots for number in range(count)]
        return lambda most: (
            self._hidden(
                rows[:most], places[:most], spare[:most], slots[:most], position + 1
            ).last_hidden_state
        )

    def _some_ids(self, seed: int, count: int) -> list[int]:
        chance = torch.Generator().manual_seed(seed)
        return torch.randint(0, self._checkpoint.vocabulary, (count,), generator=chance).tolist()

    # --- shapes ---------------------------------------------------------------------------------------------

    def _hidden(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        write: list[list[int]],
        slots: list[int],
        longest: int,
    ) -> Any:
        read = self.cache.place(self._tensor(write).flatten(), slots=self._tensor(slots), longest=longest)
        return self._checkpoint.hidden(
            input_ids=self._tensor(ids),
            position_ids=(places := self._tensor(positions)),
            attention_mask=self._masks(places, read),
            past_key_values=self.cache,
            use_cache=True,
        )

    def _logits(self, ids: list[int], positions: list[int], write: list[int], longest: int) -> Tensor:
        read = self.cache.place(self._tensor(write), slots=None, longest=longest)
        places = self._tensor(positions)[:, None]
        return self._checkpoint.logits(
            input_ids=self._tensor(ids)[:, None],
            position_ids=places,
            attention_mask=self._masks(places, read),
            past_key_values=self.cache,
            use_cache=True,
        )[:, -1]

    def _masks(self, positions: Tensor, read: int) -> Tensor | dict[str, Tensor]:
        """By layer type where the model's layers differ, else one for all."""
        made = {
            kind: slot_mask(
                positions, read, groups=self._checkpoint.groups, window=window, dtype=self._checkpoint.dtype
            )
            for kind, window in self._checkpoint.windows.items()
        }
        return made if len(made) > 1 else next(iter(made.values()))

    def _place(self, row: Row, position: int) -> int:
        return slot_of(row) * self.cache.length + position

    def _tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def slot_of(row: Row) -> int:
    if row.slot is None:
        raise RuntimeError(f"row {row.job.id} was not reserved")
    return row.slot


def _proven(most: int, probe: Callable[[int], Callable[[int], Tensor]]) -> list[int]:
    """The powers of two below `most` whose forwards give their rows the bits of `most`'s, and `most`.

    `probe` takes a position and gives a forward over so many rows.
    """
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    for position in PROBED:
        forward = probe(position)
        whole = forward(most)
        sizes = [size for size in sizes if torch.equal(whole[:size], forward(size))]
    return [*sizes, most]
