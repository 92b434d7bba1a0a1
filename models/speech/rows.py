"""A job as a row of the engine: its utterances, its sound, and what it reports on the way.

Several utterances of a row may be at work at once, each in a slot of its own. A stream's first one goes
alone, for somebody waits to hear it; the others follow together while it plays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs import AudioChunk, Event, Progress, SpeechJob
from models.speech.encode import media_type
from models.speech.output import Output
from models.speech.utterance import Stage, Utterance

PROGRESS_STEP = 5
"""Percent between two progress events."""
MAX_ABREAST = 4
"""Utterances of one row at work at once: the half of a bank, so that a long text leaves room for others."""
_SENDING = (Stage.FINE, Stage.CODEC)


@dataclass(slots=True, eq=False)
class Row:
    """A job on its way."""

    job: SpeechJob
    utterances: list[Utterance]
    output: Output
    sample_rate: int
    """Of what goes out, in Hz."""
    bank: int | None = None
    """The bank of its slots, from `reserve` to `release`."""
    slots: dict[int, Utterance] = field(default_factory=dict[int, Utterance])
    """The utterances at work, by slot within the bank."""
    spoken: int = 0
    """Utterances that are done and whose sound has gone into `output`."""
    begun: int = 0
    """Utterances that have or had a slot."""
    _reported: int = 0

    @property
    def wanted(self) -> int:
        """How many slots it could use now beyond those it has."""
        left = len(self.utterances) - self.begun
        first_alone = self.job.stream or self.utterances[0].voice is None
        if first_alone and self.begun and not self.spoken:
            return 0
        most = 1 if first_alone and not self.begun else MAX_ABREAST
        return min(left, most - len(self.slots))

    def begin(self, slot: int) -> None:
        """Gives a free slot to the next utterance."""
        utterance = self.utterances[self.begun]
        if self.begun and utterance.voice is None:
            utterance.voice = self.utterances[0].carried_voice()
        self.slots[slot] = utterance
        self.begun += 1

    @property
    def stage(self) -> Stage | None:
        """The lane of its next step: what makes the next sound to be sent, else what is furthest behind, so
        that utterances catch up with each other and share their steps. None when all is said."""
        if self.spoken == len(self.utterances):
            return None
        following = self.utterances[self.spoken].stage
        if following in _SENDING:
            return following
        stages = {utterance.stage for utterance in self.slots.values()}
        return next(stage for stage in Stage if stage in stages)

    def at(self, stage: Stage) -> list[tuple[int, Utterance]]:
        """Slots and utterances that are at a stage, the one that is heard first in front."""
        there = [each for each in self.slots.items() if each[1].stage is stage]
        return sorted(there, key=lambda each: each[1].number)

    def advance(self) -> tuple[list[int], list[Event]]:
        """The slots that have become free, and what there is to tell since the last step."""
        freed = [slot for slot, utterance in self.slots.items() if utterance.stage is Stage.DONE]
        for slot in freed:
            del self.slots[slot]
        return freed, [*self._sound_events(), *self._progress_events()]

    def _sound_events(self) -> list[Event]:
        data = b""
        while self.spoken < self.begun and self.utterances[self.spoken].stage is Stage.DONE:
            utterance = self.utterances[self.spoken]
            if utterance.sound is None:
                raise RuntimeError("the utterance has not ended")
            if self.job.stream:
                data += self.output.add(utterance.sound, utterance.pause_s)
                utterance.sound = None
            self.spoken += 1
        if self.job.stream and self.spoken == len(self.utterances):
            data += self.output.end()
        if not data:
            return []
        kind = media_type(self.job.response_format)
        return [AudioChunk(data=data, media_type=kind, sample_rate=self.sample_rate)]

    def _progress_events(self) -> list[Event]:
        done = sum(utterance.done_share() for utterance in self.utterances)
        percent = round(100 * done / len(self.utterances))
        if percent < self._reported + PROGRESS_STEP:
            return []
        self._reported = percent
        return [Progress(step=percent, total=100)]

    def encode(self) -> bytes:
        """The whole file, for a job that is not streamed."""
        pieces = [
            self.output.add(utterance.sound, utterance.pause_s)
            for utterance in self.utterances
            if utterance.sound is not None
        ]
        return b"".join([*pieces, self.output.end()])
