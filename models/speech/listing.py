"""The voices of the models of a catalog, from their folders alone: no weights are read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from models.catalog import Entry
from models.sources import local_folder


def list_voices(entries: Mapping[str, Entry]) -> list[dict[str, str]]:
    """The `name`, `model` and `language` of each voice, a model's default first; none of a model not here."""
    voices: list[dict[str, str]] = []
    for model, entry in entries.items():
        folder = local_folder(entry.source, entry)
        if folder is None:
            continue
        languages: dict[str, str] = importlib.import_module(f"models.{entry.family}").voices_in(
            folder, entry.language
        )
        voices += [
            {"name": name, "model": model, "language": language} for name, language in languages.items()
        ]
    return voices
