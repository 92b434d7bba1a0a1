"""Judges that no model was trained on: pocketsphinx for words, autocorrelation for pitch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder

SAMPLE_RATE = 16_000
HIGH_PITCH_HZ = 165.0
"""Above it a voice counts as high: between the usual ranges of men and women (Titze 1994)."""

# Much narrower than the default: the same words in a fifth of the time, with grammars as small as these.
_BEAMS = {"beam": 1e-30, "pbeam": 1e-30, "wbeam": 1e-20}

# No ear tells these apart, so the judge has one word for each set.
_SAME_SOUND = {"see": "c", "sea": "c", "are": "r", "you": "u", "colour": "color", "gray": "grey"}


def canonical(word: str) -> str:
    """The word that stands for all that sound like it."""
    return _SAME_SOUND.get(word, word)


class Listener:
    """Pocketsphinx with a closed grammar."""

    def __init__(self, rules: str) -> None:
        """Load the recognizer for a grammar.

        Args:
            rules: JSGF rules, in canonical words, one of them `public`.
        """
        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "said.gram"
            grammar.write_text(f"#JSGF V1.0;\ngrammar said;\n{rules}\n")
            self._decoder = Decoder(jsgf=str(grammar), samprate=SAMPLE_RATE, loglevel="FATAL", **_BEAMS)

    def hear(self, wave: NDArray[np.float32]) -> list[str]:
        """The words heard in a wave [samples] at `SAMPLE_RATE`, in their canonical form."""
        quiet = np.zeros(
            SAMPLE_RATE * 3 // 10, dtype=np.float32
        )  # the recognizer wants silence around speech
        sound = np.clip(np.concatenate([quiet, wave, quiet]), -1, 1)
        self._decoder.start_utt()
        self._decoder.process_raw((sound * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return [word.split("(")[0] for word in best.hypstr.split()] if best else []


@dataclass(frozen=True)
class Heard:
    """How well a listener got what was said.

    Attributes:
        said: Words said.
        hits: Of these, heard in their place.
        extra: Words heard that were not said.
    """

    said: int = 0
    hits: int = 0
    extra: int = 0

    def __add__(self, other: Heard) -> Heard:
        return Heard(self.said + other.said, self.hits + other.hits, self.extra + other.extra)

    @property
    def recall(self) -> float:
        """Share of the words said that were heard; 0 if nothing was said."""
        return self.hits / self.said if self.said else 0.0


def compare(said: Sequence[str], heard: Sequence[str]) -> Heard:
    """Align two word sequences with the fewest edits, and of such ones with the most hits (Levenshtein)."""
    said = [canonical(word) for word in said]
    # best[j]: (edits, -hits) of the words so far against the first j heard.
    best = [(j, 0) for j in range(len(heard) + 1)]
    for i, word in enumerate(said, start=1):
        row = [(i, 0)]
        for j, other in enumerate(heard, start=1):
            match = word == other
            row.append(
                min(
                    (best[j - 1][0] + (not match), best[j - 1][1] - match),
                    (best[j][0] + 1, best[j][1]),
                    (row[j - 1][0] + 1, row[j - 1][1]),
                )
            )
        best = row
    edits, hits = best[-1][0], -best[-1][1]
    # edits = misses + max(0, extra): each word said is a hit, a substitution or a deletion.
    return Heard(len(said), hits, max(0, edits - (len(said) - hits)))


def pitch_hz(wave: NDArray[np.float32]) -> float | None:
    """The median pitch of the voiced parts of a wave [samples], in Hz; None if there are none.

    Of each 40 ms, the lag of the highest peak of the normalised autocorrelation between 60 and 400 Hz, where
    that peak is above 0.5 (Boersma 1993, without the interpolation).
    """
    width, low, high = SAMPLE_RATE // 25, SAMPLE_RATE // 400, SAMPLE_RATE // 60
    loudest = float(np.abs(wave).max(initial=0.0))
    found: list[float] = []
    for start in range(0, len(wave) - width - high, width // 2):
        frame = wave[start : start + width + high].astype(np.float64)
        if np.sqrt(np.mean(frame**2)) < 0.1 * loudest or loudest == 0.0:
            continue
        frame = frame - frame.mean()
        head = frame[:width]
        energy = np.cumsum(np.concatenate([[0.0], frame**2]))
        lags = np.arange(low, high + 1)
        dots = np.correlate(frame, head, mode="valid")[lags]
        score = dots / np.sqrt((head @ head) * (energy[lags + width] - energy[lags]) + 1e-12)
        # A multiple of the period scores as high as the period itself: take the shortest that nearly does.
        peak = int(np.argmax(score >= 0.95 * score.max()))
        while peak + 1 < len(score) and score[peak + 1] > score[peak]:
            peak += 1
        if score[peak] > 0.5:
            found.append(SAMPLE_RATE / float(lags[peak]))
    return float(np.median(found)) if found else None
