"""Callers' pictures: what they are is read from their first bytes, and refused before a pixel is decoded."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs import ErrorKind, JobError

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 1 << 23
"""Of a picture that comes in: 3840 x 2160 and a little, 32 MiB with four channels."""
_MASK_THRESHOLD = 128
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise for files that are not what they say."""
_one_at_a_time = threading.Lock()
"""Decoding is what takes memory: however many pictures come at once, one is decoded."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What EXIF's orientations ask for."""
_LYING = (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])


class Picture:
    """A caller's picture whose size is known and bounded; its pixels are not decoded yet."""

    def __init__(self, data: bytes, param: str) -> None:
        """Raises `JobError` that names `param` for what is no picture, or one too large."""
        self._param = param
        try:
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise self._too_large() from None
        except _BROKEN:
            raise self._refused(f"must be a picture in {', '.join(FORMATS)}", "not_a_picture") from None
        if self._image.width * self._image.height > MOST_PIXELS:
            raise self._too_large()
        self._turn = _turn_of(self._image)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the picture is shown."""
        width, height = self._image.size
        return (height, width) if self._turn in _LYING else (width, height)

    def colours(self, width: int, height: int) -> torch.Tensor:
        """[3, height, width] float32 in -1..1, on the CPU. Raises `JobError` for a broken file."""
        pixels = self._decoded("RGB", width, height).transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy()).float() / 127.5 - 1.0

    def mask(self, width: int, height: int) -> torch.Tensor:
        """[1, height, width] float32 of 0 and 1: 1 where the picture is transparent, as in OpenAI's masks.

        In one that is nowhere transparent, 1 where it is lighter than the middle grey.
        """
        if "A" not in self._image.getbands():
            return torch.from_numpy(self._decoded("L", width, height)[None] >= _MASK_THRESHOLD).float()
        pixels = self._decoded("RGBA", width, height)
        chosen = pixels[..., 3] < _MASK_THRESHOLD
        if not chosen.any():
            chosen = np.asarray(Image.fromarray(pixels).convert("L")) >= _MASK_THRESHOLD
        return torch.from_numpy(chosen[None]).float()

    def _decoded(self, mode: str, width: int, height: int) -> NDArray[np.uint8]:
        try:
            with _one_at_a_time, self._image as image:
                upright = (image if self._turn is None else image.transpose(self._turn)).convert(mode)
                if upright.size != (width, height):
                    upright = upright.resize((width, height), Image.Resampling.LANCZOS)
                return np.asarray(upright)
        except _BROKEN:
            raise self._refused("is a broken picture", "broken_picture") from None

    def _too_large(self) -> JobError:
        return self._refused(f"must have at most {MOST_PIXELS} pixels", "out_of_bounds")

    def _refused(self, why: str, code: str) -> JobError:
        return JobError(ErrorKind.INVALID, f"`{self._param}` {why}.", param=self._param, code=code)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """By the EXIF in front of the pixels: `getexif` would decode them to look behind them."""
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return _TURNS.get(exif.get(_ORIENTATION, 1))
    except _BROKEN:
        return None
