"""Bark's voices: presets of tokens that an utterance goes on from, by name from a list made at load.

A caller's string is only ever looked up in that list; it never becomes part of a path.
"""

from __future__ import annotations

import io
import json
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor

from jobs import ErrorKind, JobError
from models.speech.generation import Rules
from models.speech.language import voice_language

PRESETS_FILE = "speaker_embeddings_path.json"
"""The hub's list of a checkpoint's voices: a name to the paths of its three arrays."""
VOICES_FOLDER = "voices"
"""Beside it, presets of one file each: `<name>.npz` or `<name>.safetensors`."""
PARTS = ("semantic_prompt", "coarse_prompt", "fine_prompt")
FAVOURITE = "v2/en_speaker_6"
"""The default voice of a checkpoint that lists it (the hub's list begins with German ones)."""
MAX_FILE_BYTES = 4 << 20
"""The hub's largest array has 60 kB."""
NAMES_SHOWN = 20
OWN = "your own"
"""The name of a voice that came with its request."""
_NAME = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*)*", re.ASCII)

Arrays = Mapping[str, NDArray[Any]]


class _PresetError(ValueError):
    """What is wrong with a preset, in words that a caller may read."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A preset, checked; all arrays are int64 and not to be written to."""

    name: str
    semantic: Tensor
    """Semantic tokens, [any length]."""
    coarse: Tensor
    """The codec's first codebooks, [2, frames]."""
    fine: Tensor
    """All of the codec's codebooks, [codebooks, frames]."""
    language: str = "en"
    """ISO 639-1."""


class Voices:
    """The voices of one checkpoint; each is read and checked when it is first asked for, then kept."""

    def __init__(self, folder: Path, rules: Rules, language: str = "en") -> None:
        """Lists the voices of a model folder; opens none of them.

        Args:
            folder: The model's.
            rules: The checkpoint's.
            language: Of voices whose names do not tell it.

        Raises:
            ValueError: the list itself cannot be read, or leads out of the folder.
        """
        self._rules = rules
        self._language = language
        self._readers: dict[str, Callable[[], Arrays]] = {}
        self._kept: dict[str, Voice] = {}
        self._lock = threading.Lock()
        for name, paths in _listed_presets(folder).items():
            self._readers[name] = lambda paths=paths: {part: _read_npy(paths[part]) for part in PARTS}
        for path in sorted((folder / VOICES_FOLDER).glob("*")):
            if path.suffix in _FILE_READERS and _NAME.fullmatch(path.stem):
                read = _FILE_READERS[path.suffix]
                self._readers[path.stem] = lambda path=path, read=read: read(_bytes_of(path))

    @property
    def names(self) -> list[str]:
        return list(self._readers)

    @property
    def default(self) -> str | None:
        """The voice of a job that names none: `FAVOURITE` if there is one, else the first of the list."""
        return FAVOURITE if FAVOURITE in self._readers else next(iter(self._readers), None)

    @property
    def languages(self) -> dict[str, str]:
        """The language of each voice, by its name."""
        return {name: voice_language(name, self._language) for name in self._readers}

    def spoken(self) -> list[str]:
        """The languages of the voices, the default's first."""
        languages = self.languages
        first = self._language if self.default is None else languages[self.default]
        return list(dict.fromkeys([first, *languages.values()]))

    def in_language(self, language: str) -> str | None:
        """The voice to take for a language: the default if it speaks it, else the first that does.

        Raises:
            JobError: none speaks it.
        """
        languages = self.languages
        names = [name for name in (self.default, *languages) if name and languages[name] == language]
        if names:
            return names[0]
        if not languages and language == self._language:
            return None
        message = f"This model does not speak {language!r}. It speaks: {', '.join(self.spoken())}."
        raise JobError(ErrorKind.INVALID, message, param="language", code="unknown_language")

    def of_file(self, data: bytes, language: str) -> Voice:
        """A caller's own preset, from the bytes of an .npz or a .safetensors file.

        Raises:
            JobError: it is too large, or not a preset of this checkpoint; the message says what is wrong.
        """
        read = _read_npz if data.startswith(b"PK") else _read_safetensors
        try:
            return replace(check_voice(OWN, read(data), self._rules), language=language)
        except (OSError, ValueError, KeyError, EOFError, MemoryError, OverflowError) as error:
            known = str(error) if isinstance(error, _PresetError) else "it cannot be read"
            message = f"`voice_file` is not a preset of this model: {known}."
            raise JobError(ErrorKind.INVALID, message, param="voice_file", code="bad_voice_file") from error

    def get(self, name: str | None) -> Voice | None:
        """The voice of that name, the default one for None; None if the checkpoint has no voices at all.

        Raises:
            JobError: there is no such voice, or its files are damaged.
        """
        name = self.default if name is None else name
        if name is None:
            return None
        reader = self._readers.get(name)
        if reader is None:
            raise JobError(ErrorKind.NOT_FOUND, self._unknown(), param="voice", code="voice_not_found")
        with self._lock:
            if name not in self._kept:
                try:
                    voice = check_voice(name, reader(), self._rules)
                    self._kept[name] = replace(voice, language=self.languages[name])
                except (OSError, ValueError) as error:
                    message = f"The voice {name!r} is damaged on this server; choose another one."
                    raise JobError(ErrorKind.INTERNAL, message, param="voice") from error
            return self._kept[name]

    def _unknown(self) -> str:
        names = self.names
        if not names:
            return "This model has no voices; leave the voice out."
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return f"There is no such voice. There are: {', '.join(names[:NAMES_SHOWN])}{more}."


