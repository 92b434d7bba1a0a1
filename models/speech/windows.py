"""Which tokens each stage reads and writes when: Bark's bookkeeping, as plain integers.

The formulas are those of `transformers.models.bark.modeling_bark` (`preprocess_histories` and the stages'
`generate`), for one utterance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.speech.generation import Rules
from models.speech.voices import Voice


@dataclass(frozen=True, slots=True)
class FineWindow:
    """One pass of the fine stage: reads `max_input` frames from `start`, writes those from `fill` on."""

    start: int
    fill: int

    @property
    def offset(self) -> int:
        """Where in the window the written frames begin."""
        return self.fill - self.start


def coarse_count(semantic_count: int, rules: Rules) -> int:
    """Coarse tokens (all codebooks) that `semantic_count` semantic tokens become.

    In float32 as in transformers, whose floor may fall on the other side of a whole number in float64.
    """
    frames = torch.floor(torch.tensor(semantic_count) * rules.coarse_per_semantic / rules.coarse.codebooks)
    return int(torch.round(frames * rules.coarse.codebooks))


def coarse_history(voice: Voice | None, rules: Rules) -> tuple[list[int], list[int]]:
    """The semantic and coarse tokens of the voice that the coarse stage goes on from."""
    if voice is None:
        return [], []
    semantic: list[int] = voice.semantic.tolist()
    offsets = torch.arange(voice.coarse.shape[0])[:, None] * rules.codebook_size + rules.semantic.vocab_size
    coarse: list[int] = (voice.coarse + offsets).T.reshape(-1).tolist()
    ratio = rules.coarse_per_semantic
    kept = min(
        rules.max_semantic_history,
        len(semantic) - len(semantic) % 2,
        math.floor(len(coarse) / ratio),
    )
    # The last frame is dropped: Bark's own alignment of the two in time.
    return semantic[-kept:], coarse[-round(kept * ratio) :][:-2]


def coarse_prompt(
    semantic: Sequence[int], history: int, coarse: Sequence[int], generated: int, rules: Rules
) -> list[int]:
    """What a coarse window reads.

    Args:
        semantic: Semantic tokens, the voice's first.
        history: How many of them are the voice's.
        coarse: Coarse tokens, the voice's first.
        generated: How many of them are not the voice's.
        rules: The checkpoint's.
    """
    start = _first_read(history, generated, rules)
    read = list(semantic[start : start + rules.coarse.max_semantic])
    read += [rules.coarse.pad_token] * (rules.coarse.max_semantic - len(read))
    prompt = [*read, rules.coarse.infer_token, *coarse[-rules.coarse.max_history :]]
    masked = rules.coarse.masked_token
    # Transformers masks such a token and counts no position for it, so it may as well not be there.
    return prompt if masked is None else [token for token in prompt if token != masked]


def coarse_ready(semantic: int, history: int, generated: int, rules: Rules) -> bool:
    """Whether a coarse window is the same whatever semantic tokens are yet to come.

    It reads no later ones, and those that are there already become all that it writes.

    Args:
        semantic: How many semantic tokens there are, without the voice's.
        history: How many the voice has.
        generated: Coarse tokens made before the window.
        rules: The checkpoint's.
    """
    read = _first_read(history, generated, rules) + rules.coarse.max_semantic
    return history + semantic >= read and coarse_count(semantic, rules) >= generated + rules.coarse.window


def _first_read(history: int, generated: int, rules: Rules) -> int:
    """Where the semantic tokens begin that a coarse window reads, the voice's counted."""
    place = history + round(generated / rules.coarse_per_semantic)
    return max(0, place - rules.max_semantic_history)


def fine_windows(history: int, frames: int, rules: Rules) -> list[FineWindow]:
    """The passes over `history` frames of the voice and `frames` of the utterance, padded to `max_input`."""
    longest, stride = rules.fine.max_input, rules.fine.max_history
    total = max(history + frames, longest)
    count = max(0, math.ceil((frames - (longest - history)) / stride)) + 1
    return [
        FineWindow(start=min(n * stride, total - longest), fill=min(history + n * stride, total - stride))
        for n in range(count)
    ]
