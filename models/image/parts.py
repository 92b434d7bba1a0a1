"""A Stable Diffusion checkpoint's modules in memory, and the numbers that follow from their configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from jobs import ErrorKind, JobError
from models.image.safety import SafetyChecker
from models.image.text_encoder import TextEncoder
from models.image.vae import Vae

LEAST_SIDE = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a checkpoint on their device.

    `compiled_unet`: the same UNet compiled, on a GPU only. `zero_empty`: an empty negative prompt is zeros.
    `dtype`: what the UNet computes in.
    """

    text_encoders: tuple[TextEncoder, ...]
    unet: Any
    vae: Vae
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    zero_empty: bool = False
    compiled_unet: Any = None
    safety: SafetyChecker | None = None

    @property
    def adaptable(self) -> dict[str, torch.nn.Module]:
        """What LoRAs may touch, by the names they have for it."""
        return {"unet": self.unet} | {encoder.name: encoder.module for encoder in self.text_encoders}

    @property
    def latent_channels(self) -> int:
        return self.unet.config.out_channels

    @property
    def is_for_inpainting(self) -> bool:
        """Whether the UNet sees a mask and the rest of the picture beside the latents."""
        return self.unet.config.in_channels == 2 * self.latent_channels + 1

    @property
    def is_told_sizes(self) -> bool:
        return self.unet.config.addition_embed_type == "text_time"

    @property
    def height(self) -> int:
        """The model's own, in pixels."""
        return _pair(self.unet.config.sample_size)[0] * self.vae.factor

    @property
    def width(self) -> int:
        return _pair(self.unet.config.sample_size)[1] * self.vae.factor

    @property
    def guidance_width(self) -> int | None:
        """Of the guidance embedding of a distilled UNet, or None."""
        return self.unet.config.time_cond_proj_dim

    def sides(
        self, width: int | None, height: int | None, picture: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Width and height in pixels: what is asked within bounds that follow from the model's own size.

        What is not asked is that of the `picture` that the row begins from, brought within the bounds with
        its shape kept as far as they allow, or the model's own. Raises `JobError` with the bounds.
        """
        own_width, own_height = (self.width, self.height) if picture is None else self._fitted(picture)
        return self._side(width, "width", own_width), self._side(height, "height", own_height)

    def _side(self, asked: int | None, param: Literal["width", "height"], otherwise: int) -> int:
        """Beyond twice its own size a UNet repeats its motifs."""
        if asked is None:
            return otherwise
        least, most = self._bounds(param)
        if asked % self.vae.factor or not least <= asked <= most:
            message = (
                f"{param} must be a multiple of {self.vae.factor} between {least} and {most} on this model."
            )
            raise JobError(ErrorKind.INVALID, message, param=param)
        return asked

    def _bounds(self, param: Literal["width", "height"]) -> tuple[int, int]:
        own = self.width if param == "width" else self.height
        return min(LEAST_SIDE, own), 2 * own

    def _fitted(self, picture: tuple[int, int]) -> tuple[int, int]:
        (least_width, most_width), (least_height, most_height) = self._bounds("width"), self._bounds("height")
        width, height = picture
        zoom = min(1.0, most_width / width, most_height / height)
        zoom = max(zoom, least_width / width, least_height / height)
        return self._nearest(width * zoom, "width"), self._nearest(height * zoom, "height")

    def _nearest(self, pixels: float, param: Literal["width", "height"]) -> int:
        least, most = self._bounds(param)
        return min(max(round(pixels) // self.vae.factor * self.vae.factor, least), most)


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
