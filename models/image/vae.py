"""The VAE's two ways, many pictures in one forward; above a size in tiles."""

from __future__ import annotations

from typing import Any

import torch

MOST_PIXELS_AT_ONCE = 8 * 512 * 512
"""Of all pictures in one forward: its activations, not its arithmetic, are what fills memory."""
TILED_ABOVE = 1024 * 1024
"""Pixels of one picture above which it is decoded in overlapping tiles of the VAE's own size."""


class Vae:
    """An `AutoencoderKL` that speaks of scaled latents, as the UNet does."""

    def __init__(self, module: Any, device: torch.device) -> None:
        self.module = module
        self._device = device
        self.factor: int = 2 ** (len(module.config.block_out_channels) - 1)

    def most_rows(self, height: int, width: int) -> int:
        """How many pictures of that many latents a side share a forward."""
        return max(1, MOST_PIXELS_AT_ONCE // (height * width * self.factor**2))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [n, C, h, w] to pictures [n, 3, H, W] in -1..1."""
        module = self.module
        module.use_tiling = latents.shape[2] * latents.shape[3] * self.factor**2 > TILED_ABOVE
        scaled = (latents / module.config.scaling_factor).to(self._device, module.dtype)
        return module.decode(scaled, return_dict=False)[0]

    def encode(self, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, H, W] in -1..1 to scaled latents [n, C, h, w] float32.

        `noise` [n, C, h, w] is what chooses a sample of the VAE's distribution.
        """
        module = self.module
        module.use_tiling = pictures.shape[2] * pictures.shape[3] > TILED_ABOVE
        chosen = module.encode(pictures.to(self._device, module.dtype)).latent_dist
        latents = chosen.mean + chosen.std * noise.to(self._device, module.dtype)
        return (latents * module.config.scaling_factor).float()
