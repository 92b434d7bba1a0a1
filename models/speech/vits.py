"""VITS on the step engine (`VitsModel`, such as Meta's MMS voices): a sentence is one call, shared by rows.

On a GPU text encoder, durations and flow are batched over the rows; the decoder, whose convolutions would run
into the padding of shorter rows, goes row by row. A row's noise comes from its own seed, so its sound is the
same in any company, though not to the last bit: batched convolutions round otherwise. On a CPU a row steps
alone, and its sound is the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, VitsConfig, VitsModel

from jobs import AudioChunk, ErrorKind, Event, JobError, Progress, SpeechJob, SpeechResult
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.speech.encode import bound_peak, media_type, rate_of
from models.speech.noise import OwnNoise
from models.speech.output import Output, Sound
from models.speech.reading import read_out
from models.speech.sentences import Sentence, split_sentences

MAX_SENTENCES = 48
MAX_TOKENS = 600
"""Of one sentence: about half a minute of sound."""
CPU_ROWS = 1
"""Rows of one call on a CPU. At the size of MMS four sentences take 2.44 s together and 2.46 s apart, for
nearly all of it is the decoder."""


@dataclass(slots=True, eq=False)
class Row:
    job: SpeechJob
    sentences: list[tuple[list[int], float]]
    """Token ids and the pause after them."""
    speaker: int
    output: Output
    sample_rate: int
    """Of what goes out, in Hz."""
    spoken: int = 0
    data: bytes = b""
    reserved: bool = False

    def add(self, sound: Sound) -> list[Event]:
        self.data += self.output.add(sound, self.sentences[self.spoken][1])
        self.spoken += 1
        if self.spoken == len(self.sentences):
            self.data += self.output.end()
        told: list[Event] = [Progress(step=round(100 * self.spoken / len(self.sentences)), total=100)]
        if self.job.stream and self.data:
            kind = media_type(self.job.response_format)
            told.append(AudioChunk(data=self.data, media_type=kind, sample_rate=self.sample_rate))
            self.data = b""
        return told


class Vits:
    """`protocol.Model` for a VITS checkpoint in the hub's layout."""

    def __init__(self, spec: ModelSpec, model: Any, tokenizer: Any) -> None:
        self.name = spec.name
        self._spec = spec
        self._model = model
        self._tokenizer = tokenizer
        self._speakers = _speakers(model.config)
        self._left = spec.max_rows

    def prepare(self, job: SpeechJob) -> Row:
        """Checks voice, language and length, tokenises.

        Raises:
            JobError: there is nothing to say, too much to say, or no such voice or language.
        """
        if job.voice_file is not None:
            raise _refused("voice_file", "This model takes no presets; leave `voice_file` out.", "no_presets")
        if job.language not in (None, self._spec.language):
            message = f"This model speaks {self._spec.language} only."
            raise _refused("language", message, "unknown_language")
        if job.voice is not None and job.voice not in self._speakers:
            message = f"There is no such voice. There are: {', '.join(self._speakers) or 'none'}."
            raise JobError(ErrorKind.NOT_FOUND, message, param="voice", code="voice_not_found")
        speaker = self._speakers[job.voice] if job.voice else 0
        sentences = split_sentences(job.text, self._spec.language)
        if len(sentences) > MAX_SENTENCES:
            raise _too_long(f"The text is too long: at most {MAX_SENTENCES} sentences.")
        tokens = list(self._tokens(sentences))
        if not tokens:
            raise _refused("text", "There is nothing in the text that can be spoken.", "nothing_to_say")
        model_rate: int = self._model.config.sampling_rate
        rate = rate_of(job.response_format, job.sample_rate or model_rate)
        output = Output(
            job.response_format,
            model_rate,
            rate,
            loudness_lufs=self._spec.loudness_lufs,
            streamed=job.stream,
        )
        return Row(job, tokens, speaker, output, rate)

    def _tokens(self, sentences: Iterable[Sentence]) -> Iterable[tuple[list[int], float]]:
        for sentence in sentences:
            ids: list[int] = self._tokenizer(read_out(sentence.text, self._spec.language)).input_ids
            if len(ids) > MAX_TOKENS:
                raise _too_long(f"A sentence has {len(ids)} tokens; at most {MAX_TOKENS} are spoken.")
            if len(ids) > 1:  # one is the blank before the first letter
                yield ids, sentence.pause_s

    def reserve(self, row: Row) -> bool:
        if not self._left:
            return False
        self._left -= 1
        row.reserved = True
        return True

    def lane(self, row: Row) -> Lane | None:
        done = row.spoken == len(row.sentences)
        return None if done else Lane(self.name, "speak", (row.speaker,))

    def cost(self, row: Row) -> float:  # noqa: ARG002 (every row of a lane costs the same)
        return 1.0

    def budget(self, lane: Lane) -> float:  # noqa: ARG002 (all lanes are alike)
        return float(CPU_ROWS if self._spec.device == "cpu" else self._spec.max_rows)

    @torch.inference_mode()
    def step(self, lane: Lane, rows: Sequence[Row]) -> list[list[Event]]:
        """Says the next sentence of each row.

        Raises:
            OutOfMemoryError: fewer rows may do; no row has changed.
            JobError: a row's sound is not one; no row has changed.
        """
        try:
            sounds = self._speak(lane.shape[0], rows)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{lane.stage} with {len(rows)} rows") from error
        return [row.add(sound) for row, sound in zip(rows, sounds, strict=True)]

    def _speak(self, speaker: int, rows: Sequence[Row]) -> list[Sound]:
        ids = [row.sentences[row.spoken][0] for row in rows]
        width = max(map(len, ids))
        device = self._model.device
        tokens = torch.tensor([each + [0] * (width - len(each)) for each in ids], device=device)
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in ids], device=device)
        many = self._model.config.num_speakers > 1
        noise = OwnNoise([(row.job.seed, row.spoken, row.job.temperature > 0) for row in rows])
        decoder, self._model.decoder = self._model.decoder, _Undecoded()
        try:
            with noise:
                made = self._model(tokens, attention_mask=mask, speaker_id=speaker if many else None)
        finally:
            self._model.decoder = decoder
        speaking = None
        if many:
            speaking = self._model.embed_speaker(torch.tensor([speaker], device=device)).unsqueeze(-1)
        step = int(np.prod(self._model.config.upsample_rates))
        sounds: list[Sound] = []
        for latents, length in zip(made.spectrogram, made.sequence_lengths.tolist(), strict=True):
            sound = decoder(latents[None, :, : int(length) // step], speaking)[0, 0]
            sounds.append(_checked(sound.float().cpu().numpy()))
        return sounds

    def finish(self, row: Row) -> SpeechResult:
        return SpeechResult(
            model=self.name,
            seed=row.job.seed,
            data=row.data,
            media_type=media_type(row.job.response_format),
            sample_rate=row.sample_rate,
            duration_s=row.output.duration_s,
        )

    def release(self, row: Row) -> None:
        if row.reserved:
            row.reserved = False
            self._left += 1
        row.output.close()

    def warm_up(self) -> None:
        row = self.prepare(SpeechJob(id="warm-up", timeout_s=60, seed=0, text="one", temperature=0.5))
        lane = self.lane(row)
        if lane is not None:
            self.step(lane, [row])
        row.output.close()


class _Undecoded(torch.nn.Module):
    """In the decoder's place: gives the latents on."""

    def forward(self, latents: Tensor, _speaker: Tensor | None = None) -> Tensor:
        return latents[:, :1]


def load(spec: ModelSpec) -> Vits:
    """Loads a VITS checkpoint from a folder in the hub's layout; opens no network connection.

    Raises:
        OSError: a file is missing or broken.
        ValueError: a quantization is asked for, or the checkpoint needs text in its own Latin spelling.
    """
    if spec.quantization is not None:
        raise ValueError(f"{spec.name}: VITS runs in float32, bfloat16 or float16; leave the int8 out")
    tokenizer: Any = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True)
    if getattr(tokenizer, "is_uroman", False):
        raise ValueError(f"{spec.name} reads text in uroman's spelling, which is not made here")
    model: Any = VitsModel.from_pretrained(
        spec.folder, dtype=getattr(torch, spec.dtype), local_files_only=True
    )
    model.to(spec.device).eval().requires_grad_(False)
    return Vits(spec, model, tokenizer)


def voices_in(folder: Path, language: str) -> dict[str, str]:
    """The language of each speaker of a checkpoint; one that has a single speaker has no names for it."""
    return dict.fromkeys(_speakers(VitsConfig.from_pretrained(folder, local_files_only=True)), language)


def _speakers(config: Any) -> dict[str, int]:
    count: int = config.num_speakers
    return {f"speaker_{number}": number for number in range(count)} if count > 1 else {}


def _checked(sound: Sound) -> Sound:
    try:
        return bound_peak(sound)
    except ValueError as error:
        message = "The model made a sound that cannot be played; try another seed."
        raise JobError(ErrorKind.INTERNAL, message) from error


def _refused(param: str, message: str, code: str) -> JobError:
    return JobError(ErrorKind.INVALID, message, param=param, code=code)


def _too_long(message: str) -> JobError:
    return _refused("text", message, "text_too_long")
