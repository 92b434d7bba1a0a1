"""A job as a row of the engine: its utterances, its sound, and what it reports on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs import AudioChunk, Event, Progress, SpeechJob
from models.speech.encode import STREAMED, encode_audio, media_type, stream_header, to_pcm
from models.speech.utterance import Stage, Utterance

PAUSE_S = 0.2
"""Silence between two utterances."""
PROGRESS_STEP = 5
"""Percent between two progress events."""


@dataclass(slots=True, eq=False)
class Row:
    """A job on its way; says its utterances one after another."""

    job: SpeechJob
    utterances: list[Utterance]
    sample_rate: int
    """In Hz."""
    slot: int | None = None
    """Its place in the banks, from `reserve` to `release`."""
    spoken: int = 0
    """Utterances that are done."""
    _reported: int = 0

    @property
    def current(self) -> Utterance | None:
        """The utterance at hand; None when all are done."""
        return self.utterances[self.spoken] if self.spoken < len(self.utterances) else None

    def advance(self) -> list[Event]:
        """Goes on to the next utterance if this one has ended; what there is to tell since the last step."""
        events: list[Event] = []
        current = self.current
        if current is not None and current.stage is Stage.DONE:
            self.spoken += 1
            if self.job.stream:
                events += self._chunks()
        share = 1.0 if self.current is None else self.current.done_share()
        percent = round(100 * min(self.spoken + share, len(self.utterances)) / len(self.utterances))
        if percent >= self._reported + PROGRESS_STEP:
            self._reported = percent
            events.append(Progress(step=percent, total=100))
        return events

    def sound(self) -> NDArray[np.float32]:
        """All of it, float32 [samples] in [-1, 1]."""
        return np.concatenate([self._part(number) for number in range(self.spoken)])

    def _part(self, number: int) -> NDArray[np.float32]:
        """An utterance's sound, with the pause before it."""
        sound = self.utterances[number].sound
        if sound is None:
            raise RuntimeError("the utterance has not ended")
        if number == 0:
            return sound
        pause = np.zeros(round(PAUSE_S * self.sample_rate), np.float32)
        return np.concatenate([pause, sound])

    def _chunks(self) -> list[Event]:
        """What can be sent now that one more utterance is done; a compressed file only as a whole."""
        chosen = self.job.response_format
        if chosen in STREAMED:
            data = to_pcm(self._part(self.spoken - 1))
            if chosen == "wav" and self.spoken == 1:
                data = stream_header(self.sample_rate) + data
        elif self.current is None:
            data = encode_audio(self.sound(), self.sample_rate, chosen)
        else:
            data = b""
        if not data:
            return []
        return [AudioChunk(data=data, media_type=media_type(chosen), sample_rate=self.sample_rate)]
