"""Drawing tokens: every row by its own temperature and its own random numbers, all rows in one go."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from models.speech.generation import Sampling


def draws(count: int, *place: int | str) -> Tensor:
    """`count` uniform numbers in [0, 1), a function of `place` (seed, stage ...) alone: [count]."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.rand(count, generator=generator)


@dataclass(frozen=True, slots=True)
class Temperatures:
    """The temperatures of the rows of one forward."""

    scale: Tensor
    """What the scores are divided by, 1 for a greedy row: [rows, 1]."""
    greedy: Tensor | None
    """Which rows take the likeliest token: [rows]; None when no row does."""
    all_greedy: bool

    @classmethod
    def of(cls, values: list[float], device: torch.device) -> Temperatures:
        scale = torch.tensor([value or 1.0 for value in values], device=device)[:, None]
        if all(values):
            return cls(scale, None, all_greedy=False)
        greedy = torch.tensor([not value for value in values], device=device)
        return cls(scale, greedy, all_greedy=not any(values))


def pick(logits: Tensor, temperatures: Temperatures, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Each row's next token.

    Args:
        logits: Scores [rows, tokens]; where `sampling.min_eos_p` is set the last token is the end.
        temperatures: The rows'.
        uniform: One random number a row, [rows].
        sampling: The stage's.

    Returns:
        Token indices, [rows]: the inverse of the cumulative distribution at `uniform`.
    """
    logits = logits.float()
    if temperatures.all_greedy:
        chosen = logits.argmax(-1)
    else:
        chosen = _sample(logits / temperatures.scale, uniform, sampling)
        if temperatures.greedy is not None:
            chosen = torch.where(temperatures.greedy, logits.argmax(-1), chosen)
    if sampling.min_eos_p is not None:
        ends = torch.softmax(logits, -1)[:, -1] > sampling.min_eos_p
        chosen = torch.where(ends, logits.shape[-1] - 1, chosen)
    return chosen


def _sample(scores: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    size = scores.shape[-1]
    order: Tensor | None = None
    if sampling.top_p < 1 or 0 < sampling.top_k < size:
        scores, order = torch.topk(scores, min(sampling.top_k or size, size))
    weights = torch.softmax(scores, -1)
    sums = weights.cumsum(-1)
    if sampling.top_p < 1:
        weights = weights * (sums - weights < sampling.top_p)
        sums = weights.cumsum(-1)
    place = (sums <= uniform[:, None] * sums[:, -1:]).sum(-1).clamp_(max=sums.shape[-1] - 1)
    return place if order is None else order.gather(-1, place[:, None])[:, 0]


def pick_frames(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """The same for the frames of one row, all at one temperature and from all tokens: [frames]."""
    logits = logits.float()
    if not temperature:
        return logits.argmax(-1)
    sums = torch.softmax(logits / temperature, -1).cumsum(-1)
    return (sums <= uniform[:, None] * sums[:, -1:]).sum(-1).clamp_(max=logits.shape[-1] - 1)
