"""A judge that reads a picture's colours, shapes, sizes and places by plain image processing; nothing is
learnt.

The background is the colour of most of the border. What differs from it is cut into connected pieces; each
piece's colour is its inner pixels' median, its shape the one whose drawn outline overlaps it best, its place
and size those of its bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.training import scenes
from models.training.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FOREGROUND = 0.45
"""A pixel is an object's when it is this share of the way from the background to the object's colour."""
MIN_PIXELS = 40
CENTRE_REACH = 0.07
"""Within this share of the side from the middle, on both axes, an object is in the centre."""


@dataclass(frozen=True)
class Seen:
    """One object as the judge sees it; lengths are shares of the side."""

    colour: str
    shape: str
    size: str
    position: str
    fit: float
    """Intersection over union with the drawn shape, 0 to 1."""
    mask: Mask


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in a picture."""

    background: str
    things: tuple[Seen, ...]


def nearest_colour(rgb: NDArray[np.float32], style: str = "plain") -> str:
    """The named colour, toned as the style has it, that is nearest to `rgb`."""
    names = list(COLOURS)
    palette = scenes.toned(np.asarray([COLOURS[name] for name in names], np.float32), style)
    return names[int(np.abs(palette - rgb).sum(-1).argmin())]


def background_rgb(picture: Picture) -> NDArray[np.float32]:
    """The median colour of the border, two pixels wide."""
    edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3)])
    sides = np.concatenate([picture[:, :2].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])
    return np.median(np.concatenate([edge, sides]), axis=0).astype(np.float32)


def pieces(picture: Picture, style: str = "plain") -> list[Mask]:
    """Masks of the objects, the largest first; stripes and the insides of outlines are closed up."""
    away = np.abs(picture.astype(np.float32) - background_rgb(picture)).sum(-1)
    # A threshold of its own for each object: half of its own distance, or a black one would drown a pale one.
    rough = away > _floor(style)
    if style == "stripes":
        rough = ndimage.binary_closing(np.pad(rough, 8), np.ones((7, 1)))[8:-8, 8:-8]
    if style == "outline":
        rough = ndimage.binary_fill_holes(rough)
    label_all: Any = ndimage.label  # its stub gives a count alone
    labels, count = label_all(rough, np.ones((3, 3)))
    found: list[Mask] = []
    for label in range(1, count + 1):
        mask = labels == label
        if mask.sum() < MIN_PIXELS:
            continue
        if style in ("plain", "night", "pastel"):
            mask &= away > FOREGROUND * np.percentile(away[mask], 80)
        found.append(mask)
    return sorted((mask for mask in found if mask.sum() >= MIN_PIXELS), key=lambda mask: -int(mask.sum()))


def _floor(style: str) -> float:
    return {"night": 12.0, "pastel": 15.0}.get(style, 30.0)


def look(picture: Picture, style: str = "plain") -> Verdict:
    """Read a picture.

    Args:
        picture: (side, side, 3), 0 to 255, square.
        style: The style it should be in: the night and pastel palettes are other ones, stripes are closed up.
    """
    ground = background_rgb(picture)
    things = tuple(_see(picture, mask, ground, style) for mask in pieces(picture, style)[:4])
    return Verdict(nearest_colour(ground, style), things)


def _see(picture: Picture, mask: Mask, ground: NDArray[np.float32], style: str) -> Seen:
    side = picture.shape[0]
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    shape, fit, radius, (x, y) = _fit(
        mask, (left + right) / 2, (top + bottom) / 2, max(bottom - top, right - left) / 2
    )
    size = min(SIZES, key=lambda name: abs(np.log(radius / side / np.mean(SIZES[name]))))
    pixels = picture[mask].astype(np.float32)
    away = np.abs(pixels - ground).sum(-1)
    # The pixels that stand out: neither antialiased edges nor the gaps between stripes nor an outline's
    # inside.
    colour = np.median(pixels[away >= 0.75 * np.percentile(away, 95)], axis=0)
    return Seen(
        nearest_colour(colour, style), shape, size, _position(x / side - 0.5, y / side - 0.5), fit, mask
    )


