"""The little world of the picture model: what can stand where, and how it is drawn.

A scene is one or two flat objects on a flat background. Lengths are shares of the picture's side, so that the
same scene can be drawn at any size. Drawing goes by signed distances: a pixel's coverage is its centre's
distance to the edge, clamped to one pixel, which antialiases every shape in the same way.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]
Field = NDArray[np.floating[Any]]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 40),
    "yellow": (240, 210, 50),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "purple": (150, 60, 190),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "grey": (135, 135, 135),
    "brown": (125, 75, 35),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.11, 0.13),
    "medium": (0.20, 0.225),
    "large": (0.29, 0.32),
}
POSITIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "centre": (0, 0),
}
STYLES = ("plain", "outline", "stripes", "night", "pastel")

SIDE = 128
"""Side in pixels of the pictures that the model is trained on."""
MARGIN = (0.024, 0.04)
"""Gap between an object and the side of the picture that it stands at."""
STRIPE_PERIOD = 8 / SIDE
OUTLINE_WIDTH = 4 / SIDE
NIGHT = 0.4
"""The night style multiplies all light by this."""
PASTEL = 0.5
"""The pastel style leaves this share of every colour's distance to white."""
HELD_OUT_SHARE = 10
"""One combination of (colour, shape, background) in this many is never trained on."""


@dataclass(frozen=True)
class Thing:
    """One object: what a caption says of it, and where exactly it is drawn (shares of the side)."""

    colour: str
    shape: str
    size: str
    position: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background; the first is the one that captions name first."""

    things: tuple[Thing, ...]
    background: str


def is_held_out(colour: str, shape: str, background: str) -> bool:
    """Whether this combination belongs to the test: a stable hash, the same on every machine."""
    digest = hashlib.sha256(f"{colour}/{shape}/{background}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def pair_fits(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether two objects, each (size, position), can stand side by side without touching."""
    (size_a, position_a), (size_b, position_b) = first, second
    if position_a == position_b:
        return False
    if size_a == size_b == "small":
        return True
    (ax, ay), (bx, by) = POSITIONS[position_a], POSITIONS[position_b]
    opposite = ax == -bx and ay == -by
    return opposite and (size_a == size_b == "medium" or "small" in (size_a, size_b))


def sample_scene(rng: random.Random, *, things: int | None = None, held_out: bool = False) -> Scene:
    """Draw a scene by lot.

    Args:
        rng: The source of chance.
        things: One or two objects; None draws the number too.
        held_out: True gives only combinations kept from training for every object, False only the others.
    """
    count = things or rng.choice((1, 2, 2))
    while True:
        background = rng.choice(list(COLOURS))
        kinds = [(rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(count)]
        if any(c == background or is_held_out(c, s, background) != held_out for c, s in kinds):
            continue
        places = [(rng.choice(list(SIZES)), rng.choice(list(POSITIONS))) for _ in range(count)]
        if count == 2 and not pair_fits(places[0], places[1]):
            continue
        placed = zip(kinds, places, strict=True)
        return Scene(tuple(_place(rng, *kind, *place) for kind, place in placed), background)


def _place(rng: random.Random, colour: str, shape: str, size: str, position: str) -> Thing:
    radius = rng.uniform(*SIZES[size])
    dx, dy = POSITIONS[position]
    jitter = 0.012
    reach = 0.5 - radius - rng.uniform(*MARGIN)
    x = 0.5 + dx * reach + (0.0 if dx else rng.uniform(-jitter, jitter))
    y = 0.5 + dy * reach + (0.0 if dy else rng.uniform(-jitter, jitter))
    return Thing(colour, shape, size, position, x, y, radius)


def draw(scene: Scene, *, side: int = SIDE, style: str = "plain") -> NDArray[np.uint8]:
    """Draw a scene.

    Returns:
        The picture, (side, side, 3), 0 to 255.
    """
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    picture = np.empty((side, side, 3), np.float32)
    picture[:] = COLOURS[scene.background]
    for thing in scene.things:
        x, y = axis[None, :] - np.float32(thing.x), axis[:, None] - np.float32(thing.y)
        cover = coverage(thing.shape, x, y, thing.radius, side, outline=style == "outline")
        if style == "stripes":
            cover = cover * stripes(axis, side)[:, None]
        picture += cover[..., None] * (np.asarray(COLOURS[thing.colour], np.float32) - picture)
    return np.clip(toned(picture, style) + 0.5, 0, 255).astype(np.uint8)


def toned(picture: Field, style: str) -> Field:
    """The style's palette: night is darker, pastel nearer to white, the others as they are."""
    if style == "night":
        return picture * np.float32(NIGHT)
    if style == "pastel":
        return 255 - (255 - picture) * np.float32(PASTEL)
    return picture


def stripes(y: Field, side: int) -> Field:
    """Antialiased horizontal stripes, as wide as the gaps between them: coverage of each row."""
    phase = np.abs((y / STRIPE_PERIOD) % 1.0 - 0.5) - 0.25
    return np.clip(0.5 - phase * STRIPE_PERIOD * side, 0, 1).astype(np.float32)


def coverage(shape: str, x: Field, y: Field, radius: float, side: int, *, outline: bool = False) -> Field:
    """Share of each pixel that a shape around the origin covers, 0 to 1."""
    distance = _DISTANCES[shape](x, y, radius)
    if outline:
        distance = np.abs(distance + OUTLINE_WIDTH / 2) - OUTLINE_WIDTH / 2
    return np.clip(0.5 - distance * side, 0, 1).astype(np.float32)


def _circle(x: Field, y: Field, radius: float) -> Field:
    return np.hypot(x, y) - radius


def _ring(x: Field, y: Field, radius: float) -> Field:
    return np.abs(np.hypot(x, y) - 0.79 * radius) - 0.21 * radius


def _square(x: Field, y: Field, radius: float) -> Field:
    # As large in area as the circle of this radius.
    return np.maximum(np.abs(x), np.abs(y)) - radius * math.sqrt(math.pi) / 2


def _cross(x: Field, y: Field, radius: float) -> Field:
    arm = radius * 0.33
    upright = np.maximum(np.abs(x) - arm, np.abs(y) - radius)
    return np.minimum(upright, np.maximum(np.abs(x) - radius, np.abs(y) - arm))


def _triangle(x: Field, y: Field, radius: float) -> Field:
    # Apex (0, -0.95 r), base from (-0.98 r, 0.75 r) to (0.98 r, 0.75 r).
    width, height = 0.98 * radius, 1.70 * radius
    slant = (np.abs(x) * height - (y + 0.95 * radius) * width) / math.hypot(width, height)
    return np.maximum(slant, y - 0.75 * radius)


def _star(x: Field, y: Field, radius: float) -> Field:
    # Fold the plane into one tenth of the turn, where the star is one straight edge from tip to notch.
    tenth = math.pi / 5
    turn = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
    along, across = np.hypot(x, y) * np.cos(turn), np.hypot(x, y) * np.sin(turn)
    notch = (0.45 * radius * math.cos(tenth), 0.45 * radius * math.sin(tenth))
    edge = (notch[0] - radius, notch[1])
    return (edge[1] * (along - radius) - edge[0] * across) / math.hypot(*edge)


_DISTANCES: dict[str, Callable[[Field, Field, float], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
