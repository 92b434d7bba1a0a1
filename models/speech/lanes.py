"""The lanes of Bark: what one engine step of each computes for the utterances that are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from jobs import ErrorKind, JobError
from models.speech.encode import bound_peak
from models.speech.generation import Rules
from models.speech.slots import CPU_ROWS
from models.speech.stages import CoarseStage, Codec, FineStage, SemanticStage, TokenStage, Turn, bank_length
from models.speech.transformer import SlotBank
from models.speech.utterance import Stage, Utterance

STEP_S = 0.025
"""What a step of a token-making lane should take: soon over for a cancel, long enough to be worth it."""
MAX_TOKENS_PER_STEP = 10
SLOWER = 1.05
"""How much slower than the last one a step may show the machine to be."""

Commit = Callable[[], None]
"""Enters what was computed into an utterance; cannot fail."""


def batched(stage: Stage) -> bool:
    """Whether the utterances at a stage share a forward."""
    return stage in (Stage.SEMANTIC, Stage.COARSE)


@dataclass(frozen=True, slots=True)
class Bank:
    """The slots that share a forward, of both token-making stages."""

    semantic: SlotBank
    coarse: SlotBank


@dataclass(slots=True)
class Lanes:
    """A loaded model's stages and slots. `run` computes a step and changes no utterance; its commits do."""

    rules: Rules
    semantic: SemanticStage
    coarse: CoarseStage
    fine: FineStage
    codec: Codec
    banks: list[Bank]
    rows: int
    """Slots a bank."""
    tokens: dict[Stage, int] = field(default_factory=lambda: {Stage.SEMANTIC: 2, Stage.COARSE: 2})
    """Tokens a step of a token-making lane; even, so that the two coarse codebooks keep their turns."""
    _pair_s: dict[Stage, float] = field(default_factory=dict[Stage, float])
    """Seconds that two tokens of a stage take."""

    @classmethod
    def of(cls, model: Any, rules: Rules, max_rows: int) -> Lanes:
        """Takes a `BarkModel` apart and makes slots for at least `max_rows` rows."""
        semantic, coarse = (
            SemanticStage(model.semantic, rules.semantic),
            CoarseStage(model.coarse_acoustics, rules),
        )
        rows = CPU_ROWS if semantic.transformer.device.type == "cpu" else max_rows
        banks = [
            Bank(
                semantic.transformer.make_bank(rows, bank_length(rules.semantic)),
                coarse.transformer.make_bank(rows, bank_length(rules.coarse)),
            )
            for _ in range(-(-max_rows // rows))
        ]
        return cls(
            rules,
            semantic,
            coarse,
            FineStage(model.fine_acoustics, rules),
            Codec(model.codec_model),
            banks,
            rows,
        )

    def budget(self, stage: Stage) -> int:
        """Rows that one step takes. What runs row by row has nothing to gain from company."""
        return self.rows if batched(stage) else 1

    def beside(self, stage: Stage) -> bool:
        """Whether a stage's steps run next to those of another: on a CPU, where token-making steps are too
        small for more than one core, the two that make sound of tokens, row by row."""
        return stage in (Stage.FINE, Stage.CODEC) and self.semantic.transformer.device.type == "cpu"

    @torch.inference_mode()
    def run(self, stage: Stage, bank: Bank, slots: Sequence[int], rows: Sequence[Utterance]) -> list[Commit]:
        """One step of a lane: `rows` are in `slots` of `bank`.

        Raises:
            torch.OutOfMemoryError: fewer rows may do.
            JobError: the codec made no sound of a row.
        """
        match stage:
            case Stage.SEMANTIC_PREFILL:
                for slot, row in zip(slots, rows, strict=True):
                    history = row.voice.semantic if row.voice else None
                    self.semantic.prefill(bank.semantic, slot, row.text, history)
                return [row.apply_prefill for row in rows]
            case Stage.SEMANTIC:
                count = self.tokens[stage]
                turns = [row.semantic_turn(slot, count) for slot, row in zip(slots, rows, strict=True)]
                made = self._timed(stage, self.semantic, bank.semantic, turns)
                return [partial(row.apply_semantic, tokens) for row, tokens in zip(rows, made, strict=True)]
            case Stage.COARSE_PREFILL:
                for slot, row in zip(slots, rows, strict=True):
                    self.coarse.prefill(bank.coarse, slot, row.coarse_prefill_prompt())
                return [row.apply_prefill for row in rows]
            case Stage.COARSE:
                count = self.tokens[stage]
                turns = [row.coarse_turn(slot, count) for slot, row in zip(slots, rows, strict=True)]
                made = self._timed(stage, self.coarse, bank.coarse, turns)
                return [partial(row.apply_coarse, tokens) for row, tokens in zip(rows, made, strict=True)]
            case Stage.FINE:
                return [partial(row.apply_fine, self.fine.predict(row.fine_pass())) for row in rows]
            case Stage.CODEC:
                return [self._decode(row) for row in rows]
            case Stage.DONE:
                return []

    def _decode(self, row: Utterance) -> Commit:
        try:
            sound = bound_peak(self.codec.decode(row.codec_codes()).numpy())
        except ValueError as error:
            message = "The model made a sound that cannot be played; try another seed."
            raise JobError(ErrorKind.INTERNAL, message) from error
        return partial(row.apply_codec, sound)

    def _timed(
        self, stage: Stage, module: TokenStage, slots: SlotBank, turns: Sequence[Turn]
    ) -> list[list[int]]:
        """Decodes, and notes how long it took: the number of tokens a step follows what the machine does now.

        A short time counts at once and a long one little by little, for it may be another process's doing.
        The tokens themselves do not depend on the pace.
        """
        count = self.tokens[stage]
        begin = time.perf_counter()
        made = module.decode(slots, turns, count)
        self._note(stage, 2 * (time.perf_counter() - begin) / count)
        return made

    def _note(self, stage: Stage, pair_s: float) -> None:
        pair_s = min(pair_s, SLOWER * self._pair_s.get(stage, pair_s))
        self._pair_s[stage] = pair_s
        self.tokens[stage] = min(2 * max(1, int(STEP_S / pair_s)), MAX_TOKENS_PER_STEP)

    @torch.inference_mode()
    def record(self) -> None:
        """Records the decodes of every bank, where they are recorded."""
        for bank in self.banks:
            for stage, slots in ((self.semantic, bank.semantic), (self.coarse, bank.coarse)):
                if (recording := stage.recording(slots)) is not None:
                    recording.record_all()

    @torch.inference_mode()
    def set_pace(self) -> None:
        """Measures the token-making stages with every slot in use, the best of a few."""
        bank = self.banks[0]
        for stage, module, slots, token in (
            (Stage.SEMANTIC, self.semantic, bank.semantic, self.rules.semantic.infer_token),
            (Stage.COARSE, self.coarse, bank.coarse, self.rules.coarse.infer_token),
        ):
            uniform = (0.5,) * MAX_TOKENS_PER_STEP
            turns = [Turn(slot, token, slots.length // 2, 1.0, uniform) for slot in range(self.rows)]
            for _ in range(3):
                few = [replace(turn, uniform=uniform[: self.tokens[stage]]) for turn in turns]
                self._timed(stage, module, slots, few)
