"""Choosing the next token of many rows at once, each row by its own settings.

A row's choice is a function of its logits, its settings and (seed, step): never of its neighbours, because
rows are only ever put through operations that treat each row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 1024
"""The most likely tokens looked at first; only a row that needs more has its whole vocabulary sorted."""

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy, as in vLLM: float32 divides by none much smaller."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row chooses. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 mean all tokens."""

    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def filtered(self) -> bool:
        return self.top_p < 1 or self.top_k > 0


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for this step of this seed: SplitMix64 (Steele et al., 2014) as a counter."""
    mixed = _mixed((_mixed(seed & _MASK) + (step + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return (mixed >> 11) * 2.0**-53


def _mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def choose(logits: Tensor, rows: Sequence[Sampling], steps: Sequence[int]) -> list[int]:
    """The next token of each row. `logits` [rows, vocabulary]; `steps` counts each row's tokens so far."""
    greedy = torch.argmax(logits, dim=-1).tolist()
    plain = [i for i, row in enumerate(rows) if not row.greedy and not row.filtered]
    filtered = [i for i, row in enumerate(rows) if not row.greedy and row.filtered]
    for chosen, pick in ((plain, _pick_plain), (filtered, _pick_filtered)):
        if chosen:
            settings = [rows[i] for i in chosen]
            draws = [uniform(rows[i].seed, steps[i]) for i in chosen]
            tokens = pick(_probabilities(logits[chosen], settings), settings, draws)
            for i, token in zip(chosen, tokens, strict=True):
                greedy[i] = token
    return greedy


def _probabilities(logits: Tensor, rows: Sequence[Sampling]) -> Tensor:
    """Softmax at each row's temperature; the maximum is taken off first, so no temperature overflows.

    Before top-k and top-p, as in vLLM, tokens below `min_p` of the likeliest are left out.
    """
    logits = logits.float()
    temperatures = torch.tensor([row.temperature for row in rows], device=logits.device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures[:, None]
    if any(row.min_p > 0 for row in rows):
        least = torch.tensor([math.log(row.min_p) if row.min_p > 0 else -math.inf for row in rows])
        scaled = scaled.masked_fill(scaled < least.to(scaled)[:, None], -math.inf)
    return torch.softmax(scaled, dim=-1)


def _pick_plain(probabilities: Tensor, _: Sequence[Sampling], draws: Sequence[float]) -> list[int]:
    return _inverse(probabilities, draws).tolist()


def _pick_filtered(probabilities: Tensor, rows: Sequence[Sampling], draws: Sequence[float]) -> list[int]:
    """Top-k, then top-p over what is left, as transformers and vLLM do it; ranks are by probability."""
    vocabulary = probabilities.shape[-1]
    count = min(vocabulary, CANDIDATES)
    best, tokens = torch.topk(probabilities, count, dim=-1)
    picked = _pick_ranked(best, tokens, rows, draws)
    if count == vocabulary:
        return picked
    covered = best.sum(dim=-1).tolist()
    for i, row in enumerate(rows):
        if row.top_k > count or (row.top_k == 0 and covered[i] <= row.top_p):
            best, tokens = torch.sort(probabilities[i : i + 1], dim=-1, descending=True, stable=True)
            picked[i] = _pick_ranked(best, tokens, [row], [draws[i]])[0]
    return picked


def _pick_ranked(best: Tensor, tokens: Tensor, rows: Sequence[Sampling], draws: Sequence[float]) -> list[int]:
    """`best` [rows, n] falls along a row, `tokens` [rows, n] are its ids."""
    count = best.shape[-1]
    top_k = torch.tensor([row.top_k or count for row in rows], device=best.device)
    top_p = torch.tensor([row.top_p for row in rows], dtype=torch.float64, device=best.device)
    unlimited = torch.tensor([row.top_k == 0 for row in rows], device=best.device)
    ranks = torch.arange(count, device=best.device)
    kept = best.double().masked_fill(ranks >= top_k[:, None], 0.0)
    running = kept.cumsum(dim=-1)
    # With top-k the mass is what k tokens have; without it all tokens', which sum to 1.
    mass = torch.where(unlimited, torch.ones_like(top_p), running[:, -1])
    before = running - kept
    outside = before >= (top_p * mass)[:, None]
    outside[:, 0] = False
    ranked = _inverse(kept.masked_fill(outside, 0.0), draws)
    return tokens.gather(1, ranked[:, None])[:, 0].tolist()


def _inverse(weights: Tensor, draws: Sequence[float]) -> Tensor:
    """The first place where the running sum of `weights` [rows, n] passes `draws` of the row's total."""
    running = weights.double().cumsum(dim=-1)
    totals = running[:, -1:].contiguous()
    targets = torch.tensor(draws, dtype=torch.float64, device=weights.device)[:, None] * totals
    places = torch.searchsorted(running, targets, right=True)
    # A draw near 1 may round up to the total: then the last token that has any weight.
    last = torch.searchsorted(running, totals)
    return torch.minimum(places, last)[:, 0]
