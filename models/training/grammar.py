"""The closed world of the text model: its words, its sentences, and a recogniser for them.

A sentence is a template with slots, such as `{name} was {a} {colour} {animal} who lived {place}.`. The same
template is filled in to make training data and compiled to a pattern to recognise an answer; articles are
checked apart from the pattern.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from random import Random


def words(text: str) -> tuple[str, ...]:
    """The words of a text, for lists that would be unreadable with a pair of quotes around each."""
    return tuple(text.split())


COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "grey", "brown")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
ANIMALS = words(
    "ant bear bee bird bull camel cat cow crab deer dog dolphin donkey dragon duck eagle elephant fish "
    "fox frog giraffe goat goose hamster hare hedgehog hen horse kitten lion lizard monkey mouse octopus "
    "otter owl panda parrot penguin pig pony puppy rabbit raven seal sheep snail snake spider squirrel "
    "swan tiger toad turtle whale wolf worm zebra"
)
NAMES = words(
    "Anna Ben Bella Bruno Clara Daisy Ella Emil Felix Finn Hugo Iris Jack Kira Leo Lily Lola Luna Max Mia "
    "Milo Molly Nina Nora Olga Oscar Otto Pip Rosa Ruby Sam Sofia Tilda Toby Tom Zoe"
)
PLACES = tuple(
    f"{preposition} the {noun}"
    for preposition, nouns in {
        "in": "forest garden jungle desert meadow village city park cave mountains snow castle barn wood",
        "on": "farm hill island moon beach",
        "by": "lake river sea pond road",
        "at": "zoo harbour",
        "under": "bridge",
    }.items()
    for noun in nouns.split()
)
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
SMALL = NUMBERS[2:11]
SPOTS = ("under a tree", "behind a stone", "near the path", "in the tall grass", "beside a flower")
FOODS = ("apples", "berries", "nuts", "pears", "leaves")

LEXICON: Mapping[str, Sequence[str]] = {
    "colour": COLOURS,
    "colour2": COLOURS,
    "shape": SHAPES,
    "animal": ANIMALS,
    "animal2": ANIMALS,
    "place": PLACES,
    "n": SMALL,
    "spot": SPOTS,
    "food": FOODS,
}
_SLOT = re.compile(r"\{(\w+)\}")
_WRONG_ARTICLE = re.compile(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def held_out(*key: object) -> bool:
    """Whether this combination is kept from training, for scoring: one in ten, by a stable hash."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 10 == 0


def article(word: str) -> str:
    """`a` or `an`, as the closed world's spelling decides it."""
    return "an" if word[0] in "aeiou" else "a"


def made_up_name(rng: Random) -> str:
    """A name of two or three open syllables, so that a model must copy names rather than know them."""
    syllables = (rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3))))
    return ("".join(syllables) + rng.choice(("", "", "n", "x", "s", "l"))).capitalize()


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put `values` into a template's slots; `{a}` and `{A}` become the article of what follows."""

    def value(match: re.Match[str]) -> str:
        slot = match[1]
        if slot in ("a", "A"):
            following = _SLOT.search(template, match.end())
            word = article(values[following[1]]) if following else "a"
            return word.capitalize() if slot == "A" else word
        return values[slot] if slot in values else values[slot.lower()].capitalize()

    return _SLOT.sub(value, template)


@functools.cache
def pattern(template: str) -> re.Pattern[str]:
    """The pattern of all sentences that `fill` can make from a template, with a group for each slot."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        slot = match[1]
        if slot in ("a", "A"):
            return f"{slot}n?"
        if slot in seen:
            return f"(?P={slot})"
        seen.add(slot)
        if slot.startswith("name"):
            return f"(?P<{slot}>[A-Z][a-z]+)"
        words = [word.capitalize() if slot[0].isupper() else word for word in LEXICON[slot.lower()]]
        return f"(?P<{slot}>{'|'.join(words)})"

    escaped = re.sub(r"[.+?]", lambda match: "\\" + match[0], template)
    return re.compile(_SLOT.sub(group, escaped))


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its final mark."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def recognise(sentence: str, templates: Sequence[str]) -> dict[str, str] | None:
    """The slot values of the first template that makes this sentence, or None."""
    if _WRONG_ARTICLE.search(sentence):
        return None
    for template in templates:
        if match := pattern(template).fullmatch(sentence):
            found = match.groupdict()
            return {
                slot.lower(): value if slot[0].islower() else value.lower() for slot, value in found.items()
            }
    return None
