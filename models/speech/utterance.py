"""One utterance on its way through the stages: which lane it is in, and what it has made so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.speech.generation import Rules
from models.speech.sampling import draws
from models.speech.stages import FinePass, Turn
from models.speech.voices import Voice
from models.speech.windows import (
    FineWindow,
    coarse_count,
    coarse_history,
    coarse_prompt,
    coarse_ready,
    fine_windows,
)

MIN_CARRIED = 2
"""Semantic tokens that a voice needs."""
EMPTY_S = 0.1
"""Silence in place of an utterance that the model ends before it begins: not every format can be empty."""


class Stage(StrEnum):
    """What an utterance needs next; each is a lane of the engine."""

    SEMANTIC_PREFILL = "semantic prefill"
    SEMANTIC = "semantic"
    COARSE_PREFILL = "coarse prefill"
    COARSE = "coarse"
    FINE = "fine"
    CODEC = "codec"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Utterance:
    """A piece of text in a voice. `apply_...` commit what a stage has made, and choose the next stage.

    A coarse window begins as soon as all that it reads is there. The semantic stage, whose slot is another
    one, goes on after it.
    """

    rules: Rules
    text: Tensor
    """The semantic prompt, [max_text]."""
    voice: Voice | None
    temperature: float
    """Of the semantic and the coarse stage; 0 is greedy, and makes the fine stage greedy too."""
    seed: int
    number: int
    """Its place in the job: each utterance draws its own random numbers."""
    pause_s: float = 0.0
    """Silence after it, where another one follows."""
    stage: Stage = Stage.SEMANTIC_PREFILL
    semantic: list[int] = field(default_factory=list[int])
    coarse: list[int] = field(default_factory=list[int])
    """Coarse tokens, the voice's first."""
    codes: Tensor | None = None
    """All codebooks of the voice's last frames and the utterance's, padded: [frames, codebooks]."""
    sound: NDArray[np.float32] | None = None
    """What was made of it, float32 [samples]."""
    _semantic_uniform: list[float] = field(default_factory=list[float])
    _coarse_uniform: list[float] = field(default_factory=list[float])
    _voice_semantic: list[int] = field(default_factory=list[int])
    _voice_coarse: int = 0
    _coarse_total: int | None = None
    """Coarse tokens it becomes; None until the semantic stage has ended."""
    _prompt: list[int] = field(default_factory=list[int])
    """The prompt of the coarse window at hand, with what was written after it: what the slot holds."""
    _window_end: int = 0
    _voice_frames: int = 0
    _frames: int = 0
    _passes: list[tuple[FineWindow, int]] = field(default_factory=list[tuple[FineWindow, int]])

    def __post_init__(self) -> None:
        longest = self.rules.semantic.max_tokens
        self._semantic_uniform = self._draw("semantic", longest)
        self._coarse_uniform = self._draw("coarse", coarse_count(longest, self.rules))

    def _draw(self, stage: str, count: int) -> list[float]:
        return draws(count, self.seed, self.number, stage).tolist()

    def _turn(self, slot: int, last: int, position: int, uniform: list[float], count: int) -> Turn:
        uniform = uniform + [0.0] * (count - len(uniform))  # beyond the end, where nothing is kept
        return Turn(slot, last, position, self.temperature, uniform)

    def apply_prefill(self) -> None:
        if self.stage is Stage.COARSE_PREFILL:
            self.stage = Stage.COARSE
            return
        self._voice_semantic, self.coarse = coarse_history(self.voice, self.rules)
        self._voice_coarse = len(self.coarse)
        self.stage = Stage.SEMANTIC

    # --- semantic -------------------------------------------------------------------------------------------

    def semantic_turn(self, slot: int, count: int) -> Turn:
        made = len(self.semantic)
        last = self.semantic[-1] if made else self.rules.semantic.infer_token
        uniform = self._semantic_uniform[made : made + count]
        return self._turn(slot, last, self.rules.semantic.max_text + made, uniform, count)

    def apply_semantic(self, tokens: list[int]) -> None:
        rules = self.rules.semantic
        tokens = tokens[: rules.max_tokens - len(self.semantic)]
        ended = rules.vocab_size in tokens
        self.semantic += tokens[: tokens.index(rules.vocab_size)] if ended else tokens
        if ended or len(self.semantic) >= rules.max_tokens:
            self._coarse_total = coarse_count(len(self.semantic), self.rules)
        self._go_on()

    # --- coarse ---------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Chooses the stage after a semantic step, and after a coarse window."""
        if self._coarse_total == 0:
            self._end(np.zeros(round(EMPTY_S * self.rules.sample_rate), np.float32))
            return
        made = self.coarse_made
        if made == self._coarse_total:
            self._begin_fine()
        elif self._coarse_total is not None or coarse_ready(
            len(self.semantic), len(self._voice_semantic), made, self.rules
        ):
            self._begin_window()
        else:
            self.stage = Stage.SEMANTIC

    @property
    def coarse_made(self) -> int:
        return len(self.coarse) - self._voice_coarse

    def _begin_window(self) -> None:
        made = self.coarse_made
        end = made + self.rules.coarse.window
        self._window_end = end if self._coarse_total is None else min(end, self._coarse_total)
        semantic = self._voice_semantic + self.semantic
        prompt = coarse_prompt(semantic, len(self._voice_semantic), self.coarse, made, self.rules)
        # As long as nothing has left the window's view, the next one only goes on: its keys are there.
        self.stage = Stage.COARSE if prompt == self._prompt else Stage.COARSE_PREFILL
        self._prompt = prompt

    def coarse_prefill_prompt(self) -> list[int]:
        """All but the last token, which the first decoding step reads."""
        return self._prompt[:-1]

    def coarse_turn(self, slot: int, count: int) -> Turn:
        uniform = self._coarse_uniform[self.coarse_made : self.coarse_made + count]
        return self._turn(slot, self._prompt[-1], len(self._prompt) - 1, uniform, count)

    def apply_coarse(self, tokens: list[int]) -> None:
        tokens = tokens[: self._window_end - self.coarse_made]
        self.coarse += tokens
        self._prompt += tokens
        if self.coarse_made >= self._window_end:
            self._go_on()

    # --- fine -----------------------------------------------------------------------------------------------

    def _begin_fine(self) -> None:
        rules = self.rules
        made = torch.tensor(self.coarse[self._voice_coarse :]).view(-1, rules.coarse.codebooks)
        made = torch.remainder(made - rules.semantic.vocab_size, rules.codebook_size)
        self._frames = len(made)
        past = torch.zeros(0, rules.fine.codebooks, dtype=torch.long)
        if self.voice is not None:
            past = self.voice.fine.T[-rules.fine.max_history :]
        self._voice_frames = len(past)
        length = max(self._voice_frames + self._frames, rules.fine.max_input)
        self.codes = torch.full((length, rules.fine.codebooks), rules.codebook_size)
        self.codes[: self._voice_frames] = past
        end = self._voice_frames + self._frames
        self.codes[self._voice_frames : end, : rules.coarse.codebooks] = made
        self._passes = [
            (window, codebook)
            for window in fine_windows(self._voice_frames, self._frames, rules)
            for codebook in range(rules.coarse.codebooks, rules.fine.codebooks)
        ]
        self._prompt = []
        self.stage = Stage.FINE if self._passes else Stage.CODEC

    @property
    def passes_left(self) -> int:
        return len(self._passes)

    def fine_pass(self) -> FinePass:
        rules = self.rules.fine
        window, codebook = self._passes[0]
        count = rules.max_input - window.offset
        return FinePass(
            codes=self._all_codes()[window.start : window.start + rules.max_input],
            codebook=codebook,
            offset=window.offset,
            temperature=rules.temperature if self.temperature else 0.0,
            uniform=draws(count, self.seed, self.number, "fine", window.start, codebook),
        )

    def apply_fine(self, codes: Tensor) -> None:
        window, codebook = self._passes.pop(0)
        self._all_codes()[window.fill : window.fill + len(codes), codebook] = codes
        if not self._passes:
            self.stage = Stage.CODEC

    # --- codec ----------------------------------------------------------------------------------------------

    def codec_codes(self) -> Tensor:
        """The utterance's own frames, [codebooks, frames]."""
        return self._all_codes()[self._voice_frames : self._voice_frames + self._frames].T

    def _all_codes(self) -> Tensor:
        if self.codes is None:
            raise RuntimeError("the coarse stage has not ended")
        return self.codes

    def apply_codec(self, sound: NDArray[np.float32]) -> None:
        self._end(sound)

    def _end(self, sound: NDArray[np.float32]) -> None:
        self.sound = sound
        self.stage = Stage.DONE

    def carried_voice(self) -> Voice | None:
        """The voice it was said in, for those after it: without a preset each would else have another one."""
        if self.voice is not None or self.codes is None or len(self.semantic) < MIN_CARRIED:
            return self.voice
        codes = self.codec_codes()
        coarse = codes[: self.rules.coarse.codebooks]
        return Voice("carried on", torch.tensor(self.semantic), coarse.clone(), codes.clone())

    # --- progress -------------------------------------------------------------------------------------------

    def done_share(self) -> float:
        """About how much of the work is done, 0 to 1; how long the speech gets shows only later."""
        later = {Stage.FINE: 0.85, Stage.CODEC: 0.95, Stage.DONE: 1.0}.get(self.stage)
        if later is not None:
            return later
        made, total = len(self.semantic), self._coarse_total
        expected = made
        if total is None:
            spoken = int((self.text != self.rules.semantic.text_pad_token).sum())
            expected = max(made, min(8 * spoken, self.rules.semantic.max_tokens))
            total = coarse_count(expected, self.rules)
        return 0.35 * made / max(expected, 1) + 0.5 * self.coarse_made / max(total, 1)
