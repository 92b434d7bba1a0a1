"""One text request on its way through a decoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs import FinishReason, TextJob
from models.text.detokenize import Detokenizer, StopFinder
from models.text.sampling import Sampling


@dataclass(eq=False, slots=True, kw_only=True)
class Row:
    job: TextJob
    prompt: list[int]
    sampling: Sampling
    text: Detokenizer
    stops: StopFinder
    slot: int | None = None
    written: int = 0
    """Tokens whose keys and values are in the cache."""
    tokens: list[int] = field(default_factory=list[int])
    """Chosen so far, an end-of-sequence token included."""
    shown: list[str] = field(default_factory=list[str])
    finish_reason: FinishReason | None = None
    tainted: bool = False
    """Its numbers were not finite: its slot must be wiped."""

    @property
    def to_prefill(self) -> int:
        return len(self.prompt) - 1 - self.written

    @property
    def newest(self) -> int:
        return self.tokens[-1] if self.tokens else self.prompt[-1]
