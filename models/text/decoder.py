"""A decoder-only language model of transformers on the step engine: rows in slots, joining between two steps.

A row's prompt but its last token is *prefilled* in chunks; then *decode* steps feed the newest token of every
row and choose the next (`models.text.forwards`). A row's numbers are the same bit for bit alone and in any
company.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from jobs import ErrorKind, Event, JobError, Result, TextJob
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.text.adapters import Adapters
from models.text.chat import Prompter
from models.text.constraint import Grammars
from models.text.forwards import CHUNK, Forwards, slot_of
from models.text.row import Chosen, Row, choose_next, make_row, take, text_result
from models.text.weights import Checkpoint, load_checkpoint


class Decoder:
    """`models.protocol.Model` for `TextJob`s. Slots, prefill chunks and the context are fixed at load."""

    def __init__(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        self.name = spec.name
        self.context = checkpoint.context
        self._checkpoint = checkpoint
        self.prompter = Prompter(checkpoint.tokenizer, model=spec.name, context=checkpoint.context)
        self._grammars = Grammars(checkpoint.tokenizer, checkpoint.end_tokens, checkpoint.vocabulary)
        self._adapters = Adapters(spec, checkpoint.model)
        self._forwards = Forwards(spec, checkpoint, self._adapters)
        self._on_cpu = torch.device(spec.device).type == "cpu"
        self._slots = spec.max_rows
        self._free = list(range(spec.max_rows))
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
            self._forwards.cache.ensure(len(row.prompt) + row.max_tokens)
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
            self._forwards.cache.clear(row.slot)
        self._adapters.release(row.loras)
        heapq.heappush(self._free, row.slot)
        row.slot = None

    def warm_up(self) -> None:
        """Runs both forwards on the cache's padding place, at the shortest and the longest read."""
        with torch.inference_mode():
            for longest in (1, self._forwards.cache.length):
                self._forwards.prefill([], longest)
                self._forwards.decode([], longest)
            if self._on_cpu:
                self._forwards.prove()

    # --- steps ----------------------------------------------------------------------------------------------

    def _prefill(self, rows: Sequence[Row]) -> None:
        chunks: list[tuple[Row, int]] = []
        ends: list[int] = []
        for row in rows:
            end = min(row.written + int(self.cost(row)) * CHUNK, len(row.prompt) - 1)
            chunks += [(row, start) for start in range(row.written, end, CHUNK)]
            ends.append(end)
        if len(chunks) > self._checkpoint.prefill_chunks:
            raise ValueError(f"{len(chunks)} chunks in a prefill of {self._checkpoint.prefill_chunks}")
        self._forwards.prefill(chunks, max(ends))
        for row, end in zip(rows, ends, strict=True):
            row.written = end

    def _decode(self, rows: Sequence[Row]) -> list[Chosen]:
        """The next token of each row; changes nothing but keys and values, which a repeat writes again."""
        logits = self._forwards.decode(rows, max(row.written for row in rows) + 1)
        logits = logits[[slot_of(row) for row in rows]]
        finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        if not all(finite):
            for row, good in zip(rows, finite, strict=True):
                row.tainted = row.tainted or not good
            raise ArithmeticError(f"{self.name}: logits that are not finite")
        return choose_next(logits, rows, self.prompter.token_text)

    def _take(self, row: Row, chosen: Chosen) -> Sequence[Event]:
        row.written += 1
        return take(row, chosen, self._checkpoint.end_tokens)


def load(spec: ModelSpec) -> Decoder:
    """Raises `ValueError` for a checkpoint this engine cannot run (says why), `OSError` for a broken one."""
    return Decoder(spec, load_checkpoint(spec))
