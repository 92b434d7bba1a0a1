"""Bark's voices: presets of tokens that an utterance goes on from, by name from a list made at load.

A caller's string is only ever looked up in that list; it never becomes part of a path.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs import ErrorKind, JobError
from models.speech.generation import Rules
from models.speech.language import voice_language
from models.speech.presets import PARTS, SUFFIXES, Arrays, PresetError, read_file, read_files, read_preset

PRESETS_FILE = "speaker_embeddings_path.json"
"""The hub's list of a checkpoint's voices: a name to the paths of its three arrays."""
VOICES_FOLDER = "voices"
"""Beside it, presets of one file each: `<name>.npz` or `<name>.safetensors`."""
FAVOURITE = "v2/en_speaker_6"
"""The default voice of a checkpoint that lists it (the hub's list begins with German ones)."""
MAX_LENGTH = 1 << 13
"""Tokens of a part along its longer side: ten times what Bark says in one go."""
NAMES_SHOWN = 20
OWN = "your own"
"""The name of a voice that came with its request."""
_NAME = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*)*", re.ASCII)


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
            self._readers[name] = partial(read_files, paths)
        for path in sorted((folder / VOICES_FOLDER).glob("*")):
            if path.suffix in SUFFIXES and _NAME.fullmatch(path.stem):
                self._readers[path.stem] = partial(read_file, path)

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
        try:
            return replace(check_voice(OWN, read_preset(data), self._rules), language=language)
        except PresetError as error:
            message = f"`voice_file` is not a preset of this model: {error}."
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
        PresetError: a part is missing, or has a wrong type, shape or range; the message names it.
    """
    semantic, coarse, fine = (_check_part(arrays, part) for part in PARTS)
    codebooks = {"coarse_prompt": rules.coarse.codebooks, "fine_prompt": rules.fine.codebooks}
    shapes = {
        "semantic_prompt": semantic.ndim == 1 and semantic.size >= 2,
        "coarse_prompt": coarse.ndim == 2 and len(coarse) == codebooks["coarse_prompt"] and coarse.size > 0,
        "fine_prompt": fine.ndim == 2 and len(fine) == codebooks["fine_prompt"] and fine.size > 0,
    }
    ranges = {
        "semantic_prompt": (semantic, rules.semantic.vocab_size),
        "coarse_prompt": (coarse, rules.codebook_size),
        "fine_prompt": (fine, rules.codebook_size),
    }
    for part in PARTS:
        if not shapes[part]:
            raise PresetError(f"{part} has a wrong shape")
        if (length := max(arrays[part].shape)) > MAX_LENGTH:
            raise PresetError(f"{part} has {length} tokens; at most {MAX_LENGTH} are read")
        tokens, limit = ranges[part]
        if tokens.min() < 0 or tokens.max() >= limit:
            raise PresetError(f"{part} has a token that is not from 0 to {limit - 1}")
    parts = [torch.from_numpy(tokens.astype(np.int64)) for tokens in (semantic, coarse, fine)]
    return Voice(name, parts[0], parts[1], parts[2])


def _check_part(arrays: Arrays, part: str) -> NDArray[Any]:
    if part not in arrays:
        raise PresetError(f"{part} is missing")
    if arrays[part].dtype.kind not in "iu":
        raise PresetError(f"{part} must be an array of whole numbers")
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
