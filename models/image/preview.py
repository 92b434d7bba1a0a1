"""A rough picture of latents without the VAE: one matrix from latent channels to RGB.

The matrix is fitted to the VAE itself at load. Random latents, smooth enough to look like a picture's (white
noise at several scales, each channel of unit variance, as a trained UNet's are), are decoded once; every
block of pixels is averaged to the latent it came from; least squares gives RGB = [latent, 1] @ matrix.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

PREVIEW_MEDIA_TYPE = "image/jpeg"
_SIDE = 16
_SCALES = (2, 4, 8)
_SAMPLES = 2
_RIDGE = 1e-3
_LARGEST_SIDE = 256
_QUALITY = 70


def fit_latent_to_rgb(decode: Any, channels: int) -> torch.Tensor:
    """[channels + 1, 3] float32 on the CPU: latents and a constant to RGB in -1..1.

    `decode` takes scaled latents [n, channels, h, w] to pictures [n, 3, H, W] in -1..1, as the VAE lane does.
    """
    latents = _picture_like_latents(channels)
    with torch.inference_mode():
        pictures = decode(latents).float().cpu()
    colours = torch.nn.functional.adaptive_avg_pool2d(pictures.clamp(-1, 1), _SIDE)
    known = torch.nn.functional.pad(latents.permute(0, 2, 3, 1).reshape(-1, channels), (0, 1), value=1.0)
    wanted = colours.permute(0, 2, 3, 1).reshape(-1, 3)
    # A little ridge keeps the system solvable when a VAE ignores a channel.
    normal = known.T @ known + _RIDGE * len(known) * torch.eye(channels + 1)
    return torch.linalg.solve(normal, known.T @ wanted)


def _picture_like_latents(channels: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    latents = torch.zeros(_SAMPLES, channels, _SIDE, _SIDE)
    for side in _SCALES:
        noise = torch.randn((_SAMPLES, channels, side, side), generator=generator)
        latents += torch.nn.functional.interpolate(noise, size=(_SIDE, _SIDE), mode="bilinear")
    return (latents - latents.mean((2, 3), keepdim=True)) / latents.std((2, 3), keepdim=True)


def encode_preview(latents: torch.Tensor, matrix: torch.Tensor, factor: int) -> bytes:
    """A JPEG of scaled latents [C, h, w], at the picture's own size up to 256 pixels a side."""
    flat = latents.float().cpu().flatten(1).T
    colours = (torch.nn.functional.pad(flat, (0, 1), value=1.0) @ matrix).clamp(-1, 1)
    height, width = latents.shape[1:]
    pixels = ((colours + 1) * 127.5).round().to(torch.uint8).reshape(height, width, 3)
    zoom = min(factor, _LARGEST_SIDE / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=_QUALITY
    )
    return file.getvalue()
