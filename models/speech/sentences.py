"""A text as sentences, each with the pause that follows it when it is read out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import sentencex

SENTENCE_PAUSE_S = 0.3
PARAGRAPH_PAUSE_S = 0.6
_segment: Any = cast(Any, sentencex).segment
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    """In one line."""
    pause_s: float
    """Silence before the next one."""


def split_sentences(text: str, language: str) -> list[Sentence]:
    """Sentences by the rules of a language (ISO 639-1); an abbreviation's point ends none."""
    sentences: list[Sentence] = []
    for paragraph in _PARAGRAPHS.split(text):
        lines = [" ".join(each.split()) for each in _segment(language, paragraph)]
        spoken = [line for line in lines if any(mark.isalnum() for mark in line)]
        for number, line in enumerate(spoken, 1):
            last = number == len(spoken)
            sentences.append(Sentence(line, PARAGRAPH_PAUSE_S if last else SENTENCE_PAUSE_S))
    return sentences
