"""How likely each chosen token was, and what else might have been chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jobs import Alternative, TokenLogprob

LEAST = -9999.0
"""Stands for minus infinity, which JSON has not."""


def logprob_of(
    logits: Tensor, token: int, top: int | None, token_text: Callable[[int], str]
) -> TokenLogprob | None:
    """`logits` [vocabulary] of one row; None when `top` is: nothing was asked for. Natural logarithms."""
    if top is None:
        return None
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, tokens = torch.topk(logprobs, min(top, logprobs.shape[-1]))
    others = zip(tokens.tolist(), values.tolist(), strict=True)
    return TokenLogprob(
        token=token_text(token),
        logprob=max(LEAST, float(logprobs[token])),
        top=tuple(Alternative(token=token_text(other), logprob=max(LEAST, value)) for other, value in others),
    )
