"""Noise for a whole call that several rows share: each has its own, whoever else is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.speech.sampling import draws

_BLOCK = 64
"""Noise is drawn for so many places at once, so that a longer batch draws the same for its shorter rows."""


class OwnNoise(TorchFunctionMode):
    """Within it `randn` and `randn_like` of [rows, channels, places] draw each row's by its own seed."""

    def __init__(self, rows: Sequence[tuple[int, int, bool]]) -> None:
        """A row's seed, the number of its sentence, and whether it has any noise."""
        super().__init__()
        self._rows = rows
        self._call = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in (torch.randn, torch.randn_like):
            return func(*args, **(kwargs or {}))
        like = args[0] if func is torch.randn_like else None
        shape: tuple[int, ...] = tuple(like.shape) if like is not None else tuple(args)
        self._call += 1
        noise = torch.stack([self._draw(row, shape[1], shape[2]) for row in self._rows])
        return noise if like is None else noise.to(like)

    def _draw(self, row: tuple[int, int, bool], channels: int, places: int) -> Tensor:
        seed, number, noisy = row
        if not noisy:
            return torch.zeros(channels, places)
        blocks = -(-places // _BLOCK)
        uniform = [
            draws(2 * channels * _BLOCK, seed, number, self._call, block).view(2, channels, _BLOCK)
            for block in range(blocks)
        ]
        first, second = torch.cat(uniform, -1)[..., :places]
        # Box and Muller's: normal numbers of uniform ones.
        return torch.sqrt(-2 * torch.log1p(-first)) * torch.cos(2 * torch.pi * second)
