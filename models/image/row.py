"""One picture on its way through the lanes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jobs import ImageJob
from models.image.source import Source
from models.image.table import Table
from models.image.text_encoder import Chunks, Embedding
from models.lora.files import Adapter


@dataclass(slots=True, eq=False)
class Row:
    """Tensors are on the model's device; latents [C, h, w] and history (the last x0) are float32.

    `index` is the step that comes next: with `latents`, all that a picture which begins from another one
    starts differently; its `source` is None for one drawn from noise alone. `negative_prompt` is None for a
    row without guidance; `cond` and `uncond` are None until encoded, `pixels` [height, width, 3] until
    decoded; `flagged` is the safety checker's verdict, None where none looks.
    """

    job: ImageJob
    width: int
    height: int
    guidance_scale: float
    table: Table
    prompt: Chunks
    negative_prompt: Chunks | None
    adapters: tuple[tuple[Adapter, float], ...]
    latents: torch.Tensor
    source: Source | None = None
    index: int = 0
    holds_place: bool = False
    history: torch.Tensor | None = None
    cond: Embedding | None = None
    uncond: Embedding | None = None
    pixels: NDArray[np.uint8] | None = None
    flagged: bool | None = None

    @property
    def prompts(self) -> tuple[Chunks, ...]:
        return (self.prompt,) if self.negative_prompt is None else (self.prompt, self.negative_prompt)

    @property
    def forward_rows(self) -> int:
        """2 for a guided row: one with its prompt and one with its negative prompt."""
        return len(self.prompts)
