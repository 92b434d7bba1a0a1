"""The one folder LoRAs are taken from, listed anew for every request, so that a new file is seen at once.

A name is looked up in the listing and never joined to a path. Only plain `.safetensors` files count: no
links, no folders, no pickles.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path

from jobs import ErrorKind, JobError, LoraChoice
from models.image.lora_files import Adapter, LoraReader

SUFFIX = ".safetensors"
REMEMBERED_BYTES = 1 << 30
"""Of LoRAs as read, kept so that one evicted from the bank comes back without its file being parsed again."""


class LoraFolder:
    """Names to adapters. Safe to call from several threads; a file is read once, however many ask for it."""

    def __init__(self, folder: Path | None, reader: LoraReader) -> None:
        self._folder = folder
        self._reader = reader
        self._lock = threading.Lock()
        self._read: OrderedDict[Hashable, Adapter] = OrderedDict()
        self._gates: dict[Hashable, threading.Lock] = {}

    def names(self) -> list[str]:
        return sorted(self._listing())

    def load(self, choices: Sequence[LoraChoice]) -> tuple[tuple[Adapter, float], ...]:
        """Raises `JobError` for a name that is not there, with those that are, and for a file of no use."""
        if not choices:
            return ()
        listing = self._listing()
        for choice in choices:
            if choice.name not in listing:
                there = ", ".join(sorted(listing)) or "none"
                message = f"There is no LoRA {choice.name!r}. Those there are: {there}."
                raise JobError(ErrorKind.NOT_FOUND, message, param="loras", code="lora_not_found")
        return tuple((self._adapter(choice.name, listing[choice.name]), choice.weight) for choice in choices)

    def _listing(self) -> dict[str, os.DirEntry[str]]:
        if self._folder is None or not self._folder.is_dir():
            return {}
        with os.scandir(self._folder) as entries:
            files = [e for e in entries if e.name.endswith(SUFFIX) and e.is_file(follow_symlinks=False)]
        return {entry.name.removesuffix(SUFFIX): entry for entry in files}

    def _adapter(self, name: str, entry: os.DirEntry[str]) -> Adapter:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError as error:
            message = f"LoRA {name!r} was taken away just now."
            raise JobError(ErrorKind.NOT_FOUND, message, param="loras", code="lora_not_found") from error
        # A replaced file is another adapter: pictures under way keep the one they began with.
        key = (name, status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:  # of this file alone: who wants another one does not wait for a large file's reading
            found = self._read.get(key) or self._reader.read(name, entry.path, key)
            with self._lock:
                self._gates.pop(key, None)
                self._read[key] = found
                self._read.move_to_end(key)
                while len(self._read) > 1 and self._nbytes() > REMEMBERED_BYTES:
                    self._read.popitem(last=False)
        return found

    def _nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._read.values())
