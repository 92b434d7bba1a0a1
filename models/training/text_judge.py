"""Which sentences are of the grammar's English: all that the text model may rightly say."""

from __future__ import annotations

import itertools
import re

from models.training import grammar
from models.training.grammar import ANIMALS, COLOURS, NUMBERS, SHAPES
from models.training.text_stories import STORY_SENTENCES
from models.training.text_unknown import UNKNOWN_ANSWERS
from models.training.text_wordings import BEYOND_ADD, BEYOND_COUNT, KIND_MEANINGS, TALK, meaning

DIGITS = tuple(map(str, range(21)))
_VALUES = {word: value for words in (NUMBERS, DIGITS) for value, word in enumerate(words)}
_SUM_DIGITS = re.compile(r"(\d+) \+ (\d+) is (\d+)\.")
_SUM_WORDS = re.compile(r"([A-Z][a-z]+) plus ([a-z]+) is ([a-z]+)\.")
_GREETING = re.compile(r"Hello, [A-Z][a-z]+!")
_COUNT = re.compile(r"\w+(, \w+)*\.")
_DEFINED = (*COLOURS, *SHAPES, *KIND_MEANINGS, *ANIMALS, *NUMBERS, *DIGITS)
_FIXED = frozenset(
    sentence
    for text in (*TALK, *UNKNOWN_ANSWERS, BEYOND_ADD, BEYOND_COUNT, *map(meaning, _DEFINED))
    for sentence in grammar.sentences(text)
)


def is_sentence(sentence: str) -> bool:
    """Whether this is one sentence of the grammar. It need not be true: `2 + 2 is 5.` is a sentence."""
    if sentence in _FIXED or _GREETING.fullmatch(sentence):
        return True
    if match := _SUM_DIGITS.fullmatch(sentence) or _SUM_WORDS.fullmatch(sentence):
        return all(word.lower() in _VALUES for word in match.groups())
    if _COUNT.fullmatch(sentence) and _is_count(sentence):
        return True
    return grammar.recognise(sentence, STORY_SENTENCES) is not None


def grammatical(text: str) -> tuple[int, int]:
    """How many of a text's sentences are of the grammar, and how many there are.

    A text without any counts as one bad sentence.
    """
    parts = grammar.sentences(text)
    return sum(map(is_sentence, parts)), max(1, len(parts))


def _is_count(sentence: str) -> bool:
    """Numbers in a row, up or down by one, all in digits or all in words."""
    items = sentence.rstrip(".").split(", ")
    if items[0] != items[0].capitalize():
        return False
    items[0] = items[0].lower()
    if not (all(item in DIGITS for item in items) or all(item in NUMBERS for item in items)):
        return False
    steps = {_VALUES[b] - _VALUES[a] for a, b in itertools.pairwise(items)}
    return steps in ({1}, {-1})
