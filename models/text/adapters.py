"""LoRAs of a language model: a row of a forward has its own or none, and none shows in another's.

One LoRA a row, and never merged into the weights: so a row's numbers are the same bit for bit in any company.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from jobs import ErrorKind, JobError, TextJob
from models.lora.bank import NONE, LoraBank, Selection
from models.lora.files import LoraReader, layers_of
from models.lora.folder import LoraFolder
from models.lora.slots import Chosen
from models.protocol import ModelSpec

PART = "model"
_SPELLINGS = ("base_model.model.{}", "{}")
"""Of a layer in files: as peft writes it, and plain."""


class Adapters:
    """The LoRAs of one model's folder, and those of them in memory. One thread's own but for `load`."""

    def __init__(self, spec: ModelSpec, model: Any) -> None:
        """Raises `ValueError` for a model that is laid over devices: its layers have no one place."""
        if spec.loras is not None and spec.room:
            raise ValueError(f"{spec.name}: a model that is laid over devices takes no `loras`")
        parts = {PART: model}
        layers = layers_of(parts)
        names = {each.format(layer[1]): layer for each in _SPELLINGS for layer in layers}
        dtype = getattr(torch, spec.dtype)
        self._folder = LoraFolder(spec.loras, LoraReader(layers, names, dtype))
        self._bank = LoraBank(parts, torch.device(spec.device), dtype, spec.lora_memory_bytes, merges=False)
        self._last: tuple[Hashable, Selection] = ((), NONE)

    def load(self, job: TextJob) -> Chosen:
        """Reads what the job names. Raises `JobError` for more than one, for one that is not there or bad."""
        only_one(job)
        return self._folder.load(job.loras)

    def acquire(self, chosen: Chosen) -> bool:
        """A place for them; False when others use all there are."""
        if chosen:
            self._last = ((), NONE)  # slots may change hands
        return self._bank.acquire([adapter for adapter, _ in chosen])

    def release(self, chosen: Chosen) -> None:
        self._bank.release([adapter for adapter, _ in chosen])

    @contextmanager
    def applied(self, rows: Sequence[Chosen]) -> Generator[None]:
        """Forwards inside, of these rows, have their LoRAs."""
        with self._bank.applied(self._selected(rows)):
            yield

    def _selected(self, rows: Sequence[Chosen]) -> Selection:
        """The last one again for the same rows: while they step together nothing of it changes."""
        if not any(rows):
            return NONE
        named = tuple(tuple((adapter.key, weight) for adapter, weight in row) for row in rows)
        if named != self._last[0]:
            self._last = (named, self._bank.select(PART, rows))
        return self._last[1]


def only_one(job: TextJob) -> None:
    """Raises `JobError` for more LoRAs than a text may have."""
    if len(job.loras) > 1:
        raise JobError(ErrorKind.INVALID, "loras must name at most 1 LoRA for a text.", param="loras")
