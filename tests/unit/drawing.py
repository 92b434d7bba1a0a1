"""The shortest engine there is: what tests of picture models drive the verbs with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs import ImageJob
from models.image.row import Row
from models.image.stable_diffusion import StableDiffusion

Pixels = NDArray[np.int16]


def image_job(**changes: Any) -> ImageJob:
    """A job of six guided DDIM steps, but for `changes`."""
    job: dict[str, Any] = {
        "id": "job",
        "timeout_s": 60,
        "seed": 3,
        "prompt": "a red circle",
        "num_inference_steps": 6,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
    }
    return ImageJob(**(job | changes))


def admit(model: StableDiffusion, jobs: Sequence[ImageJob]) -> list[Row]:
    rows = [model.prepare(job) for job in jobs]
    assert all(model.reserve(row) for row in rows)
    return rows


def run(model: StableDiffusion, rows: Sequence[Row]) -> None:
    """Steps every lane in turn with all of its rows until none is left."""
    while True:
        lanes: dict[Any, list[Row]] = {}
        for row in rows:
            lane = model.lane(row)
            if lane is not None:
                lanes.setdefault(lane, []).append(row)
        if not lanes:
            return
        for lane, members in lanes.items():
            model.step(lane, members)


def pixels_of(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def draw(model: StableDiffusion, *jobs: ImageJob) -> list[Pixels]:
    """The pictures of `jobs`, drawn together."""
    rows = admit(model, jobs)
    run(model, rows)
    pictures = [pixels_of(model.finish(row).data) for row in rows]
    for row in rows:
        model.release(row)
    return pictures


def apart(one: Pixels, other: Pixels) -> int:
    """The largest difference of any channel of any pixel, of 255."""
    return int(np.abs(one - other).max())
