"""Bark on the step engine: a voice, a temperature, a seed and a length per row, stage by stage.

A row says its utterances in turn, up to four of them at once. An utterance goes through the lanes
`semantic prefill`, `semantic`, `coarse prefill`, `coarse`, `fine` and `codec`, and shares each with those
that are there. Token-making forwards always have the same shape in rows, and what cannot be batched bit for
bit, or gains nothing from it, runs row by row: so a row's sound is the same, byte for byte, in any company.

A job's temperature is that of the semantic and the coarse stage (0: greedy, the fine stage too); the fine
stage's own, `top_k`, `top_p` and `min_eos_p` are the checkpoint's. An utterance's sound is bounded by Bark's
`max_new_tokens` of semantic tokens (768 at 49.9 a second: 15.4 s), a job's by `text.MAX_PIECES` of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BarkConfig, BarkModel, GenerationConfig

from jobs import Event, SpeechJob, SpeechResult
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.quantize import quantize
from models.speech.encode import media_type, rate_of
from models.speech.generation import Rules, read_rules
from models.speech.lanes import Lanes, batched
from models.speech.language import guess_language
from models.speech.output import Output
from models.speech.rows import Row
from models.speech.slots import SlotPool
from models.speech.text import Prompts
from models.speech.utterance import Stage, Utterance
from models.speech.voices import Voice, Voices

WARM_UP_TOKENS = 4
GREEDY_BELOW = 1e-5
"""A temperature below this is greedy: float32 divides by none much smaller."""


class Bark:
    """`protocol.Model` for any Bark checkpoint in the hub's layout."""

    def __init__(
        self,
        name: str,
        lanes: Lanes,
        prompts: Prompts,
        voices: Voices,
        *,
        max_rows: int,
        loudness_lufs: float | None = None,
    ) -> None:
        """`load` is the usual way here.

        Args:
            name: The model's, as lanes and results say it.
            lanes: Stages and slots, for at least `max_rows` rows.
            prompts: Makes tokens of text.
            voices: Those there are.
            max_rows: Utterances in flight.
            loudness_lufs: What sound is levelled to; None leaves it as it is.
        """
        self.name = name
        self.rules: Rules = lanes.rules
        self.voices = voices
        self._prompts = prompts
        self._lanes = lanes
        self._slots = SlotPool(max_rows, lanes.rows)
        self._loudness_lufs = loudness_lufs

    def prepare(self, job: SpeechJob) -> Row:
        """Checks text and voice, tokenises.

        Raises:
            JobError: there is nothing to say, too much to say, or no such voice or language.
        """
        voice, language = self._voice_of(job)
        temperature = job.temperature if job.temperature >= GREEDY_BELOW else 0.0
        utterances = [
            Utterance(self.rules, prompt.tokens, voice, temperature, job.seed, number, prompt.pause_s)
            for number, prompt in enumerate(self._prompts.make(job.text, language))
        ]
        rate = rate_of(job.response_format, job.sample_rate or self.rules.sample_rate)
        output = Output(
            job.response_format,
            self.rules.sample_rate,
            rate,
            loudness_lufs=self._loudness_lufs,
            streamed=job.stream,
        )
        return Row(job, utterances, output, rate)

    def _voice_of(self, job: SpeechJob) -> tuple[Voice | None, str]:
        """The voice and the language of a job, each by the other where only one of them is given."""
        voices = self.voices
        if job.voice_file is not None:
            language = job.language or guess_language(job.text, voices.spoken())
            return voices.of_file(job.voice_file, language), language
        if job.voice is not None:
            voice = voices.get(job.voice)
            return voice, job.language or (voice.language if voice else voices.spoken()[0])
        language = job.language or guess_language(job.text, voices.spoken())
        return voices.get(voices.in_language(language)), language

    def reserve(self, row: Row) -> bool:
        """Takes a slot for the row's first utterance; others follow as there is room."""
        taken = self._slots.take()
        if taken is None:
            return False
        row.bank, slot = taken
        row.begin(slot)
        return True

    def _widen(self, row: Row) -> None:
        """Takes slots for more of the row's utterances; all but the first leave room for another row."""
        bank = _bank(row)
        while row.wanted > 0 and (self._slots.free_in(bank) > 1 or not row.slots):
            taken = self._slots.take(bank)
            if taken is None:
                return
            row.begin(taken[1])

    def lane(self, row: Row) -> Lane | None:
        stage = row.stage
        if stage is None:
            return None
        return Lane(self.name, stage, (_bank(row),), beside=self._lanes.beside(stage))

    def cost(self, row: Row) -> float:
        """Its utterances that share the next step."""
        stage = row.stage
        return 1.0 if stage is None or not batched(stage) else float(len(row.at(stage)))

    def budget(self, lane: Lane) -> float:
        return float(self._lanes.budget(Stage(lane.stage)))

    def step(self, lane: Lane, rows: Sequence[Row]) -> list[list[Event]]:
        """One forward of the lane; in a token-making one it makes a few tokens a row, about 25 ms of them.

        Raises:
            OutOfMemoryError: fewer rows may do; no row has changed.
            JobError: a row's sound is not one; no row has changed.
        """
        stage = Stage(lane.stage)
        there = [each for row in rows for each in (row.at(stage) if batched(stage) else row.at(stage)[:1])]
        slots, utterances = [slot for slot, _ in there], [utterance for _, utterance in there]
        try:
            commits = self._lanes.run(stage, self._lanes.banks[lane.shape[0]], slots, utterances)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{lane.stage} with {len(rows)} rows") from error
        for commit in commits:
            commit()
        return [self._advanced(row) for row in rows]

    def _advanced(self, row: Row) -> list[Event]:
        freed, events = row.advance()
        for slot in freed:
            self._slots.give_back(_bank(row), slot)
        self._widen(row)
        return events

    def finish(self, row: Row) -> SpeechResult:
        job = row.job
        data = b"" if job.stream else row.encode()
        return SpeechResult(
            model=self.name,
            seed=job.seed,
            data=data,
            media_type=media_type(job.response_format),
            sample_rate=row.sample_rate,
            duration_s=row.output.duration_s,
        )

    def release(self, row: Row) -> None:
        for slot in row.slots:
            self._slots.give_back(_bank(row), slot)
        row.slots.clear()
        row.output.close()

    def warm_up(self) -> None:
        """Says a few tokens through all stages, then sets how many of them a step makes here; on a GPU it
        records decodes first."""
        short = replace(self.rules, semantic=replace(self.rules.semantic, max_tokens=WARM_UP_TOKENS))
        prompt = torch.full((short.semantic.max_text,), short.semantic.text_pad_token)
        utterance = Utterance(short, prompt, self.voices.get(None), 0.7, 0, 0)
        while utterance.stage is not Stage.DONE:
            for commit in self._lanes.run(utterance.stage, self._lanes.banks[0], [0], [utterance]):
                commit()
        self._lanes.record()
        self._lanes.set_pace()


