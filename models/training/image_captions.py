"""Captions in several wordings for a scene, and what each of them leaves open.

An object without a size word is medium, one without a place is in the centre, two without places stand left
and right. A "partial" caption leaves out a colour, a shape or the background: the picture is then one of
many, and such captions are what a negative prompt like "blue background" or "red" is understood by.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from models.training.scenes import Scene, Thing

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "small", "little", "tiny"),
    "medium": ("", "", "", "medium"),
    "large": ("large", "large", "large", "big", "huge"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left", "to the left"),
    "right": ("on the right", "at the right", "to the right"),
    "top": ("at the top", "on top", "in the upper part"),
    "bottom": ("at the bottom", "below", "in the lower part"),
    "centre": ("in the centre", "in the middle", "in the center"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {"grey": ("grey", "grey", "gray")}
NOUNS = ("shape", "object", "thing")
OPENINGS = ("", "", "", "", "", "a picture of ", "an image of ", "a drawing of ", "draw ")


@dataclass(frozen=True)
class Caption:
    """A caption, its scene, and for each object which of its attributes the caption tells."""

    text: str
    scene: Scene
    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]
    background: bool


def full_caption(rng: random.Random, scene: Scene) -> Caption:
    """A caption that tells everything, in a wording drawn by lot."""
    told = (True,) * len(scene.things)
    return Caption(_word(rng, scene, told, told, background=True), scene, told, told, background=True)


def partial_caption(rng: random.Random, scene: Scene) -> Caption:
    """A caption of the scene's first object that leaves out at least one of colour, shape and background.

    Size and place are told or are the usual ones, so `Caption.scene` may differ from `scene` in them.
    """
    thing, background = scene.things[0], scene.background
    colour, shape, ground = rng.choice(((1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)))
    scene = Scene((thing,), background)
    if not shape and rng.random() < 0.5:
        # The bare word: "red", "a blue background". It says nothing of size and place.
        words = [_colour(rng, thing.colour)] if colour else []
        words += [f"{_a(_colour(rng, background))} background"] if ground else []
        text = " on ".join(words)
    else:
        text = _word(rng, scene, (bool(colour),), (bool(shape),), background=bool(ground))
    return Caption(text, scene, (bool(colour),), (bool(shape),), background=bool(ground))


def _word(
    rng: random.Random, scene: Scene, colours: tuple[bool, ...], shapes: tuple[bool, ...], *, background: bool
) -> str:
    names = [_name(rng, *told) for told in zip(scene.things, colours, shapes, strict=True)]
    spots = [rng.choice(PLACE_WORDS[thing.position]) for thing in scene.things]
    positions = tuple(thing.position for thing in scene.things)
    if positions == ("centre",) and rng.random() < 0.5:
        spots = [""]
    if positions == ("left", "right") and rng.random() < 0.3:
        spots = ["", ""]
    told = [f"{name} {spot}".strip() for name, spot in zip(names, spots, strict=True)]
    objects = rng.choice((" and ", " and ", " and ", ", ", " with ")).join(told)
    if positions in _RELATIONS and rng.random() < 0.15:
        objects = f"{names[0]} {rng.choice(_RELATIONS[positions])} {names[1]}"
    opening = rng.choice(OPENINGS)
    if not background:
        return opening + objects
    ground = _colour(rng, scene.background)
    form = rng.choice(("on", "on", "on", "on", "over", "comma", "first", "bare"))
    if form == "first":
        return f"{opening}{_a(ground)} background with {objects}"
    if form == "comma":
        return f"{opening}{objects}, {ground} background"
    if form == "bare":
        return f"{opening}{objects} on {ground}"
    return f"{opening}{objects} {form} {_a(ground)} background"


_RELATIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("left", "right"): ("left of", "to the left of"),
    ("right", "left"): ("right of", "to the right of"),
    ("top", "bottom"): ("above", "over"),
    ("bottom", "top"): ("below", "under"),
}


def _name(rng: random.Random, thing: Thing, colour: bool, shape: bool) -> str:
    words = [
        rng.choice(SIZE_WORDS[thing.size]),
        _colour(rng, thing.colour) if colour else "",
        thing.shape if shape else rng.choice(NOUNS),
    ]
    return _a(" ".join(word for word in words if word))


def _colour(rng: random.Random, colour: str) -> str:
    return rng.choice(COLOUR_WORDS.get(colour, (colour,)))


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
