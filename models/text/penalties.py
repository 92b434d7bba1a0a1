"""Penalties for tokens that were there before, as vLLM has them: a row's past alone changes its logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Past:
    """The tokens of one row that count, and for how much."""

    repetition: float
    """Over 1 makes tokens of the prompt and the text less likely, below 1 more."""
    presence: float
    frequency: float
    prompt: frozenset[int]
    text: Counter[int] = field(default_factory=Counter[int])

    @property
    def counts(self) -> bool:
        return self.repetition != 1 or self.presence != 0 or self.frequency != 0


def penalise(logits: Tensor, pasts: Sequence[Past]) -> Tensor:
    """`logits` [rows, vocabulary] -> the same, with the rows that have penalties changed.

    A token seen has its logit divided by `repetition` when above zero, else multiplied; then a token of the
    text loses `presence` once and `frequency` for each time (Keskar et al., 2019; OpenAI's API reference).
    """
    if not any(past.counts for past in pasts):
        return logits
    changed = logits.float().clone()
    for row, past in enumerate(pasts):
        if past.counts:
            _penalise(changed[row], past)
    return changed


def _penalise(logits: Tensor, past: Past) -> None:
    if past.repetition != 1:
        seen = torch.tensor(sorted(past.prompt | past.text.keys()), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / past.repetition, values * past.repetition)
    if past.text and (past.presence or past.frequency):
        tokens = torch.tensor(list(past.text), device=logits.device)
        times = torch.tensor(list(past.text.values()), dtype=logits.dtype, device=logits.device)
        logits[tokens] -= past.presence + past.frequency * times