def load(spec: ModelSpec) -> Bark:
    """Loads a Bark checkpoint from a folder in the hub's layout; opens no network connection.

    Raises:
        OSError: a file is missing or broken.
        ValueError: the files do not fit together.
    """
    model: Any = BarkModel.from_pretrained(
        spec.folder, dtype=getattr(torch, spec.dtype), attn_implementation="eager", local_files_only=True
    )
    if spec.quantization is not None:
        for stage in (model.semantic, model.coarse_acoustics, model.fine_acoustics):
            quantize(stage.layers, spec.quantization, getattr(torch, spec.dtype))
    model.to(spec.device).eval().requires_grad_(False)
    rules = read_rules(model.config, model.generation_config)
    tokenizer: Any = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True)
    lanes = Lanes.of(model, rules, spec.max_rows)
    prompts = Prompts(tokenizer, spec.folder, rules.semantic)
    voices = Voices(spec.folder, rules, spec.language)
    return Bark(spec.name, lanes, prompts, voices, max_rows=spec.max_rows, loudness_lufs=spec.loudness_lufs)


def voices_in(folder: Path, language: str) -> dict[str, str]:
    """The language of each voice of a checkpoint's folder, the default voice first; reads no weights.

    Args:
        folder: In the hub's layout.
        language: Of voices whose names do not tell it.
    """
    config = BarkConfig.from_pretrained(folder, local_files_only=True)
    voices = Voices(folder, read_rules(config, GenerationConfig.from_pretrained(folder)), language)
    languages = voices.languages
    names = sorted(languages, key=lambda name: name != voices.default)
    return {name: languages[name] for name in names}


def _bank(row: Row) -> int:
    if row.bank is None:
        raise RuntimeError("the row has no slot: reserve it first")
    return row.bank
