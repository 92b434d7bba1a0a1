"""The one folder LoRAs are taken from, listed anew for every request, so that a new file is seen at once.

A name is looked up in the listing and never joined to a path. What counts is plain `.safetensors` files, and
folders as peft writes them (`adapter_model.safetensors` and its `adapter_config.json`): no links, no pickles.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import ErrorKind, JobError, LoraChoice
from models.lora.files import Adapter, LoraReader

SUFFIX = ".safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
REMEMBERED_BYTES = 1 << 30
"""Of LoRAs as read, kept so that one evicted from the bank comes back without its file being parsed again."""


@dataclass(frozen=True, slots=True)
class Found:
    """One LoRA of the folder."""

    weights: Path
    config: Path | None = None
    """peft's, of one that is a folder."""

    @property
    def key(self) -> Hashable:
        """Of what is in its files now. Raises `FileNotFoundError`."""
        files = (self.weights,) if self.config is None else (self.weights, self.config)
        stated = (file.stat(follow_symlinks=False) for file in files)
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in stated)


def find(folder: Path | None, choice: LoraChoice) -> Found:
    """Where it is. Raises `JobError` for a name that is not there, with those that are."""
    listing = _listing(folder)
    if choice.name not in listing:
        there = ", ".join(sorted(listing)) or "none"
        message = f"There is no LoRA {choice.name!r}. Those there are: {there}."
        raise JobError(ErrorKind.NOT_FOUND, message, param="loras", code="lora_not_found")
    return listing[choice.name]


def _listing(folder: Path | None) -> dict[str, Found]:
    if folder is None or not folder.is_dir():
        return {}
    listing: dict[str, Found] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
                listing[entry.name.removesuffix(SUFFIX)] = Found(path)
            elif entry.is_dir(follow_symlinks=False):
                files = (path / PEFT_WEIGHTS, path / PEFT_CONFIG)
                if all(file.is_file() and not file.is_symlink() for file in files):
                    listing[entry.name] = Found(*files)
    return listing


class LoraFolder:
    """Names to adapters. Safe to call from several threads; a file is read once, however many ask for it."""

    def __init__(self, folder: Path | None, reader: LoraReader) -> None:
        self._folder = folder
        self._reader = reader
        self._lock = threading.Lock()
        self._read: OrderedDict[Hashable, Adapter] = OrderedDict()
        self._gates: dict[Hashable, threading.Lock] = {}

    def names(self) -> list[str]:
        return sorted(_listing(self._folder))

    def load(self, choices: Sequence[LoraChoice]) -> tuple[tuple[Adapter, float], ...]:
        """Raises `JobError` for a name that is not there, with those that are, and for a file of no use."""
        if not choices:
            return ()
        found = [(choice, find(self._folder, choice)) for choice in choices]
        return tuple((self._adapter(choice.name, each), choice.weight) for choice, each in found)

    def _adapter(self, name: str, found: Found) -> Adapter:
        try:
            key = (name, found.key)
        except FileNotFoundError as error:
            message = f"LoRA {name!r} was taken away just now."
            raise JobError(ErrorKind.NOT_FOUND, message, param="loras", code="lora_not_found") from error
        # A replaced file is another adapter: what is under way keeps the one it began with.
        with self._lock:
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:  # of this file alone: who wants another one does not wait for a large file's reading
            adapter = self._read.get(key) or self._reader.read(name, found.weights, key, found.config)
            with self._lock:
                self._gates.pop(key, None)
                self._read[key] = adapter
                self._read.move_to_end(key)
                while len(self._read) > 1 and self._nbytes() > REMEMBERED_BYTES:
                    self._read.popitem(last=False)
        return adapter

    def _nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._read.values())
