"""A decoder-only language model of transformers on the step engine: rows in slots, joining between two steps.

A row's prompt but its last token is *prefilled* in chunks; then *decode* steps feed the newest token of every
row and choose the next. A forward has all slots (or the most chunks), or as few as this machine has shown to
give a row the same bits (`warm_up`). So a row's numbers are the same bit for bit alone and in any company.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jobs import ErrorKind, Event, JobError, Result, TextJob
from models.footprint import FIRST_LENGTH
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.text.adapters import Adapters
from models.text.chat import Prompter
from models.text.constraint import Grammars
from models.text.row import Chosen, Loras, Row, choose_next, make_row, take, text_result
from models.text.slots import SlotCache, slot_mask
from models.text.weights import Checkpoint, load_checkpoint

CHUNK = 32
"""Tokens of one prompt in one row of a prefill forward."""

PROBED = (5, 127)
"""Positions at which fewer slots are tried."""


class Decoder:
    """`models.protocol.Model` for `TextJob`s. Slots, prefill chunks and the context are fixed at load."""

    def __init__(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        self.name = spec.name
        self.context = checkpoint.context
        self._checkpoint = checkpoint
        self.prompter = Prompter(checkpoint.tokenizer, model=spec.name, context=checkpoint.context)
        self._grammars = Grammars(checkpoint.tokenizer, checkpoint.end_tokens, checkpoint.vocabulary)
        self._adapters = Adapters(spec, checkpoint.model)
        self._device = torch.device(spec.device)
        self._slots = spec.max_rows
        self._free = list(range(spec.max_rows))
        self._sizes = [spec.max_rows]
        """Slots of a decode, rising: the last is all of them."""
        self._chunks = [checkpoint.prefill_chunks]
        """Chunks of a prefill, likewise."""
        self._cache = SlotCache(
            checkpoint.layers, slots=spec.max_rows, length=FIRST_LENGTH, limit=checkpoint.context
        )
        self._prefill_lane = Lane(spec.name, "prefill", (checkpoint.prefill_chunks, CHUNK))
        self._decode_lane = Lane(spec.name, "decode", (spec.max_rows, 1))

    # --- the verbs, in a row's order ------------------------------------------------------------------------

    def prepare(self, job: TextJob) -> Row:
        row = make_row(job, self.prompter.prompt(job), self.prompter, self._grammars)
        row.loras = self._adapters.load(job)
        return row

    def reserve(self, row: Row) -> bool:
        """A free slot, with memory for the whole row. Raises `JobError` when even all of it is too little."""
        if not self._free:
            return False
        try:
            self._cache.ensure(len(row.prompt) + row.max_tokens)
        except torch.OutOfMemoryError as error:
            if len(self._free) < self._slots:
                return False
            message = f"{self.name} has no memory for {len(row.prompt)} + {row.max_tokens} tokens."
            raise JobError(ErrorKind.INVALID, message, param="max_tokens", code="out_of_memory") from error
        if not self._adapters.acquire(row.loras):
            return False
        row.slot = heapq.heappop(self._free)  # the lowest: a decode runs no further than the highest in use
        return True

    def lane(self, row: Row) -> Lane | None:
        if row.ended:
            return None
        return self._prefill_lane if row.to_prefill > 0 else self._decode_lane

    def cost(self, row: Row) -> float:
        """Rows of the forward: chunks of its prompt as far as one forward takes them, or one token."""
        if row.to_prefill > 0:
            return min(-(-row.to_prefill // CHUNK), self._checkpoint.prefill_chunks)
        return 1

    def budget(self, lane: Lane) -> float:
        return lane.shape[0]

    def step(self, lane: Lane, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        try:
            with torch.inference_mode():
                if lane == self._prefill_lane:
                    self._prefill(rows)
                    return [() for _ in rows]
                tokens = self._decode(rows)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"a {lane.stage} step of {len(rows)} rows does not fit") from error
        return [self._take(row, token) for row, token in zip(rows, tokens, strict=True)]

    def finish(self, row: Row) -> Result:
        return text_result(self.name, row)

    def release(self, row: Row) -> None:
        if row.slot is None:
            return
        if row.tainted:
            self._cache.clear(row.slot)
        self._adapters.release(row.loras)
        heapq.heappush(self._free, row.slot)
        row.slot = None

    def warm_up(self) -> None:
        """Runs both forwards on the cache's padding place, at the shortest and the longest read.

        On a CPU it then looks with how few slots a decode gives a row the bits that it has among all:
        products of one row are made in another order than those of many, but often not those of four.
        """
        with torch.inference_mode():
            for longest in (1, self._cache.length):
                self._forward_prefill([], longest)
                self._forward_decode([], longest)
            if self._device.type == "cpu":
                with self._cache.noise(max(PROBED) + 1):
                    self._sizes = _proven(self._slots, self._probe_decode)
                    self._chunks = _proven(self._checkpoint.prefill_chunks, self._probe_prefill)

    def _probe_decode(self, position: int) -> Callable[[int], Tensor]:
        ids = self._some_ids(position, self._slots)
        spare = self._cache.spare
        return lambda count: self._logits(ids[:count], [position] * count, [spare] * count, position + 1)

    def _probe_prefill(self, position: int) -> Callable[[int], Tensor]:
        """Chunks of the slots' own tokens, at the slots' beginnings: what they write is noise to others."""
        count = self._checkpoint.prefill_chunks
        ids = self._some_ids(position, count * CHUNK)
        rows = [ids[at : at + CHUNK] for at in range(0, count * CHUNK, CHUNK)]
        places = [list(range(CHUNK))] * count
        spare = [[self._cache.spare] * CHUNK] * count
        slots = [number % self._slots for number in range(count)]
        return lambda most: (
            self._hidden(
                rows[:most], places[:most], spare[:most], slots[:most], position + 1
            ).last_hidden_state
        )

    def _some_ids(self, seed: int, count: int) -> list[int]:
        chance = torch.Generator().manual_seed(seed)
        return torch.randint(0, self._checkpoint.vocabulary, (count,), generator=chance).tolist()

    # --- prefill --------------------------------------------------------------------------------------------

    def _prefill(self, rows: Sequence[Row]) -> None:
        chunks: list[tuple[Row, int]] = []
        ends: list[int] = []
        for row in rows:
            end = min(row.written + int(self.cost(row)) * CHUNK, len(row.prompt) - 1)
            chunks += [(row, start) for start in range(row.written, end, CHUNK)]
            ends.append(end)
        if len(chunks) > self._checkpoint.prefill_chunks:
            raise ValueError(f"{len(chunks)} chunks in a prefill of {self._checkpoint.prefill_chunks}")
        self._forward_prefill(chunks, max(ends))
        for row, end in zip(rows, ends, strict=True):
            row.written = end

    def _forward_prefill(self, chunks: Sequence[tuple[Row, int]], longest: int) -> None:
        """Each chunk is a row of the forward. Chunks of one prompt may go together: all are written before
        any is read, layer by layer. What fills up a chunk goes to the cache's spare place."""
        most = self._checkpoint.prefill_chunks
        with_loras = any(row.loras for row, _ in chunks)
        count = most if with_loras else next(each for each in self._chunks if each >= (len(chunks) or most))
        ids = [[0] * CHUNK for _ in range(count)]
        positions = [[0] * CHUNK for _ in range(count)]
        write = [[self._cache.spare] * CHUNK for _ in range(count)]
        slots = [self._slots] * count
        for i, (row, start) in enumerate(chunks):
            part = row.prompt[start : min(start + CHUNK, len(row.prompt) - 1)]
            first = self._place(row, start)
            ids[i][: len(part)] = part
            positions[i][: len(part)] = range(start, start + len(part))
            write[i][: len(part)] = range(first, first + len(part))
            slots[i] = self._slot(row)
        loras = [row.loras for row, _ in chunks]
        with self._adapters.applied([*loras, *[()] * (count - len(loras))]):
            self._hidden(ids, positions, write, slots, longest)

    def _hidden(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        write: list[list[int]],
        slots: list[int],
        longest: int,
    ) -> Any:
        read = self._cache.place(self._tensor(write).flatten(), slots=self._tensor(slots), longest=longest)
        return self._checkpoint.hidden(
            input_ids=self._tensor(ids),
            position_ids=(places := self._tensor(positions)),
            attention_mask=self._masks(places, read),
            past_key_values=self._cache,
            use_cache=True,
        )

    # --- decode ---------------------------------------------------------------------------------------------

    def _decode(self, rows: Sequence[Row]) -> list[Chosen]:
        """The next token of each row; changes nothing but keys and values, which a repeat writes again."""
        logits = self._forward_decode(rows, max(row.written for row in rows) + 1)
        logits = logits[[self._slot(row) for row in rows]]
        finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        if not all(finite):
            for row, good in zip(rows, finite, strict=True):
                row.tainted = row.tainted or not good
            raise ArithmeticError(f"{self.name}: logits that are not finite")
        return choose_next(logits, rows, self.prompter.token_text)

    def _take(self, row: Row, chosen: Chosen) -> Sequence[Event]:
        row.written += 1
        return take(row, chosen, self._checkpoint.end_tokens)

    def _forward_decode(self, rows: Sequence[Row], longest: int) -> Tensor:
        """One token of each slot -> logits [slots, vocabulary]; slots of no row run on padding."""
        used = max((self._slot(row) for row in rows), default=self._slots - 1) + 1
        # Few slots are proven for the plain model; with a LoRA among them it is always all.
        with_loras = any(row.loras for row in rows)
        slots = self._slots if with_loras else next(each for each in self._sizes if each >= used)
        loras: list[Loras] = [()] * slots
        ids = [0] * slots
        positions = [0] * slots
        write = [self._cache.spare] * slots
        for row in rows:
            slot = self._slot(row)
            ids[slot] = row.newest
            positions[slot] = row.written
            write[slot] = self._place(row, row.written)
            loras[slot] = row.loras
        with self._adapters.applied(loras):
            return self._logits(ids, positions, write, longest)

    def _logits(self, ids: list[int], positions: list[int], write: list[int], longest: int) -> Tensor:
        read = self._cache.place(self._tensor(write), slots=None, longest=longest)
        places = self._tensor(positions)[:, None]
        return self._checkpoint.logits(
            input_ids=self._tensor(ids)[:, None],
            position_ids=places,
            attention_mask=self._masks(places, read),
            past_key_values=self._cache,
            use_cache=True,
        )[:, -1]

    # --- shapes ---------------------------------------------------------------------------------------------

    def _masks(self, positions: Tensor, read: int) -> Tensor | dict[str, Tensor]:
        """By layer type where the model's layers differ, else one for all."""
        made = {
            kind: slot_mask(
                positions, read, groups=self._checkpoint.groups, window=window, dtype=self._checkpoint.dtype
            )
            for kind, window in self._checkpoint.windows.items()
        }
        return made if len(made) > 1 else next(iter(made.values()))

    def _slot(self, row: Row) -> int:
        if row.slot is None:
            raise RuntimeError(f"row {row.job.id} was not reserved")
        return row.slot

    def _place(self, row: Row, position: int) -> int:
        return self._slot(row) * self._cache.length + position

    def _tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=self._device)


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


def load(spec: ModelSpec) -> Decoder:
    """Raises `ValueError` for a checkpoint this engine cannot run (says why), `OSError` for a broken one."""
    return Decoder(spec, load_checkpoint(spec))
