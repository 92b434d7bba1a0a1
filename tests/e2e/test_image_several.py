"""What the real service draws for more than one picture and from pictures of the caller's own."""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
from PIL import Image

STAR = {"prompt": "a green star on a white background", "num_inference_steps": 6}


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_each_of_several_pictures_is_that_of_its_seed_alone(client: httpx.Client) -> None:
    images = client.post("/image", json={**STAR, "seed": 30, "num_images": 3}).json()["images"]
    together = [pixels(base64.b64decode(image["b64_json"])) for image in images]
    for image, picture in zip(images, together, strict=True):
        alone = pixels(client.post("/image", json={**STAR, "seed": image["seed"]}).content)
        assert np.abs(alone - picture).max() <= 2
    assert [image["seed"] for image in images] == [30, 31, 32]
    assert np.abs(together[0] - together[1]).max() > 20
