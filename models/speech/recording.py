"""A decode that is recorded once and played again: on a GPU one launch in the place of some hundreds.

A CUDA graph reads and writes fixed memory, so what differs from step to step is copied into buffers first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.speech.transformer import CausalTransformer, DecodePlan, SlotBank

Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Runs a function of fixed memory; gives its result's memory, and what fills that anew."""

WARM_UPS = 2
"""Runs before a recording: libraries set up what they need in the first, which cannot be recorded."""


def cuda_graph(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """A `Recorder`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()
    return made, graph.replay


@dataclass(frozen=True, slots=True)
class _Kept:
    tokens: Tensor
    plan: DecodePlan
    made: Tensor
    play: Callable[[], None]


class Recording:
    """The decodes of one bank, all slots in each: one recording for each number of keys that they read."""

    def __init__(self, transformer: CausalTransformer, bank: SlotBank, recorder: Recorder) -> None:
        self._transformer = transformer
        self._bank = bank
        self._recorder = recorder
        self._kept: dict[int, _Kept] = {}

    def decode(self, tokens: Tensor, plan: DecodePlan, turn: int) -> Tensor:
        """As `CausalTransformer.decode`, for a plan of all slots; what it gives lasts until the next one."""
        kept = self._kept.get(plan.keys) or self._record(plan)
        kept.tokens.copy_(tokens)
        kept.plan.positions.copy_(plan.positions[turn : turn + 1])
        kept.plan.masks.copy_(plan.masks[turn : turn + 1])
        kept.plan.writes.copy_(plan.writes[turn : turn + 1])
        kept.play()
        return kept.made

    def record_all(self) -> None:
        """Every length there is, so that none is recorded while somebody waits."""
        for keys in set(self._bank.key_counts) - self._kept.keys():
            self._record(self._transformer.plan(self._bank, {0: keys - 1}, 1))

    def _record(self, plan: DecodePlan) -> _Kept:
        """What is written while it is recorded goes to the slots' scratch positions."""
        nowhere = self._transformer.plan(self._bank, {0: plan.keys - 1}, 1, writes=False)
        tokens = torch.zeros(self._bank.slots, dtype=torch.int64, device=self._transformer.device)
        made, play = self._recorder(lambda: self._transformer.decode(self._bank, tokens, nowhere, 0))
        kept = self._kept[plan.keys] = _Kept(tokens, nowhere, made, play)
        return kept
