"""The closed grammars that the judge listens with: one for each kind of sentence in `speech_text`."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from models.training.judge_speech import canonical
from models.training.speech_text import (
    DIGITS,
    GREETINGS,
    KINDS,
    LETTERS,
    PICTURES,
    SLOTS,
    STORIES,
    TEENS,
    TENS,
    WORDS,
    draw_sentence,
    is_held_out,
    words_of,
)

GROUP = 24
"""Words in one group of the vocabulary: a recognizer's loop over all 195 takes a minute for a sentence."""


@dataclass(frozen=True)
class Case:
    """A sentence to say and what to listen with.

    Attributes:
        kind: The kind of sentence, a key of `KINDS`.
        text: What to say.
        rules: The JSGF rules of the grammar it is from.
    """

    kind: str
    text: str
    rules: str


def any_of(words: Iterable[str]) -> str:
    """A JSGF alternative of words in their canonical form."""
    return "( " + " | ".join(sorted({canonical(word) for word in words})) + " )"


def loop_over(words: Iterable[str]) -> str:
    """The rules of a grammar of any number of the words in any order."""
    return f"public <said> = {any_of(words)}+;"


_NUMBER = f"<number> = {any_of(DIGITS + TEENS)} | {any_of(TENS)} [ {any_of(DIGITS)} ] | one hundred;"


def template_rules(templates: Iterable[str]) -> str:
    """The rules of a grammar of exactly the templates' sentences."""
    slots = "\n".join(f"<{name}> = {any_of(' '.join(SLOTS[name]).split())};" for name in _ONE_WORD)
    positions = f"<position> = {' | '.join(SLOTS['position'])};"
    lines = [re.sub(r"\{(\w+)\}", r" <\1> ", template.replace(",", " ")) for template in templates]
    plain = [" ".join(canonical(word) for word in line.split()) for line in lines]
    return "\n".join([_NUMBER, slots, positions, f"public <said> = {' | '.join(plain)};"])


_ONE_WORD = [name for name in SLOTS if name != "position"]

RULES = {
    "digits": loop_over(DIGITS),
    "letters": loop_over((*LETTERS, "the")),
    "numbers": f"{_NUMBER}\npublic <said> = <number>+ | <number> ( plus | minus ) <number> is <number>;",
    "pictures": template_rules(PICTURES),
    "stories": template_rules(STORIES),
    "greetings": template_rules(GREETINGS),
}


def word_groups() -> list[tuple[str, ...]]:
    """The whole vocabulary in groups of `GROUP` words that have nothing to do with each other."""
    shuffled = list(WORDS)
    random.Random(1).shuffle(shuffled)
    return [tuple(shuffled[i : i + GROUP]) for i in range(0, len(shuffled), GROUP)]


def draw_case(kind: str, rng: random.Random) -> Case:
    """One held-out sentence of a kind, three words or longer.

    Sentences of `words` keep to one group of the vocabulary, which the judge's grammar then is.
    """
    if kind == "words":
        group = rng.choice(word_groups())
        while True:
            text = " ".join(rng.choice(group) for _ in range(rng.randint(3, 6)))
            if is_held_out(text):
                return Case(kind, text, loop_over(group))
    while True:
        text = draw_sentence(rng, held_out=True, kind=kind)
        if kind != "letters" or words_of(text)[0] in (*LETTERS, "the"):
            return Case(kind, text, RULES[kind])


def draw_cases(kinds: Iterable[str], per_kind: int, seed: int) -> list[Case]:
    """`per_kind` cases of each kind; the same for the same seed."""
    rng = random.Random(seed)
    return [draw_case(kind, rng) for kind in kinds for _ in range(per_kind)]


ALL_KINDS = tuple(KINDS)
