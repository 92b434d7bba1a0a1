"""Text for a model that knows only so many words: what it does not know is spelled out, letter by letter."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import cast

VOCABULARY_FILE = "vocabulary.json"
"""In a model's folder: `{"words": [...], "max_words": n}`; a folder without it takes any text."""


def _split(line: str) -> list[str]:
    return line.split()


_ONES = _split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _split("twenty thirty forty fifty sixty seventy eighty ninety")
_PIECES = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[,.?!;:]")


def load_vocabulary(folder: Path) -> frozenset[str] | None:
    """The words a model folder says it knows; None if it makes no such claim.

    Raises:
        ValueError: the folder's vocabulary file is not a JSON object with a list of words.
    """
    path = folder / VOCABULARY_FILE
    if not path.exists():
        return None
    content: object = json.loads(path.read_text(encoding="utf-8"))
    words = cast("dict[str, object]", content).get("words") if isinstance(content, dict) else None
    if not isinstance(words, list):
        raise ValueError(f"{path} has no list of words")
    return frozenset(str(word) for word in cast("list[object]", words))


def spell_unknown(text: str, vocabulary: Collection[str]) -> str:
    """Rewrite `text` in words of `vocabulary`.

    Known words stay, in lower case. Numbers to 100 become words, longer ones are read digit by digit, and
    every other word is spelled: `Hi Bob, 42` -> `hi b o b, forty two`. Punctuation that makes a pause stays;
    what has no letter, digit or pause in it is dropped.
    """
    bare = unicodedata.normalize("NFKD", text.casefold())  # an accent becomes a mark of its own
    plain = "".join(mark for mark in bare if not unicodedata.combining(mark))
    out: list[str] = []
    for piece in _PIECES.findall(plain):
        if piece in ",.?!;:":
            # Punctuation hangs on the word before it; at the start there is nothing to pause after.
            if out and out[-1][-1].isalnum():
                out[-1] += piece
            continue
        out += _read_number(piece) if piece.isdecimal() else _read_word(piece, vocabulary)
    return " ".join(out)


def _read_word(word: str, vocabulary: Collection[str]) -> list[str]:
    if word in vocabulary:
        return [word]
    return [letter for letter in word if letter in vocabulary]


def _read_number(digits: str) -> list[str]:
    # By their count first: Python makes no number of thousands of digits.
    if len(digits) > 3 or (len(digits) > 1 and digits[0] == "0") or int(digits) > 100:
        return [_ONES[int(digit)] for digit in digits]
    value = int(digits)
    if value == 100:
        return ["one", "hundred"]
    if value < 20:
        return [_ONES[value]]
    tens, ones = divmod(value, 10)
    return [_TENS[tens - 2], *([_ONES[ones]] if ones else [])]