def _fit(mask: Mask, x: float, y: float, reach: float) -> tuple[str, float, float, tuple[float, float]]:
    """The shape, drawn at the mask's bounding box, that overlaps it best: name, overlap, radius, centre."""
    side = mask.shape[0]
    axis = np.arange(side, dtype=np.float32) + 0.5
    best = ("circle", -1.0, reach, (x, y))
    for shape in SHAPES:
        # Radius and centre from the bounding box of each shape as it is drawn.
        widest, lift = _BOXES[shape]
        radius = reach / widest
        centre = (x, y - lift * radius)
        cover = scenes.coverage(shape, axis[None, :] - centre[0], axis[:, None] - centre[1], radius, 1)
        drawn = cover > 0.5
        overlap = float((drawn & mask).sum() / max(1, (drawn | mask).sum()))
        if overlap > best[1]:
            best = (shape, overlap, radius, centre)
    return best


def _boxes() -> dict[str, tuple[float, float]]:
    """For each shape of radius 1: half of its longer side, and its box's centre below the shape's."""
    axis = np.linspace(-1.2, 1.2, 481, dtype=np.float32)
    boxes: dict[str, tuple[float, float]] = {}
    for shape in SHAPES:
        rows, columns = np.nonzero(scenes.coverage(shape, axis[None, :], axis[:, None], 1.0, 1000) > 0.5)
        heights, widths = axis[rows], axis[columns]
        half = max(float(np.ptp(heights)), float(np.ptp(widths))) / 2
        boxes[shape] = (half, float(heights.max() + heights.min()) / 2)
    return boxes


_BOXES = _boxes()


def _position(dx: float, dy: float) -> str:
    if max(abs(dx), abs(dy)) < CENTRE_REACH:
        return "centre"
    along = (int(np.sign(dx)), 0) if abs(dx) > abs(dy) else (0, int(np.sign(dy)))
    return next(name for name, place in POSITIONS.items() if place == along)


def match(scene: Scene, verdict: Verdict) -> list[Seen | None]:
    """For each object of the scene the one seen in its place, or failing that any left over; None if none
    is."""
    left = list(verdict.things)
    chosen: list[Seen | None] = [None] * len(scene.things)
    for exact in (True, False):
        for index, thing in enumerate(scene.things):
            if chosen[index] is None:
                seen = next((s for s in left if not exact or s.position == thing.position), None)
                if seen:
                    left.remove(seen)
                    chosen[index] = seen
    return chosen


def filled_share(picture: Picture, mask: Mask) -> float:
    """Share of an object's area that is unlike the background: low for outlines."""
    away = np.abs(picture.astype(np.float32) - background_rgb(picture)).sum(-1)
    inked = away > 0.5 * np.percentile(away[mask], 95)
    return float((inked & mask).sum() / max(1, mask.sum()))


def stripedness(picture: Picture, mask: Mask) -> float:
    """How much of an object's ups and downs along its columns have the stripes' period, 0 to about 1.

    The amplitude at that period over the object's distance from the background.
    """
    rows, columns = np.nonzero(mask)
    box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    away = np.abs(box - background_rgb(picture)).sum(-1)
    period = scenes.STRIPE_PERIOD * picture.shape[0]
    turns = np.exp(-2j * np.pi * np.arange(len(away)) / period)
    middle = away[:, away.shape[1] // 4 : -(away.shape[1] // 4) or None]
    amplitude = np.abs((turns[:, None] * middle).mean(0)).mean() * np.pi
    return float(amplitude / max(1.0, float(np.percentile(away, 90))))


def brightness(picture: Picture) -> float:
    """Mean of all channels, 0 to 255."""
    return float(picture.mean())
