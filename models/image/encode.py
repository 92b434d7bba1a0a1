"""Pixels to files: PNG, JPEG and WebP that carry the parameters they were made with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs import ImageFormat, ImageJob

SOFTWARE = "triptych"
MEDIA_TYPES: Mapping[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_EXIF_IFD = 0x8769
_SOFTWARE_TAG = 0x0131
_USER_COMMENT_TAG = 0x9286
_ASCII = b"ASCII\0\0\0"
"""The character code that EXIF 2.32 wants before a UserComment; the JSON in it escapes all else."""
_MOST_EXIF_BYTES = 60_000
"""A JPEG segment holds 65,533 bytes, the other tags and headers among them."""
_KEPT_OF_A_LONG_TEXT = 2_000
_PNG_COMPRESSION = 4
_QUALITY = 92


def encode_image(
    pixels: NDArray[np.uint8], image_format: ImageFormat, parameters: Mapping[str, Any] | None
) -> bytes:
    """Encodes `pixels` [height, width, 3] with `parameters`, if any, as JSON in its metadata.

    A PNG has them in a text chunk named `parameters`; JPEG and WebP in EXIF's UserComment. There a text too
    long for one segment is shortened, and a parameter `shortened` says so.
    """
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if image_format == "png":
        notes = PngInfo()
        if parameters is not None:
            notes.add_text("parameters", json.dumps(parameters))
        notes.add_text("Software", SOFTWARE)
        image.save(file, "PNG", pnginfo=notes, compress_level=_PNG_COMPRESSION)
    else:
        image.save(file, image_format.upper(), exif=_exif(parameters), quality=_QUALITY)
    return file.getvalue()


def parameters_of(
    job: ImageJob, model: str, width: int, height: int, guidance_scale: float
) -> dict[str, Any]:
    """What a picture says of itself: all that it takes to make it again, of pictures given their SHA-256."""
    given = {"init_image": job.init_image, "mask_image": job.mask_image}
    chosen = {"timestep_spacing": job.timestep_spacing, "strength": job.strength}
    optional = {name: value for name, value in chosen.items() if value is not None} | {
        name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in given.items() if data is not None
    }
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "model": model,
        "width": width,
        "height": height,
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": guidance_scale,
        "scheduler": job.scheduler,
        "seed": job.seed,
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in job.loras],
        **optional,
    }


def read_parameters(data: bytes) -> dict[str, Any]:
    """The parameters in a picture that `encode_image` made. Raises `KeyError` when it carries none."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            return json.loads(image.info["parameters"])
        comment: bytes = image.getexif().get_ifd(_EXIF_IFD)[_USER_COMMENT_TAG]
        return json.loads(comment.removeprefix(_ASCII))


def _exif(parameters: Mapping[str, Any] | None) -> Image.Exif:
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = SOFTWARE
    if parameters is None:
        return exif
    text = json.dumps(parameters)
    if len(text) > _MOST_EXIF_BYTES:
        short = {k: v[:_KEPT_OF_A_LONG_TEXT] if isinstance(v, str) else v for k, v in parameters.items()}
        text = json.dumps({**short, "shortened": True})
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT_TAG] = _ASCII + text.encode("ascii")
    return exif
