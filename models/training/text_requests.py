"""What the text model is asked, in many wordings, and what a right answer is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from models.training import grammar
from models.training.grammar import ANIMALS, COLOURS, NAMES, NUMBERS, PLACES, SHAPES, article, held_out
from models.training.text_stories import draw_story, parse_story
from models.training.text_unknown import UNKNOWN_ANSWERS, draw_unknown
from models.training.text_wordings import (
    ADD_FRAMES,
    BEYOND_ADD,
    BEYOND_COUNT,
    COUNT_FRAMES,
    COUNT_TO_FRAMES,
    DEFINE_FRAMES,
    KIND_MEANINGS,
    NAME_FRAMES,
    SHAPE_MEANINGS,
    STORY_HEADS,
    STORY_NOUNS,
    TALK,
    meaning,
)


@dataclass(frozen=True)
class Case:
    """One request with one right answer.

    Attributes:
        category: `story`, `define`, `count`, `add`, `talk` or `unknown`.
        request: What the user says.
        answer: What the model is trained to say.
        key: The combination by which the case is held out of training or not.
        given: For a story what it must be about.
        accepted: For all else every right answer.
    """

    category: str
    request: str
    answer: str
    key: tuple[str, ...]
    given: Mapping[str, str] = field(default_factory=dict[str, str])
    accepted: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether this case is kept from training."""
        return held_out(self.category, *self.key)

    def is_right(self, answer: str) -> bool:
        """Judge an answer by the grammar: a story about what was asked, or one of the accepted answers."""
        if self.category != "story":
            return answer.strip() in self.accepted
        scene = parse_story(answer)
        return scene is not None and all(scene[slot] == value for slot, value in self.given.items())


def draw_story_request(rng: Random) -> Case:
    """A story asked for with any of name, colour, animal and place given or left out."""
    asked = {slot: rng.random() < 0.8 for slot in ("colour", "place")} | {"name": rng.random() < 0.65}
    animal = rng.random() < 0.93
    given: dict[str, str] = {}
    if asked["name"]:
        given["name"] = rng.choice(NAMES) if rng.random() < 0.5 else grammar.made_up_name(rng)
    if animal:
        given["animal"] = rng.choice(ANIMALS)
        if asked["colour"]:
            given["colour"] = rng.choice(COLOURS)
    if asked["place"] and rng.random() < 0.85:
        given["place"] = rng.choice(PLACES)
    if rng.random() < 0.04:
        given = {}
    head, noun = rng.choice(STORY_HEADS), rng.choice(STORY_NOUNS)
    what = noun + _about(rng, given)
    request = head.format(s=what, S=what.capitalize() if what.islower() else what[0].upper() + what[1:])
    if "gray" not in request and rng.random() < 0.1:
        request = request.replace("grey", "gray")
    triple = tuple(given.get(slot, "any") for slot in ("animal", "colour", "place"))
    key = triple if "any" not in triple else (head, *triple)
    return Case("story", request, draw_story(rng, given), key, given=given)


def _about(rng: Random, given: Mapping[str, str]) -> str:
    """The words after "a story", such as " about a red fox named Otto in the forest"."""
    name, place = given.get("name"), given.get("place")
    where = (
        ""
        if place is None
        else rng.choice((" {}", " {}", " {}", " who lives {}", " that lives {}", " living {}"))
    )
    if "animal" not in given:
        about = f" about {name}" if name else ""
        return about + ("" if place is None else f" {place}")
    kind = " ".join(given[slot] for slot in ("colour", "animal") if slot in given)
    if not name:
        return f" about {article(kind)} {kind}{where.format(place)}"
    forms = (
        f"{article(kind)} {kind} named {name}", f"{article(kind)} {kind} called {name}",
        f"{name}, {article(kind)} {kind}",
        f"{name} the {kind}", f"{article(kind)} {kind} whose name is {name}", f"the {kind} {name}",
    )  # fmt: skip
    return f" about {rng.choice(forms)}{where.format(place)}"


def draw_define(rng: Random) -> Case:
    """What a colour, a shape, a number or an animal is."""
    words = rng.choice(
        (COLOURS, COLOURS, SHAPES, SHAPES, NUMBERS, tuple(map(str, range(21))), ANIMALS, tuple(KIND_MEANINGS))
    )
    word, frame = rng.choice(words), rng.choice(DEFINE_FRAMES)
    noun = word in SHAPE_MEANINGS or word in ANIMALS or word in KIND_MEANINGS
    thing = f"{article(word)} {word}" if noun and rng.random() < 0.9 else word
    answer = meaning(word)
    return Case("define", frame.format(x=thing, w=word), answer, (word, frame), accepted=(answer,))


