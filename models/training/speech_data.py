"""The speech recipe's corpus: sentences said by espeak-ng in four voices, at 16 kHz, cut to whole tokens."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.signal import resample_poly

from models.training.speech_espeak import say
from models.training.speech_text import draw_sentence, spoken_form

SAMPLE_RATE = 16_000
SEMANTIC_HOP = 640
"""Samples in one semantic token (25 a second) and in two codec frames (50 a second)."""

MAX_SEMANTIC = 140
"""Longest utterance in semantic tokens (5.6 s)."""

_WORDS_PER_MINUTE = 150
_MARGIN = 800  # samples of silence left at either end: 50 ms, so that words are not clipped by the cut
_SILENCE = 0.006  # of full scale; espeak's own breath noise lies below


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice behind one of our presets.

    Attributes:
        variant: What `espeak-ng -v` takes.
        pitch: What `espeak-ng -p` takes, 0 to 99.
        high: Whether the voice counts as high (above 165 Hz) or as low.
    """

    variant: str
    pitch: int
    high: bool


# Variants that pocketsphinx hears well: espeak's plain male voice is understood for 0.6 of the digits only.
VOICES: dict[str, Voice] = {
    "ada": Voice("en-us+f5", 50, high=True),
    "vera": Voice("en-us+f2", 55, high=True),
    "otto": Voice("en-us+m2", 40, high=False),
    "hugo": Voice("en-us+f5", 0, high=False),
}
DEFAULT_VOICE = "ada"
"""The voice that is heard when no preset is given."""


def synthesize(text: str, voice: str) -> NDArray[np.float32]:
    """Say `text` with espeak-ng.

    Returns:
        The sound at `SAMPLE_RATE`, without the silence around it but for a margin, padded to a
        multiple of `SEMANTIC_HOP`; shape [samples], within -1 and 1.

    Raises:
        EspeakMissingError: there is no espeak-ng on this machine.
    """
    return synthesize_timed(text, voice)[0]


def synthesize_timed(text: str, voice: str) -> tuple[NDArray[np.float32], list[tuple[int, str]]]:
    """The same, and the first sample and the name of each phoneme in it, pauses included."""
    chosen = VOICES[voice]
    said = say(spoken_form(text), chosen.variant, pitch=chosen.pitch, words_per_minute=_WORDS_PER_MINUTE)
    wave = said.wave.astype(np.float32) / 32768
    wave = resample_poly(wave, SAMPLE_RATE // 50, said.rate // 50).astype(np.float32)
    start = loud_part(wave).start
    return trim(wave), [(at * SAMPLE_RATE // said.rate - start, name) for at, name in said.phonemes]


def loud_part(wave: NDArray[np.float32]) -> slice:
    """Where a wave is more than silence, with a margin at both ends; empty if nowhere."""
    loud = np.flatnonzero(np.abs(wave) > _SILENCE)
    return slice(max(0, int(loud[0]) - _MARGIN), int(loud[-1]) + _MARGIN) if loud.size else slice(0, 0)


def trim(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut the silence at both ends to a margin and pad the end to a multiple of `SEMANTIC_HOP`."""
    cut = wave[loud_part(wave)]
    if not cut.size:
        return np.zeros(SEMANTIC_HOP, dtype=np.float32)
    return np.pad(cut, (0, -len(cut) % SEMANTIC_HOP)).astype(np.float32)


@dataclass(frozen=True)
class Utterance:
    """One sentence of the corpus.

    Attributes:
        text: What is said, lower case, with punctuation.
        voice: A name in `VOICES`.
        start: First sample in the corpus' sound.
        samples: Length; a multiple of `SEMANTIC_HOP`.
        phonemes: First sample, from the utterance's start, and espeak-ng's name of each phoneme.
    """

    text: str
    voice: str
    start: int
    samples: int
    phonemes: list[tuple[int, str]]


@dataclass(frozen=True)
class Corpus:
    """Sentences and their sound.

    Attributes:
        utterances: In the order they were drawn.
        sound: All waves end to end, 16-bit, shape [samples].
    """

    utterances: list[Utterance]
    sound: NDArray[np.int16]

    def wave(self, index: int) -> NDArray[np.float32]:
        """The sound of one utterance, within -1 and 1, shape [samples]."""
        said = self.utterances[index]
        return self.sound[said.start : said.start + said.samples].astype(np.float32) / np.float32(32768)

    def by_voice(self) -> dict[str, list[int]]:
        """The utterances' indices by voice."""
        found: dict[str, list[int]] = {voice: [] for voice in VOICES}
        for index, said in enumerate(self.utterances):
            found[said.voice].append(index)
        return found


def draw_lines(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs of text and voice to train on; the same for the same seed. Voices take turns."""
    rng = random.Random(seed)
    voices = list(VOICES)
    return [(draw_sentence(rng, held_out=False), voices[i % len(voices)]) for i in range(count)]


def build_corpus(folder: Path, count: int, seed: int) -> Corpus:
    """Say `count` sentences and keep them in `folder`; one that is there already is read back.

    Utterances longer than `MAX_SEMANTIC` tokens are left out.
    """
    index_path, sound_path = folder / "corpus.json", folder / "corpus.npy"
    if not index_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        utterances: list[Utterance] = []
        waves: list[NDArray[np.int16]] = []
        start = 0
        for text, voice in track(draw_lines(count, seed), description="corpus"):
            wave, phonemes = synthesize_timed(text, voice)
            if len(wave) > MAX_SEMANTIC * SEMANTIC_HOP:
                continue
            utterances.append(Utterance(text, voice, start, len(wave), phonemes))
            waves.append((wave * 32767).astype(np.int16))
            start += len(wave)
        np.save(sound_path, np.concatenate(waves))
        index_path.write_text(json.dumps([asdict(said) for said in utterances]))
    index = json.loads(index_path.read_text())
    return Corpus([Utterance(**said) for said in index], np.load(sound_path, mmap_mode="r"))
