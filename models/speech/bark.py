"""Bark on the step engine: a voice, a temperature, a seed and a length per row, stage by stage.

A row says its utterances one after another. An utterance goes through the lanes `semantic prefill`,
`semantic`, `coarse prefill`, `coarse`, `fine` and `codec`, and shares each with the rows that are there.
Token-making forwards always have the same shape in rows, and what cannot be batched bit for bit runs row by
row, so a row's sound is the same, byte for byte, in any company.

A job's temperature is that of the semantic and the coarse stage (0: greedy, the fine stage too); the fine
stage's own, `top_k`, `top_p` and `min_eos_p` are the checkpoint's. An utterance's sound is bounded by Bark's
`max_new_tokens` of semantic tokens (768 at 49.9 a second: 15.4 s), a job's by `text.MAX_PIECES` of those.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer, BarkModel

from jobs import Event, SpeechJob, SpeechResult
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.speech.encode import encode_audio, media_type
from models.speech.generation import Rules, read_rules
from models.speech.lanes import Lanes
from models.speech.rows import Row
from models.speech.text import Prompts
from models.speech.utterance import Stage, Utterance
from models.speech.voices import Voices

WARM_UP_TOKENS = 4


class Bark:
    """`protocol.Model` for any Bark checkpoint in the hub's layout."""

    def __init__(self, name: str, lanes: Lanes, prompts: Prompts, voices: Voices, *, max_rows: int) -> None:
        """`load` is the usual way here.

        Args:
            name: The model's, as lanes and results say it.
            lanes: Stages and slots, for at least `max_rows` rows.
            prompts: Makes tokens of text.
            voices: Those there are.
            max_rows: Rows in flight.
        """
        self.name = name
        self.rules: Rules = lanes.rules
        self.voices = voices
        self._prompts = prompts
        self._lanes = lanes
        self._free = list(range(max_rows))

    def prepare(self, job: SpeechJob) -> Row:
        """Checks text and voice, tokenises.

        Raises:
            JobError: there is nothing to say, too much to say, or no such voice.
        """
        voice = self.voices.get(job.voice)
        utterances = [
            Utterance(self.rules, prompt, voice, job.temperature, job.seed, number)
            for number, prompt in enumerate(self._prompts.make(job.text))
        ]
        return Row(job, utterances, self.rules.sample_rate)

    def reserve(self, row: Row) -> bool:
        """Takes the lowest free slot: attention reads only up to the last one in use."""
        if not self._free:
            return False
        row.slot = heapq.heappop(self._free)
        return True

    def lane(self, row: Row) -> Lane | None:
        current = row.current
        if current is None:
            return None
        return Lane(self.name, current.stage, (_slot(row) // self._lanes.rows,))

    def cost(self, row: Row) -> float:  # noqa: ARG002 (every row of a lane costs the same)
        return 1.0

    def budget(self, lane: Lane) -> float:
        return float(self._lanes.budget(Stage(lane.stage)))

    def step(self, lane: Lane, rows: Sequence[Row]) -> list[list[Event]]:
        """One forward of the lane; in a token-making one it makes a few tokens a row, about 25 ms of them.

        Raises:
            OutOfMemoryError: fewer rows may do; no row has changed.
            JobError: a row's sound is not one; no row has changed.
        """
        lanes = self._lanes
        utterances = [row.utterances[row.spoken] for row in rows]
        slots = [_slot(row) % lanes.rows for row in rows]
        try:
            commits = lanes.run(Stage(lane.stage), lanes.banks[lane.shape[0]], slots, utterances)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{lane.stage} with {len(rows)} rows") from error
        for commit in commits:
            commit()
        return [row.advance() for row in rows]

    def finish(self, row: Row) -> SpeechResult:
        job, sound = row.job, row.sound()
        return SpeechResult(
            model=self.name,
            seed=job.seed,
            data=b"" if job.stream else encode_audio(sound, row.sample_rate, job.response_format),
            media_type=media_type(job.response_format),
            sample_rate=row.sample_rate,
            duration_s=len(sound) / row.sample_rate,
        )

    def release(self, row: Row) -> None:
        if row.slot is not None:
            heapq.heappush(self._free, row.slot)
            row.slot = None

    def warm_up(self) -> None:
        """Says a few tokens through all stages, then sets how many tokens a step makes here."""
        short = replace(self.rules, semantic=replace(self.rules.semantic, max_tokens=WARM_UP_TOKENS))
        prompt = torch.full((short.semantic.max_text,), short.semantic.text_pad_token)
        utterance = Utterance(short, prompt, self.voices.get(None), 0.7, 0, 0)
        while utterance.stage is not Stage.DONE:
            for commit in self._lanes.run(utterance.stage, self._lanes.banks[0], [0], [utterance]):
                commit()
        self._lanes.set_pace()


def load(spec: ModelSpec) -> Bark:
    """Loads a Bark checkpoint from a folder in the hub's layout; opens no network connection.

    Raises:
        OSError: a file is missing or broken.
        ValueError: the files do not fit together, or a precision is asked for that there is not.
    """
    if spec.quantization is not None:
        raise ValueError(
            f"{spec.name}: speech runs in float32, bfloat16 or float16; leave the quantization out"
        )
    model: Any = BarkModel.from_pretrained(
        spec.folder, dtype=getattr(torch, spec.dtype), attn_implementation="eager", local_files_only=True
    )
    model.to(spec.device).eval().requires_grad_(False)
    rules = read_rules(model.config, model.generation_config)
    tokenizer: Any = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True)
    lanes = Lanes.of(model, rules, spec.max_rows)
    prompts = Prompts(tokenizer, spec.folder, rules.semantic)
    return Bark(spec.name, lanes, prompts, Voices(spec.folder, rules), max_rows=spec.max_rows)


def _slot(row: Row) -> int:
    if row.slot is None:
        raise RuntimeError("the row has no slot: reserve it first")
    return row.slot
