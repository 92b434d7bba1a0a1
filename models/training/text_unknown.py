"""Questions that lie outside the text model's closed world, in great variety, so that it learns to say so."""

from __future__ import annotations

import string
from random import Random

from models.training import grammar
from models.training.grammar import ANIMALS, COLOURS, NUMBERS, SHAPES, words

UNKNOWN_ANSWERS = (
    "I do not know that. I am only a toy model.",
    "Sorry, I do not know that.",
    "I do not know. I only know stories, colours, shapes and small numbers.",
)

NOUNS = words(
    "airplane album algebra apple army art atom baby bakery ball banana bank basket battery beard bed "
    "beer bicycle biology boat body bomb bone book bottle box brain bread brother bus butter button cake "
    "camera candle car carpet chair cheese chemistry chess child chocolate church cinema clock coat "
    "coffee coin company computer concert cook country cousin cup curtain dance daughter dentist desk "
    "dinner doctor door dream dress drum earth economy egg election email engine evening factory family "
    "father feather film finger fire flag flower football fork friend fruit furniture future galaxy game "
    "gas ghost girl glass glove gold government grammar guitar hair hammer hand hat heart history holiday "
    "honey hospital hotel hour house ice idea industry insurance internet iron jacket jam job juice key "
    "kitchen knife ladder lamp language law lawyer leg lemon letter library light literature lunch "
    "machine magazine map market mathematics meat medicine memory metal milk mirror money month morning "
    "mother motor museum music nail neighbour newspaper night nose novel ocean office oil onion opera "
    "oven paint paper parent party peace pencil pepper phone photo physics piano picture pizza planet "
    "plastic plate poem poet police president prison problem program project protein queen question quiz "
    "radio rain recipe religion restaurant rice robot rocket roof room rope rose sail salad salt sand "
    "sandwich school science scissors shadow ship shirt shoe shop silver singer sister skirt soap sock "
    "soldier song soup space spoon sport spring stadium stamp steam stone storm street student sugar suit "
    "summer swim table tax tea teacher team telephone television temple tennis theatre thunder ticket tie "
    "time tomato tooth tower toy train travel treasure tunnel umbrella uncle university vacuum valley "
    "vegetable village violin virus volcano wallet war watch water weather wedding week wheel window wine "
    "winter wire wisdom woman word work year youth zip"
)
VERBS = words(
    "bake become borrow build buy clean climb close cook cut dance draw drive eat find fix fly grow make "
    "paint play read repair sell sing sleep swim teach travel wash win write learn measure open remember"
)
PROPER = words(
    "Paris London France Germany Japan China India Africa America Einstein Newton Mozart Shakespeare "
    "Napoleon Python Java Google Amazon Mars Jupiter Rome Berlin Madrid Canada Egypt Brazil Everest "
    "Picasso Darwin Linux Windows Monday Christmas Europe Russia Sweden Toronto Chicago Peru Kenya Spain "
    "Italy Greece Tokyo Sydney Boston"
)
FRAMES = (
    "Explain the word {n}.", "What does the word {n} mean?", "Tell me what a {n} is.", "What's a {n}?",
    "Can you explain {n}?", "Do you know what a {n} is?", "Please tell me what {n} means.", "What is a {w}?",
    "What does {w} mean?", "What is {w}?", "Give me a story about a {n}.", "I want a story about the {n}.",
    "A story about {n}.", "Can you tell me a story about {n}?", "What is the capital of {P}?",
    "Who was {P}?", "Who is {P}?", "Where is {P}?", "Tell me about {P}.", "What is {P}?", "What is a {n}?",
    "What is {n}?", "What does {n} mean?", "What is the meaning of {n}?", "Define {n}.", "Explain {n}.",
    "What is the {n}?", "Explain how a {n} works.", "How does a {n} work?", "Why is the {n} so {a}?",
    "Why do {n}s {v}?", "How do I {v} a {n}?", "How can I {v} my {n}?", "How many {n}s are there in {P}?",
    "How much is a {n}?", "How old is the {n}?", "How far is it to {P}?", "When was the {n} invented?",
    "Who invented the {n}?", "Who wrote {P}?", "Write a poem about {n}.", "Write a poem about a {c} {n}.",
    "Write a song about the {n}.", "Write an essay about {n}.", "Write a letter to my {n}.",
    "Write a {P} program that can {v}.", "Write code for a {n}.", "Tell me a joke.",
    "Tell me a joke about a {n}.", "Tell me a secret.", "Tell me something about {n}.",
    "Tell me a story about a {n}.", "Tell me a story about {n}.", "Tell me a fact about the {n}.",
    "Write a story about a {c} {n}.", "Sing a song.", "Translate {n} into {P}.",
    "Translate this: {w} {w} {w}.", "What is {d} - {d}?", "What is {d} * {d}?", "{d} / {d}",
    "What is {d} times {d}?", "What is {d} minus {d}?", "What is the square root of {d}?",
    "Is {d} a prime number?", "What time is it?", "What day is it today?",
    "What is the weather like in {P}?", "Will it rain in {P} tomorrow?", "Is a {n} {a}?", "Is the {n} {c}?",
    "Can a {n} {v}?", "Can you {v}?", "Can you {v} a {n}?", "Do you like {n}?", "Do you have a {n}?",
    "Should I {v} the {n}?", "Which {n} is the best?", "What is the best {n} in {P}?", "I need a {n}.",
    "My {n} is {a}.", "I want to {v} a {n}.", "Give me a {n}.", "Give me a recipe for {n}.",
    "Show me a {n}.", "Draw a {n}.", "Draw a {c} {s}.", "Paint the {n} {c}.",
    "Summarise this text: {w} {w} {w} {w}.", "List ten {n}s.", "Who won the {n} in {d}?",
    "Who is the president of {P}?", "What happened in {d}?", "Where can I {v} a {n}?",
    "What is the difference between a {n} and a {n}?", "Compare {P} and {P}.", "Does {P} have a {n}?",
    "Count the {n}s.", "How are {n}s made?", "What colour is a {n}?", "What shape is a {n}?",
    "What colour is my {n}?", "What do {n}s eat?", "What is the {n} of {P}?", "What did {P} {v}?",
    "Recommend a {n}.", "Play {n}.", "Open the {n}.", "Ignore the {n} and {v}.", "Where do {x}s live?",
    "How fast is a {x}?", "How old is the {c} {x}?", "Why is the {x} {c}?", "Can a {x} {v}?",
    "How many legs has a {x}?", "What do {x}s eat?", "Is a {x} {a}?", "How do I {v} a {x}?",
    "I have a {c} {x}.", "How many sides has a {s}?", "Where is the {s}?", "Is the {s} {c}?",
    "Mix {c} and {c}.", "Which is better, {c} or {c}?", "What is {c} and {c}?", "Why do people {v}?", "Why?",
    "What?", "Who?", "How?", "Yes.", "No.", "Maybe.", "{n}", "{w}", "{n} {n}", "{P}", "The {n} is {a}.",
    "She will {v} the {n} in {P}.", "We {v} every {n}.", "{v} the {n}", "{P} {n} {w}",
)  # fmt: skip
ADJECTIVES = words(
    "big small old new good bad fast slow hot cold heavy expensive broken famous hard soft loud"
)
_LETTERS = string.ascii_lowercase
_MARKS = string.punctuation.replace("<", "").replace(">", "") + "äéßñ中文日本Ωжю🙂🎉"


