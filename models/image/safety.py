"""The safety checker that some checkpoints bring: whether a picture is one that its makers would withhold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil


class SafetyChecker:
    """Looks at finished pictures, many in one forward."""

    def __init__(self, module: Any, processor: Any, device: torch.device) -> None:
        self._module = module
        self._processor = processor
        self._device = device

    def flags(self, pictures: Sequence[NDArray[np.uint8]]) -> list[bool]:
        """Whether each picture [height, width, 3] should be withheld."""
        images = [Image.fromarray(picture) for picture in pictures]
        seen = self._processor(images, return_tensors="pt").pixel_values
        # It blackens what it is given: here stand-ins of one pixel.
        _, flagged = self._module(
            clip_input=seen.to(self._device, self._module.dtype), images=np.ones((len(images), 1, 1, 3))
        )
        return [bool(each) for each in flagged]


def load_safety_checker(folder: Path, device: torch.device, dtype: torch.dtype) -> SafetyChecker | None:
    """The checker of a checkpoint in the hub's layout; None when it brings none."""
    if not (folder / "safety_checker").is_dir():
        return None
    loader: Any = StableDiffusionSafetyChecker
    module = loader.from_pretrained(
        folder / "safety_checker", use_safetensors=True, local_files_only=True, torch_dtype=dtype
    )
    processor: Any = CLIPImageProcessorPil
    # Its own warning speaks of black pictures and other prompts; what we say is in the answer.
    logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
    return SafetyChecker(
        module.to(device).eval().requires_grad_(False),
        processor.from_pretrained(folder / "feature_extractor", local_files_only=True),
        device,
    )
