"""The picture model's little world: what is drawn, what is said of it, and what is kept from training."""

import random

import numpy as np
import pytest

from models.training import scenes
from models.training.image_captions import full_caption, partial_caption
from models.training.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene, Thing


def thing(shape: str = "circle", radius: float = 0.2) -> Thing:
    return Thing("red", shape, "medium", "centre", 0.5, 0.5, radius)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_in_its_colour_inside_its_radius(shape: str) -> None:
    picture = scenes.draw(Scene((thing(shape, 0.25),), "blue")).astype(int)
    red = np.abs(picture - COLOURS["red"]).sum(-1) == 0
    blue = np.abs(picture - COLOURS["blue"]).sum(-1) == 0
    rows, columns = np.nonzero(~blue)
    assert red.sum() > 300
    assert min(rows.min(), columns.min()) >= 31
    assert max(rows.max(), columns.max()) <= 96
    # Antialiasing: some pixels are neither, and only along the edge.
    assert 0 < (~red & ~blue).sum() < 400


def test_drawing_at_another_side_is_the_same_scene() -> None:
    scene = scenes.sample_scene(random.Random(4))
    small = scenes.draw(scene).astype(float)
    large = scenes.draw(scene, side=256).astype(float).reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 1.0


def test_styles_change_what_they_are_called_for() -> None:
    scene = Scene((thing(radius=0.3),), "white")
    plain, outline, stripes, night, pastel = (
        scenes.draw(scene, style=style).astype(float) for style in scenes.STYLES
    )

    def red(picture: np.ndarray) -> int:
        return int((np.abs(picture - COLOURS["red"]).sum(-1) < 30).sum())

    assert red(outline) < 0.4 * red(plain)
    assert 0.35 * red(plain) < red(stripes) < 0.65 * red(plain)
    assert night.mean() == pytest.approx(scenes.NIGHT * plain.mean(), abs=1)
    assert 255 - pastel.mean() == pytest.approx(scenes.PASTEL * (255 - plain.mean()), abs=1)


def test_training_and_held_out_scenes_share_no_combination() -> None:
    def combinations(*, held_out: bool) -> set[tuple[str, str, str]]:
        rng = random.Random(1)
        drawn = [scenes.sample_scene(rng, held_out=held_out) for _ in range(1500)]
        return {(t.colour, t.shape, scene.background) for scene in drawn for t in scene.things}

    trained, kept = combinations(held_out=False), combinations(held_out=True)
    assert not trained & kept
    assert len(kept) >= 30
    assert all(colour != background for colour, _, background in trained | kept)


def test_objects_stay_inside_and_apart() -> None:
    rng = random.Random(2)
    for _ in range(400):
        scene = scenes.sample_scene(rng)
        for t in scene.things:
            low, high = SIZES[t.size]
            assert low <= t.radius <= high
            assert 0 < t.x - t.radius < t.x + t.radius < 1
            assert 0 < t.y - t.radius < t.y + t.radius < 1
        if len(scene.things) == 2:
            a, b = scene.things
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius or (
                np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
            )


def test_a_medium_object_is_a_fifth_to_a_quarter_of_the_side() -> None:
    low, high = SIZES["medium"]
    assert 0.2 <= low < high <= 0.25


def test_a_full_caption_names_everything() -> None:
    rng = random.Random(3)
    for _ in range(200):
        scene = scenes.sample_scene(rng)
        words = full_caption(rng, scene).text.replace("gray", "grey").replace(",", "").split()
        for t in scene.things:
            assert {t.colour, t.shape} <= set(words)
        assert scene.background in words


def test_a_partial_caption_leaves_something_out() -> None:
    rng = random.Random(3)
    for _ in range(200):
        caption = partial_caption(rng, scenes.sample_scene(rng))
        assert not (caption.colours[0] and caption.shapes[0] and caption.background)
        assert (caption.scene.things[0].shape in caption.text.split()) == caption.shapes[0]


def test_places_are_the_five_of_the_contract() -> None:
    assert set(POSITIONS) == {"left", "right", "top", "bottom", "centre"}
