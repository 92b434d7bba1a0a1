"""The judge reads every drawn scene right, and its style measures tell drawn styles apart."""

import random

import numpy as np
import pytest

from models.training import judge_image, scenes
from models.training.judge_image import look, match
from models.training.score_image import is_on, style_measure


@pytest.mark.parametrize("style", ["plain", "night", "pastel"])
def test_clean_drawings_are_read_right(style: str) -> None:
    rng = random.Random(11)
    for _ in range(60):
        scene = scenes.sample_scene(rng)
        verdict = look(scenes.draw(scene, style=style), style)
        assert verdict.background == scene.background
        assert len(verdict.things) == len(scene.things)
        for thing, seen in zip(scene.things, match(scene, verdict), strict=True):
            assert seen is not None
            assert (seen.colour, seen.shape, seen.size, seen.position) == (
                thing.colour,
                thing.shape,
                thing.size,
                thing.position,
            )


@pytest.mark.parametrize("style", ["outline", "stripes"])
def test_colours_and_places_are_read_in_the_other_styles_too(style: str) -> None:
    rng = random.Random(12)
    right = total = 0
    for _ in range(40):
        scene = scenes.sample_scene(rng)
        verdict = look(scenes.draw(scene, style=style), style)
        for thing, seen in zip(scene.things, match(scene, verdict), strict=True):
            total += 1
            right += seen is not None and (seen.colour, seen.position) == (thing.colour, thing.position)
    assert right == total


def test_a_wrong_picture_is_not_taken_for_the_right_one() -> None:
    rng = random.Random(13)
    scene = scenes.sample_scene(rng, things=1)
    blank = np.full((128, 128, 3), scenes.COLOURS[scene.background], np.uint8)
    assert look(blank).things == ()
    assert match(scene, look(blank)) == [None]


@pytest.mark.parametrize("style", scenes.STYLES[1:])
def test_style_measures_tell_on_from_off(style: str) -> None:
    rng, measure = random.Random(14), style_measure(style)
    told = 0
    # As in scoring: a small ring or star is all outline, so the smaller ones are left out.
    drawn = [scenes.sample_scene(rng, things=1) for _ in range(120)]
    kept = [scene for scene in drawn if scene.things[0].size != "small"][:40]
    assert len(kept) == 40
    for scene in kept:
        plain, styled = scenes.draw(scene), scenes.draw(scene, style=style)
        off = measure(plain, plain)
        assert not is_on(style, off, off)
        told += is_on(style, measure(styled, plain), off)
    assert told >= 39


def test_an_object_hides_no_paler_one() -> None:
    circle = scenes.Thing("black", "circle", "small", "left", 0.16, 0.5, 0.12)
    square = scenes.Thing("grey", "square", "small", "right", 0.84, 0.5, 0.12)
    seen = look(scenes.draw(scenes.Scene((circle, square), "white"))).things
    assert {thing.colour for thing in seen} == {"black", "grey"}
    assert judge_image.filled_share(scenes.draw(scenes.Scene((circle,), "white")), seen[0].mask) >= 0
