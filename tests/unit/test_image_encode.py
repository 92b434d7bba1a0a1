"""Pictures as files: the pixels and the parameters that come back out."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import ImageFormat, LoraChoice
from models.image.encode import MEDIA_TYPES, encode_image, parameters_of, read_parameters
from tests.unit.drawing import image_job

PARAMETERS: dict[str, Any] = parameters_of(
    image_job(prompt='a "red" círculo 円 🙂', loras=(LoraChoice(name="warm", weight=0.5),)),
    "tiny",
    64,
    48,
    4.0,
)


def gradient() -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([rows * 5, columns * 4, rows + columns], axis=2).astype(np.uint8)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_the_parameters_come_back(image_format: ImageFormat) -> None:
    data = encode_image(gradient(), image_format, PARAMETERS)
    assert read_parameters(data) == PARAMETERS
    with Image.open(io.BytesIO(data)) as image:
        assert image.get_format_mimetype() == MEDIA_TYPES[image_format]
        assert image.size == (64, 48)
        software = image.info["Software"] if image_format == "png" else image.getexif()[0x0131]
        assert software == "triptych"


def test_png_keeps_every_pixel_and_the_others_nearly() -> None:
    bounds: dict[ImageFormat, int] = {"png": 0, "jpeg": 24, "webp": 24}
    for image_format, apart in bounds.items():
        with Image.open(io.BytesIO(encode_image(gradient(), image_format, {}))) as image:
            shown = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(shown - gradient()).max() <= apart


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_a_prompt_too_long_for_one_segment_is_shortened_and_says_so(image_format: ImageFormat) -> None:
    long = {**PARAMETERS, "prompt": "円" * 20_000}
    kept = read_parameters(encode_image(gradient(), image_format, long))
    assert kept["shortened"] is True
    assert kept["prompt"] == "円" * 2_000
    assert kept["seed"] == PARAMETERS["seed"]
    assert read_parameters(encode_image(gradient(), "png", long)) == long