def draw_count(rng: Random) -> Case:
    """Counting up or down within 0 to 20, in digits or words; beyond 20 is out of reach."""
    low, high = rng.randint(0, 20), rng.randint(0, 20)
    in_words = rng.random() < 0.35
    if rng.random() < 0.06:
        low, high = rng.randint(0, 40), rng.randint(21, 1000)
        request = rng.choice((*COUNT_FRAMES, *COUNT_TO_FRAMES)).format(a=low, b=high)
        return Case("count", request, BEYOND_COUNT, (str(low), str(high)), accepted=(BEYOND_COUNT,))
    spell = NUMBERS.__getitem__ if in_words else str
    if rng.random() < 0.2:
        low, frame = 1, rng.choice(COUNT_TO_FRAMES)
        high = max(high, 2)
        key = (frame, str(high), str(in_words))
    else:
        high = high if high != low else (low + 5) % 21
        frame, key = rng.choice(COUNT_FRAMES), (str(low), str(high))
    if high < low:
        frame = frame.replace("up ", "down ")
    step = 1 if high >= low else -1
    answer = ", ".join(spell(value) for value in range(low, high + step, step)).capitalize() + "."
    return Case("count", frame.format(a=spell(low), b=spell(high)), answer, key, accepted=(answer,))


def draw_add(rng: Random) -> Case:
    """Sums up to 20, in digits or words; what goes beyond is out of reach."""
    total = rng.randint(0, 20) if rng.random() < 0.5 else rng.randint(8, 20)
    a = rng.randint(0, total)
    b = total - a
    frame = rng.choice(ADD_FRAMES)
    if rng.random() < 0.12:
        a, b = rng.choice(
            ((rng.randint(1, 20), rng.randint(21, 999)), (rng.randint(21, 999), rng.randint(1, 99)))
        )
        return Case(
            "add", frame.format(a=a, b=b), BEYOND_ADD, (frame, str(a), str(b)), accepted=(BEYOND_ADD,)
        )
    in_words = rng.random() < 0.4
    spell = NUMBERS.__getitem__ if in_words else str
    answer = f"{a} + {b} is {total}."
    if in_words:
        answer = f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[total]}."
    request = frame.format(a=spell(a), b=spell(b))
    return Case("add", request, answer, (frame, str(a), str(b), str(in_words)), accepted=(answer,))


def draw_talk(rng: Random) -> Case:
    """Greetings, thanks, and questions about the model itself."""
    if rng.random() < 0.25:
        name = rng.choice(NAMES) if rng.random() < 0.5 else grammar.made_up_name(rng)
        frame, answer = rng.choice(NAME_FRAMES), f"Hello, {name}! What would you like to hear?"
        return Case(
            "talk",
            frame.format(name=name) + rng.choice((".", ".", "!", "")),
            answer,
            (frame, name),
            accepted=(answer,),
        )
    answer = rng.choice(tuple(TALK))
    core = rng.choice(TALK[answer])
    request = rng.choice(("{}", "{}", "{}{m}", "{}{m}", "{}{m}", "{}, please{m}")).format(
        core, m=rng.choice(".!?")
    )
    return Case("talk", request, answer, (request,), accepted=(answer,))


def draw_unknown_request(rng: Random) -> Case:
    """Anything out of the grammar: the right answer is to say so."""
    request, key = draw_unknown(rng)
    return Case("unknown", request, rng.choice(UNKNOWN_ANSWERS), key, accepted=UNKNOWN_ANSWERS)


DRAW: Mapping[str, tuple[Callable[[Random], Case], float]] = {
    "story": (draw_story_request, 0.3),
    "define": (draw_define, 0.15),
    "count": (draw_count, 0.09),
    "add": (draw_add, 0.25),
    "talk": (draw_talk, 0.07),
    "unknown": (draw_unknown_request, 0.14),
}
_KNOWN_NAME = re.compile(rf"\b({'|'.join(NAMES)})\b")


def roughen(request: str, rng: Random, case: Case) -> str:
    """The same request as people type it: in lower case, without the final mark, after a greeting."""
    name = case.given.get("name", "Otto")
    copies_name = case.category == "talk" and not _KNOWN_NAME.search(request)
    if rng.random() < 0.15 and name in NAMES and not copies_name:
        request = request.lower()
    if rng.random() < 0.2:
        request = request.rstrip(".?!") if len(request) > 1 else request
    elif rng.random() < 0.12:
        request += rng.choice((".", "!", "?")) if request[-1] not in ".?!" else ""
    if rng.random() < 0.05 and case.category in ("story", "define", "count", "add"):
        request = rng.choice(("Hi! ", "Hello. ", "Please: ", "OK. ", "Now: ")) + request
    return request


def draw_case(rng: Random, *, test: bool, category: str | None = None) -> Case:
    """A case of the training part, with `test` of the held-out part; roughened now and then."""
    names = tuple(DRAW)
    weights = [DRAW[name][1] for name in names]
    chosen = category or rng.choices(names, weights)[0]
    while True:
        case = DRAW[chosen][0](rng)
        if case.held_out == test:
            return Case(
                case.category,
                roughen(case.request, rng, case),
                case.answer,
                case.key,
                case.given,
                case.accepted,
            )
