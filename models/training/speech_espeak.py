"""espeak-ng by its library: what it says, and when it says which phoneme.

The library tells what the command does not, and says a sentence in a few milliseconds.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Constants of espeak-ng's `speak_lib.h`.
_RETRIEVAL, _PHONEME_EVENTS, _NO_SPEECH_DATA_EXIT = 1, 1, 0x8000
_UTF8, _PHONEME_INPUT, _END_PAUSE = 1, 0x100, 0x1000
_RATE, _PITCH = 1, 3
_LIST_END, _PHONEME = 0, 7


class EspeakMissingError(RuntimeError):
    """The synthesizer that makes the training data is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "espeak-ng is not installed: install your system's package `espeak-ng` and run this again"
        )


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Said:
    """What espeak-ng said.

    Attributes:
        wave: 16-bit samples at `rate`, the pause at the end included; shape [samples].
        rate: In Hz.
        phonemes: First sample and espeak-ng's mnemonic of each phoneme, in order; `_` and `_:` are pauses.
    """

    wave: NDArray[np.int16]
    rate: int
    phonemes: list[tuple[int, str]]


class _Engine:
    """The library, started once in a process."""

    def __init__(self) -> None:
        found = ctypes.util.find_library("espeak-ng")
        if found is None:
            raise EspeakMissingError
        self.library: Any = ctypes.CDLL(found)
        self.rate = int(
            self.library.espeak_Initialize(_RETRIEVAL, 0, None, _PHONEME_EVENTS | _NO_SPEECH_DATA_EXIT)
        )
        if self.rate <= 0:
            raise EspeakMissingError
        self.pieces: list[bytes] = []
        self.phonemes: list[tuple[int, str]] = []
        self._callback = _Callback(self._take)  # kept: the library calls it
        self.library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.pieces.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != _LIST_END:
            if events[index].type == _PHONEME:
                name = bytes(events[index].id.string).decode("ascii", "replace")
                self.phonemes.append((int(events[index].sample), name))
            index += 1
        return 0


_engine = cache(_Engine)


def say(text: str, variant: str, *, pitch: int, words_per_minute: int) -> Said:
    """Say `text` as the command `espeak-ng -v variant -p pitch -s words_per_minute` does.

    Raises:
        EspeakMissingError: there is no espeak-ng on this machine.
    """
    engine = _engine()
    engine.pieces.clear()
    engine.phonemes.clear()
    library = engine.library
    library.espeak_SetVoiceByName(variant.encode())
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    line = text.encode()
    library.espeak_Synth(line, len(line) + 1, 0, 1, 0, _UTF8 | _PHONEME_INPUT | _END_PAUSE, None, None)
    library.espeak_Synchronize()
    wave = np.frombuffer(b"".join(engine.pieces), dtype="<i2")
    return Said(wave, engine.rate, list(engine.phonemes))
