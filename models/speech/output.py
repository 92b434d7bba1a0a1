"""From the sound of pieces to the bytes of a file: levelled, joined, resampled, encoded, as they come.

A file is made by the same calls whether it is sent whole or piece by piece, so both have the same sound.
"""

from __future__ import annotations

import numpy as np
import pyloudnorm
import soxr
from numpy.typing import NDArray

from jobs import AudioFormat
from models.speech.encode import Encoder, bound_peak

Sound = NDArray[np.float32]

CROSSFADE_S = 0.02
"""Over this much two pieces without a pause between them run into each other."""
FADE_S = 0.005
"""Before and after a pause, so that it makes no click."""
QUIET = 0.01
"""Of a piece's own peak: what is below it at an edge is silence already, and counts towards a pause."""
MAX_GAIN_DB = 20.0
MIN_LEVELLED_S = 0.4
"""Loudness is measured over blocks of this length (ITU-R BS.1770); a shorter piece is one block."""


class Joiner:
    """Pieces one after another: a pause between them, or a crossfade where there is none."""

    def __init__(self, sample_rate: int) -> None:
        """`sample_rate` in Hz."""
        self._rate = sample_rate
        self._held: Sound | None = None
        """The end of the last piece, its silence and a little more: the next piece changes it."""
        self._quiet = 0
        """Samples of silence at the end of it."""
        self._pause_s = 0.0

    def add(self, sound: Sound, pause_s: float) -> Sound:
        """What is certain now. `pause_s` is the silence after this piece, should another one follow."""
        before: list[Sound] = []
        if self._held is not None and self._pause_s > 0:
            fade, pause = round(FADE_S * self._rate), round(self._pause_s * self._rate)
            # The pieces' own silence is part of the pause; what is longer than it goes.
            kept = min(self._quiet, pause)
            held = self._held[: len(self._held) - self._quiet + kept]
            gap = max(0, pause - kept - _quiet_end(sound[::-1]))
            before, sound = [_faded_out(held, fade), np.zeros(gap, np.float32)], _faded_in(sound, fade)
        elif self._held is not None:
            sound = _crossfaded(self._held, sound, round(CROSSFADE_S * self._rate))
        self._quiet, self._pause_s = _quiet_end(sound), pause_s
        hold = min(len(sound), max(self._quiet, round(CROSSFADE_S * self._rate)))
        self._held = sound[len(sound) - hold :]
        return np.concatenate([*before, sound[: len(sound) - hold]])

    def end(self) -> Sound:
        held, self._held = self._held, None
        return np.zeros(0, np.float32) if held is None else held


class Output:
    """One job's sound on its way out."""

    def __init__(
        self,
        response_format: AudioFormat,
        model_rate: int,
        sample_rate: int,
        *,
        loudness_lufs: float | None = None,
        streamed: bool = False,
    ) -> None:
        """`model_rate` is what the pieces come in and `sample_rate` what goes out, in Hz."""
        self._model_rate = model_rate
        self._sample_rate = sample_rate
        self._loudness_lufs = loudness_lufs
        self._joiner = Joiner(model_rate)
        self._resample: soxr.ResampleStream | None = None
        if sample_rate != model_rate:
            self._resample = soxr.ResampleStream(model_rate, sample_rate, 1, dtype="float32")
        self._encoder = Encoder(response_format, sample_rate, streamed=streamed)
        self._samples = 0

    @property
    def duration_s(self) -> float:
        return self._samples / self._sample_rate

    def add(self, sound: Sound, pause_s: float) -> bytes:
        """Takes the next piece; gives the bytes that are certain now."""
        if self._loudness_lufs is not None:
            sound = levelled(sound, self._model_rate, self._loudness_lufs)
        return self._put(self._joiner.add(sound, pause_s), last=False)

    def end(self) -> bytes:
        """The rest of the file."""
        return self._put(self._joiner.end(), last=True) + self._encoder.end()

    def close(self) -> None:
        """Lets go of a file that is not wanted any more."""
        self._encoder.close()

    def _put(self, sound: Sound, *, last: bool) -> bytes:
        if self._resample is not None:
            # Where the filter overshoots, a full-scale wave would clip.
            sound = np.clip(self._resample.resample_chunk(sound, last=last), -1, 1)
        self._samples += len(sound)
        return self._encoder.add(sound)


def levelled(sound: Sound, sample_rate: int, loudness_lufs: float) -> Sound:
    """The sound at a loudness (ITU-R BS.1770, LUFS), quieter where it would clip; silence stays silence."""
    block_s = min(MIN_LEVELLED_S, len(sound) / sample_rate)
    if not sound.any():
        return sound
    loudness = float(pyloudnorm.Meter(sample_rate, block_size=block_s).integrated_loudness(sound))
    if not np.isfinite(loudness):
        return sound
    gain_db = min(loudness_lufs - loudness, MAX_GAIN_DB)
    return bound_peak((sound * 10 ** (gain_db / 20)).astype(np.float32))


def _quiet_end(sound: Sound) -> int:
    """Samples of silence at the end."""
    loud = np.flatnonzero(np.abs(sound) > QUIET * np.abs(sound).max(initial=0.0))
    return len(sound) - 1 - int(loud[-1]) if len(loud) else len(sound)


def _ramp(length: int) -> Sound:
    return np.linspace(0, 1, length, dtype=np.float32)


def _faded_in(sound: Sound, length: int) -> Sound:
    length = min(length, len(sound))
    return np.concatenate([sound[:length] * _ramp(length), sound[length:]])


def _faded_out(sound: Sound, length: int) -> Sound:
    return _faded_in(sound[::-1], length)[::-1]


def _crossfaded(held: Sound, sound: Sound, length: int) -> Sound:
    """`held` running into `sound` over `length` samples, or as many as both have."""
    length = min(len(held), len(sound), length)
    ramp = _ramp(length)
    mixed = (held[len(held) - length :] * ramp[::-1] + sound[:length] * ramp).astype(np.float32)
    return np.concatenate([held[: len(held) - length], mixed, sound[length:]])
