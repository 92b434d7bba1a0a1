"""Which language a text is in: as the caller says, as the voice says, or as it looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

_NAMED = re.compile(r"(?:.*/)?([a-z]{2})_speaker_\d+")


def voice_language(name: str, otherwise: str) -> str:
    """The language (ISO 639-1) that a voice's name tells in the hub's way, `v2/de_speaker_3`."""
    found = _NAMED.fullmatch(name)
    return found[1] if found else otherwise


def guess_language(text: str, among: Sequence[str]) -> str:
    """The likeliest language of `among`, which has at least one; a very short text tells little."""
    return among[0] if len(among) == 1 else _identifier(tuple(among)).classify(text)[0]


@cache
def _identifier(among: tuple[str, ...]) -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(sorted(set(among) & set(identifier.labels)))
    return identifier
