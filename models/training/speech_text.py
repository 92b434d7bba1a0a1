"""What the speech model can say: its closed vocabulary, and sentences to train on and to hold out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from string import ascii_lowercase


def _split(line: str) -> tuple[str, ...]:
    return tuple(line.split())


DIGITS = _split("zero one two three four five six seven eight nine")
TEENS = _split("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = _split("twenty thirty forty fifty sixty seventy eighty ninety")
LETTERS = tuple(ascii_lowercase)
COLOURS = _split("red orange yellow green blue purple white black grey brown")
SHAPES = _split("circle square triangle star cross ring")
SIZES = ("small", "medium", "large")
DAYS = _split("monday tuesday wednesday thursday friday saturday sunday")
ANIMALS = _split("fox cat dog bird bear horse owl rabbit fish mouse frog lion duck")
PLACES = _split("forest river garden house mountain lake sea city park field village")
NAMES = _split("ada vera otto hugo")
VERBS = _split("likes sees finds follows")
OTHERS = _split(
    "hundred plus minus and on in at to of with the background top bottom left right middle "
    "is was are am my your name this that it he she we you they friend there here "
    "what where who how hello hi goodbye good morning evening night thank please sorry welcome "
    "fine nice meet see soon tomorrow today yes no not do know can speak story about "
    "color colour shape number letter day word answer "
    "old young happy little big lives sleeps runs plays"
)
WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            *(DIGITS + TEENS + TENS + LETTERS + COLOURS + SHAPES + SIZES + DAYS),
            *(ANIMALS + PLACES + NAMES + VERBS + OTHERS),
        }
    )
)
"""The closed vocabulary. A single letter is said by its name; `a` beside other words is the article."""

PUNCTUATION = ",.?!"
MAX_WORDS = 12
"""Most words in one utterance of the training data; longer text has to be split."""

HELD_OUT_SHARE = 10
"""One in this many of the sentences of three words and more is kept from training."""

GREETINGS = (
    "hello",
    "hi",
    "hello, how are you",
    "hello, my name is {name}",
    "good morning",
    "good evening",
    "good night",
    "good morning, {name}",
    "goodbye, see you {when}",
    "hello {name}, nice to meet you",
    "nice to meet you",
    "thank you",
    "thank you, {name}",
    "i am fine, thank you",
    "welcome, {name}",
    "yes, please",
    "no, thank you",
    "sorry, i do not know",
    "how are you today",
    "who are you",
    "what is your name",
    "what can you do",
    "i can speak",
    "today is {day}",
    "tomorrow is {day}",
    "is today {day}",
    "see you on {day}",
    "{day} and {day}",
    "{day}, {day}, {day}",
)
PICTURES = (
    "{colour}",
    "{shape}",
    "{colour} {shape}",
    "a {colour} {shape}",
    "a {size} {colour} {shape}",
    "a {colour} {shape} on a {colour} background",
    "a {size} {colour} {shape} on a {colour} background",
    "a {colour} {shape} and a {colour} {shape}",
    "a {colour} {shape} {position}",
    "a {size} {shape} {position}",
    "the {shape} is {colour}",
    "the {shape} is {colour} and the {shape} is {colour}",
    "{colour}, {colour} and {colour}",
    "{number} {colour} and {number} {colour}",
    "what {property} is the {shape}",
)
STORIES = (
    "the {colour} {animal} is in the {place}",
    "the {colour} {animal} was in the {place}",
    "the {mood} {animal} lives in the {place}",
    "the {animal} {verb} a {colour} {animal}",
    "the {mood} {animal} {verb} the {animal}",
    "{name} the {animal} {does} in the {place}",
    "{name} is a {mood} {colour} {animal}",
    "a {mood} {animal} and a {colour} {animal}",
    "where is the {colour} {animal}",
    "this is the {place}, and that is my {animal}",
    "a story about a {colour} {animal}",
    "it was a good day",
    "they are at the {place}",
    "we see a {mood} {animal} there",
    "he {verb} the {place} and she {verb} the {place}",
    "the answer is {number}",
    "here is the {thing} {number}",
)
SLOTS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "when": ("soon", "tomorrow", "today"),
    "day": DAYS,
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "property": ("colour", "shape", "color"),
    "thing": ("number", "word", "letter"),
    "position": ("on the left", "on the right", "at the top", "at the bottom", "in the middle"),
    "animal": ANIMALS,
    "place": PLACES,
    "mood": ("old", "young", "happy", "little", "big", "good", "nice"),
    "verb": VERBS,
    "does": ("lives", "sleeps", "runs", "plays"),
}


def number_words(value: int) -> str:
    """`42` -> `forty two`, for 0 to 100.

    Raises:
        ValueError: `value` is outside 0 to 100.
    """
    if not 0 <= value <= 100:
        raise ValueError(f"{value} is not in 0..100")
    if value == 100:
        return "one hundred"
    if value < 10:
        return DIGITS[value]
    if value < 20:
        return TEENS[value - 10]
    tens, ones = divmod(value, 10)
    return TENS[tens - 2] + (f" {DIGITS[ones]}" if ones else "")


def _fill(template: str, rng: random.Random) -> str:
    """Each `{slot}` of the template drawn on its own."""
    out: list[str] = []
    rest = template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        slot, _, rest = rest.partition("}")
        word = number_words(rng.randint(0, 100)) if slot == "number" else rng.choice(SLOTS[slot])
        out += [before, word]
    return "".join(out) + rest


def draw_digits(rng: random.Random) -> str:
    """One to eight digit words, sometimes in comma-separated groups."""
    words = [rng.choice(DIGITS) for _ in range(rng.randint(1, 8))]
    return _with_commas(words, rng)


def draw_numbers(rng: random.Random) -> str:
    """One to four numbers up to a hundred, or a sum."""
    if rng.random() < 0.3:
        sign = rng.choice(("plus", "minus"))
        parts = [number_words(rng.randint(0, 50)) for _ in range(3)]
        return f"{parts[0]} {sign} {parts[1]} is {parts[2]}"
    return _with_commas([number_words(rng.randint(0, 100)) for _ in range(rng.randint(1, 4))], rng)


def draw_letters(rng: random.Random) -> str:
    """One to eight letters, as a spelled word has them."""
    letters = [rng.choice(LETTERS) for _ in range(rng.randint(1, 8))]
    if rng.random() < 0.15:
        letters = [rng.choice(("the", *COLOURS)), *letters]
    return " ".join(letters)


def draw_words(rng: random.Random) -> str:
    """One to six words of the whole vocabulary in no order, so that none leans on its neighbours."""
    return _with_commas([rng.choice(WORDS) for _ in range(rng.randint(1, 6))], rng)


def _with_commas(words: list[str], rng: random.Random) -> str:
    rate = rng.choice((0.0, 0.0, 0.3))
    return "".join(
        word + ("" if i == len(words) - 1 else ", " if rng.random() < rate else " ")
        for i, word in enumerate(words)
    )


def _from(templates: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda rng: _fill(rng.choice(templates), rng)


KINDS: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    "digits": (0.20, draw_digits),
    "numbers": (0.13, draw_numbers),
    "letters": (0.12, draw_letters),
    "pictures": (0.14, _from(PICTURES)),
    "stories": (0.14, _from(STORIES)),
    "greetings": (0.11, _from(GREETINGS)),
    "words": (0.16, draw_words),
}
"""The kinds of sentence: share of the training data, and how one is drawn."""


def words_of(text: str) -> list[str]:
    """The words of a sentence without its punctuation."""
    return text.translate(str.maketrans(dict.fromkeys(PUNCTUATION, " "))).split()


def is_held_out(text: str) -> bool:
    """Whether the sentence is kept from training: by a hash of its words, so punctuation makes no other one.

    Sentences of one and two words are never held out: a word has to be heard somewhere.
    """
    words = words_of(text)
    if len(words) < 3:
        return False
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def draw_sentence(rng: random.Random, *, held_out: bool, kind: str | None = None) -> str:
    """Draw one sentence of at most `MAX_WORDS` words.

    Args:
        rng: The only source of chance.
        held_out: Whether to draw from the held-out sentences or from those of training.
        kind: One of `KINDS`; None draws the kind by its share.
    """
    while True:
        chosen = kind or rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        text = KINDS[chosen][1](rng)
        if rng.random() < 0.4:
            text += rng.choice(".?!") if chosen not in ("digits", "letters") else "."
        if len(words_of(text)) <= MAX_WORDS and is_held_out(text) == held_out:
            return text


def spoken_form(text: str) -> str:
    """The text as the synthesizer has to be given it.

    Only `a` needs help: beside another single letter, or alone, it is the letter's name, else the article.
    """
    tokens = text.split()
    bare = [token.strip(PUNCTUATION) for token in tokens]
    for i, word in enumerate(bare):
        beside = [*bare[max(0, i - 1) : i], *bare[i + 1 : i + 2]]
        if word == "a" and (not beside or any(len(other) == 1 for other in beside)):
            tokens[i] = tokens[i].replace("a", "[['eI]]")
    return " ".join(tokens)
