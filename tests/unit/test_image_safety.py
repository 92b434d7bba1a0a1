"""What a picture says of itself: the safety checker's verdict, the invisible mark, the parameters."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil

from jobs import Event, ImageFormat, ImageResult, Preview
from models.catalog import Entry
from models.image.encode import encode_image, read_parameters
from models.image.stable_diffusion import StableDiffusion, load
from models.image.watermark import is_marked, mark
from models.protocol import ModelSpec
from runners.image import chosen
from settings import Settings
from tests.unit.drawing import admit, apart, image_job, pixels_of, run
from tests.unit.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def checked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint with a safety checker that looks for one thing and is never sure enough."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("checked") / "tiny"))
    write_checker(folder, threshold=2.0)
    return folder


def write_checker(folder: Path, threshold: float) -> None:
    """`threshold`: the likeness from which a picture is flagged; likenesses are between -1 and 1."""
    torch.manual_seed(3)
    kind: Any = StableDiffusionSafetyChecker
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    checker = kind(CLIPConfig(vision_config=vision, text_config=dict(sizes), projection_dim=16))
    for name, parameter in checker.named_parameters():
        if "embeds" in name:
            parameter.data = torch.full_like(parameter, threshold if "weights" in name else 1.0)
    checker.save_pretrained(folder / "safety_checker", safe_serialization=True)
    processor: Any = CLIPImageProcessorPil
    processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "feature_extractor"
    )


def results(model: StableDiffusion, *seeds: int) -> list[ImageResult]:
    rows = admit(model, [image_job(seed=seed, num_inference_steps=2) for seed in seeds])
    run(model, rows)
    return [model.finish(row) for row in rows]


def test_without_a_checker_there_is_no_verdict(plain: Path) -> None:
    (result,) = results(load(ModelSpec(name="tiny", folder=plain)), 1)
    assert result.flagged is None


def test_a_picture_that_passes_is_untouched(plain: Path, checked: Path) -> None:
    passed = results(load(ModelSpec(name="tiny", folder=checked)), 1, 2)
    assert [result.flagged for result in passed] == [False, False]
    (unchecked,) = results(load(ModelSpec(name="tiny", folder=plain)), 1)
    assert apart(pixels_of(passed[0].data), pixels_of(unchecked.data)) <= 1


def test_a_picture_that_does_not_is_black_and_says_so(checked: Path, tmp_path: Path) -> None:
    strict = Path(shutil.copytree(checked, tmp_path / "strict"))
    write_checker(strict, threshold=-2.0)
    (flagged,) = results(load(ModelSpec(name="tiny", folder=strict, watermark=True)), 1)
    assert flagged.flagged is True
    assert pixels_of(flagged.data).max() == 0
    (off,) = results(load(ModelSpec(name="tiny", folder=strict, safety_checker=False)), 1)
    assert off.flagged is None
    assert pixels_of(off.data).max() > 0


def test_what_may_be_withheld_has_no_previews(plain: Path, checked: Path) -> None:
    for folder, wanted in ((plain, True), (checked, False)):
        model = load(ModelSpec(name="tiny", folder=folder))
        (row,) = admit(model, [image_job(stream=True)])
        told: list[Event] = []
        while (lane := model.lane(row)) is not None:
            told += model.step(lane, [row])[0]
        assert any(isinstance(event, Preview) for event in told) is wanted


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", [(64, 64), (128, 96), (1100, 1030)])
def test_the_mark_is_found_again_and_nowhere_else(image_format: ImageFormat, size: tuple[int, int]) -> None:
    height, width = size
    down, across = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(1).normal(0, 3, (height, width))
    light = np.clip(128 + 100 * np.sin(down / 20) * np.cos(across / 15) + noise, 0, 255)
    pixels = np.stack([light, light[::-1], 255 - light], axis=2).astype(np.uint8)
    marked = mark(pixels)
    assert np.abs(marked.astype(int) - pixels).max() == 1
    for given, wanted in ((marked, True), (pixels, False)):
        with Image.open(io.BytesIO(encode_image(given, image_format, None))) as image:
            assert is_marked(np.asarray(image.convert("RGB"))) is wanted


@pytest.mark.parametrize("on", [True, False])
def test_mark_and_parameters_have_a_setting_each(plain: Path, on: bool) -> None:
    (result,) = results(load(ModelSpec(name="tiny", folder=plain, watermark=on, metadata=not on)), 1)
    assert is_marked(pixels_of(result.data).astype(np.uint8)) is on
    if on:
        with pytest.raises(KeyError):
            read_parameters(result.data)
    else:
        assert read_parameters(result.data)["seed"] == 1


def test_the_settings_turn_them_off_for_every_entry() -> None:
    entry = Entry(family="image.stable_diffusion", source="embedded:tiny-sd", licence="none")
    assert chosen({"a": entry}, Settings()) == {"a": entry}
    off = Settings(safety_checker=False, watermark=False, picture_metadata=False)
    told = chosen({"a": entry}, off)["a"]
    assert (told.safety_checker, told.watermark, told.metadata) == (False, False, False)
