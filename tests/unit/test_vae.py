"""Above a size a picture goes through the VAE in tiles, so that its memory is bounded; below it, whole."""

from __future__ import annotations

import pytest
import torch

from models.image import vae
from models.image.vae import Vae
from tests.unit.tiny_checkpoint import vae as tiny_vae


@pytest.mark.parametrize(("above", "in_tiles"), [(200 * 200, True), (300 * 300, False)])
def test_pictures_above_a_size_go_in_tiles(
    above: int, in_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    module = tiny_vae()
    monkeypatch.setattr(vae, "TILED_ABOVE", above)
    sizes: list[torch.Size] = []
    module.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    latents = torch.randn((2, 4, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        drawn = Vae(module, torch.device("cpu")).decode(latents)
        again = Vae(module, torch.device("cpu")).encode(drawn, torch.zeros_like(latents))
    assert drawn.shape == (2, 3, 256, 256)
    assert again.shape == latents.shape
    assert (max(size[0] for size in sizes) < 32) is in_tiles


def test_pictures_of_one_forward_are_bounded_by_their_pixels() -> None:
    made = Vae(tiny_vae(), torch.device("cpu"))
    assert made.most_rows(64, 64) == 8
    assert made.most_rows(16, 16) == 128
    assert made.most_rows(256, 256) == 1