def check_voice(name: str, arrays: Arrays, rules: Rules) -> Voice:
    """A voice from its arrays as they were read.

    Raises:
        ValueError: a part is missing, or has a wrong type, shape or range; the message names it.
    """
    semantic, coarse, fine = (_check_part(arrays, part) for part in PARTS)
    frames = fine.shape[-1]
    shapes = {
        "semantic_prompt": semantic.ndim == 1 and semantic.size >= 2,
        "coarse_prompt": coarse.shape == (rules.coarse.codebooks, frames) or coarse.ndim == 2,
        "fine_prompt": fine.ndim == 2 and fine.shape[0] == rules.fine.codebooks and frames >= 1,
    }
    shapes["coarse_prompt"] &= coarse.shape[0] == rules.coarse.codebooks and coarse.size >= 2
    ranges = {
        "semantic_prompt": (semantic, rules.semantic.vocab_size),
        "coarse_prompt": (coarse, rules.codebook_size),
        "fine_prompt": (fine, rules.codebook_size),
    }
    for part in PARTS:
        if not shapes[part]:
            raise _PresetError(f"{part} has a wrong shape")
        tokens, limit = ranges[part]
        if tokens.min() < 0 or tokens.max() >= limit:
            raise _PresetError(f"{part} has a token that is not from 0 to {limit - 1}")
    parts = [torch.from_numpy(tokens.astype(np.int64)) for tokens in (semantic, coarse, fine)]
    return Voice(name, parts[0], parts[1], parts[2])


def _check_part(arrays: Arrays, part: str) -> NDArray[Any]:
    if part not in arrays:
        raise _PresetError(f"{part} is missing")
    if arrays[part].dtype.kind not in "iu":
        raise _PresetError(f"{part} must be an array of whole numbers")
    return arrays[part]


def _listed_presets(folder: Path) -> dict[str, dict[str, Path]]:
    path = folder / PRESETS_FILE
    if not path.exists():
        return {}
    listed: object = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(listed, dict):
        raise ValueError(f"{PRESETS_FILE} is not an object")
    presets: dict[str, dict[str, Path]] = {}
    for name, paths in cast("dict[str, object]", listed).items():
        if not isinstance(paths, dict) or not _NAME.fullmatch(name):
            continue  # `repo_or_path`, where the list was made
        parts = {part: _inside(folder, cast("dict[str, object]", paths).get(part)) for part in PARTS}
        if all(file.exists() for file in parts.values()):  # the hub's folders may be fetched in part
            presets[name] = parts
    return presets


def _inside(folder: Path, relative: object) -> Path:
    """The path of a listed file. By its letters alone: the hub's own files are links that lead elsewhere."""
    path = Path(os.path.normpath(folder / str(relative)))
    if not isinstance(relative, str) or not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"{PRESETS_FILE} names a file that is not in the model's folder")
    return path


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise _PresetError(f"it has {size} bytes, more than the {MAX_FILE_BYTES} of any voice")


def _read_npy(path: Path) -> NDArray[Any]:
    _check_size(path.stat().st_size)
    return np.load(path, allow_pickle=False)


def _read_npz(data: bytes) -> Arrays:
    _check_size(len(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_size(sum(entry.file_size for entry in archive.infolist()))
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {part: arrays[part] for part in PARTS if part in arrays}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise _PresetError("it is not an .npz file") from error


def _read_safetensors(data: bytes) -> Arrays:
    _check_size(len(data))
    try:
        return load(data)
    except SafetensorError as error:
        raise _PresetError("it is neither an .npz nor a .safetensors file") from error


def _bytes_of(path: Path) -> bytes:
    _check_size(path.stat().st_size)
    return path.read_bytes()


_FILE_READERS: dict[str, Callable[[bytes], Arrays]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