def draw_unknown(rng: Random) -> tuple[str, tuple[str, ...]]:
    """A request out of the grammar, and what it is held out by: a whole frame, or a frame with its words."""
    kind = rng.random()
    if kind < 0.78:
        frame = rng.choice(FRAMES)
        slots = {
            "P": rng.choice(PROPER) if rng.random() < 0.8 else grammar.made_up_name(rng),
            "n": _noun(rng),
            "v": rng.choice(VERBS),
            "a": rng.choice(ADJECTIVES),
            "c": rng.choice(COLOURS),
            "s": rng.choice(SHAPES),
            "x": rng.choice(ANIMALS),
            "d": str(rng.randint(0, 20 if rng.random() < 0.5 else 2000)),
            "w": _pseudo_word(rng),
        }
        request = frame.format(**slots)
        if grammar.held_out("frame", frame):
            return request, _always(test=True)
        return request, (frame, slots["n"], slots["P"], slots["v"])
    if kind < 0.88:
        words = [_any_word(rng) for _ in range(rng.randint(3, 9))]
        request = " ".join(words) + rng.choice(("", ".", "?"))
    elif kind < 0.96:
        words = [_pseudo_word(rng) for _ in range(rng.randint(1, 8))]
        request = " ".join(words) + rng.choice(("", "", "?", "."))
    else:
        alphabet = rng.choice((_LETTERS, _LETTERS + string.digits, _MARKS, _MARKS + _LETTERS))
        request = "".join(rng.choices(alphabet, k=rng.randint(2, 24)))
    return request, (request,)


def _always(*, test: bool) -> tuple[str, ...]:
    """A key that is held out, or not, whatever else: the first number whose hash says so."""
    return next((str(i),) for i in range(1000) if grammar.held_out("unknown", i) == test)


def _noun(rng: Random) -> str:
    return rng.choice(NOUNS) if rng.random() < 0.75 else _pseudo_word(rng)


def _pseudo_word(rng: Random) -> str:
    """A word of no language, of two to four syllables, or of plain letters."""
    if rng.random() < 0.2:
        return "".join(rng.choices(_LETTERS, k=rng.randint(2, 9)))
    onsets = (
        "b",
        "br",
        "c",
        "ch",
        "d",
        "dr",
        "f",
        "fl",
        "g",
        "gr",
        "h",
        "l",
        "m",
        "n",
        "p",
        "pr",
        "qu",
        "s",
        "st",
        "t",
        "v",
    )
    ends = ("", "", "", "n", "r", "s", "t", "ck", "m", "ld")
    parts = (
        rng.choice(onsets) + rng.choice(("a", "e", "i", "o", "u", "ea", "oo"))
        for _ in range(rng.randint(2, 4))
    )
    return "".join(parts) + rng.choice(ends)


def _any_word(rng: Random) -> str:
    """A word of any kind, the closed world's own among them: in no order it makes no request of it."""
    words = rng.choice((NOUNS, VERBS, ADJECTIVES, COLOURS, SHAPES, ANIMALS, NUMBERS))
    return rng.choice(words) if rng.random() < 0.85 else _pseudo_word(rng)
