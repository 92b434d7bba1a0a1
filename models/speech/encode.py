"""Sound as bytes: the formats that are served, each marked as synthetic where it can say so."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from jobs import AudioFormat

NOTE = "Synthetic speech, made by a machine"
"""Written into the metadata of every format that has any."""
STREAMED: frozenset[AudioFormat] = frozenset({"wav", "ogg", "opus", "mp3", "pcm"})
"""Formats that can be sent as they come; a FLAC tells its length at its beginning."""
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
SAMPLE_RATES = (8000, 16_000, 22_050, 24_000, 44_100, 48_000)
"""What a caller may ask for, in Hz."""
MP3_LEVEL = 0.6
"""libsndfile's compression level: 64 kbit/s up to 24 kHz."""
_BLOCK = 1 << 14
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_SERIAL = 1


@dataclass(frozen=True, slots=True)
class Container:
    media_type: str
    format: str
    subtype: str


CONTAINERS: dict[AudioFormat, Container] = {
    "wav": Container("audio/wav", "WAV", "PCM_16"),
    "flac": Container("audio/flac", "FLAC", "PCM_16"),
    "ogg": Container("audio/ogg", "OGG", "VORBIS"),
    "opus": Container("audio/ogg; codecs=opus", "OGG", "OPUS"),
    "mp3": Container("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "pcm": Container("audio/pcm", "RAW", "PCM_16"),
}


def media_type(response_format: AudioFormat) -> str:
    return CONTAINERS[response_format].media_type


def bound_peak(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same sound, made quieter if it would clip.

    Raises:
        ValueError: it has a sample that is no number.
    """
    if not np.isfinite(sound).all():
        raise ValueError("the sound is not finite")
    peak = float(np.abs(sound).max(initial=0.0))
    return sound / np.float32(peak) if peak > 1 else sound


def to_pcm(sound: NDArray[np.float32]) -> bytes:
    """Signed 16-bit little-endian samples of a sound in [-1, 1]."""
    return np.round(sound * np.float32(32767)).astype("<i2").tobytes()


def rate_of(response_format: AudioFormat, sample_rate: int) -> int:
    """The rate that a format has for a sound of `sample_rate`, in Hz: Opus knows five of them."""
    if response_format != "opus":
        return sample_rate
    return min((rate for rate in OPUS_RATES if rate >= sample_rate), default=OPUS_RATES[-1])


class Encoder:
    """One file, from samples as they come; the same samples in the same pieces give the same bytes."""

    def __init__(self, response_format: AudioFormat, sample_rate: int, *, streamed: bool = False) -> None:
        """A file that is not `streamed` comes out at its end, and may tell its length at its beginning."""
        self._format: AudioFormat = response_format
        self._out = io.BytesIO()
        self._file: soundfile.SoundFile | None = None
        self._streamed = streamed and response_format in STREAMED
        self._sent = 0
        self._lossless = CONTAINERS[response_format].subtype == "PCM_16"
        self._sample_rate = sample_rate
        self._begun = False

    def add(self, sound: NDArray[np.float32]) -> bytes:
        """The bytes that are certain once `sound`, float32 [samples] in [-1, 1], is in."""
        self._begin()
        if self._file is None:
            self._out.write(to_pcm(sound))
        else:
            samples = np.frombuffer(to_pcm(sound), "<i2") if self._lossless else sound
            for begin in range(0, len(samples), _BLOCK):  # libvorbis overflows its stack on one long piece
                self._file.write(samples[begin : begin + _BLOCK])
        return self._take() if self._streamed else b""

    def end(self) -> bytes:
        self._begin()
        self.close()
        return self._take()

    def close(self) -> None:
        """Lets go of a file that is not wanted any more; after the end it does nothing."""
        if self._file is not None and not self._file.closed:
            self._file.close()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self._format == "wav" and self._streamed:
            self._out.write(stream_header(self._sample_rate))
        elif self._format != "pcm":
            self._file = _open(self._out, CONTAINERS[self._format], self._sample_rate)

    def _take(self) -> bytes:
        """What has been written since the last time. What a file writes into its beginning at its end (an
        MP3's table of contents) is lost to a stream, which plays without it."""
        data = self._out.getvalue()[self._sent :]
        self._sent += len(data)
        return _fix_ogg_serial(data) if CONTAINERS[self._format].format == "OGG" else data


def _open(out: io.BytesIO, container: Container, sample_rate: int) -> soundfile.SoundFile:
    # At a constant rate an MP3 tells how long it is even without its table of contents.
    constant: dict[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": MP3_LEVEL}
    file = soundfile.SoundFile(
        *(out, "w", sample_rate, 1, container.subtype),
        format=container.format,
        **(constant if container.format == "MP3" else {}),
    )
    file.title = "Speech"
    file.comment = NOTE
    return file


def encode_audio(sound: NDArray[np.float32], sample_rate: int, response_format: AudioFormat) -> bytes:
    """A whole file; the same sound gives the same bytes.

    Args:
        sound: Mono samples in [-1, 1], [samples].
        sample_rate: In Hz.
        response_format: One of `CONTAINERS`.
    """
    encoder = Encoder(response_format, sample_rate)
    return encoder.add(sound) + encoder.end()


def stream_header(sample_rate: int) -> bytes:
    """The head of a WAV whose length is not known yet: 16-bit mono, both sizes 0xFFFFFFFF as streams have.

    It says that the speech is synthetic, in the chunk before the samples, as a whole file does.
    """
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    note = NOTE.encode("ascii") + b"\0"
    info = b"INFO" + _chunk(b"ICMT", note)
    unknown = struct.pack("<I", 0xFFFFFFFF)
    return b"RIFF" + unknown + b"WAVE" + _chunk(b"fmt ", form) + _chunk(b"LIST", info) + b"data" + unknown


def _chunk(name: bytes, data: bytes) -> bytes:
    """One of a RIFF file's, filled up to an even length."""
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _fix_ogg_serial(data: bytes) -> bytes:
    """The same Ogg stream under a fixed serial number: libsndfile draws one by the clock (RFC 3533, 6)."""
    pages: list[bytes] = []
    begin = 0
    while begin < len(data):
        segments = data[begin + 26]
        table_end = begin + 27 + segments
        end = table_end + sum(data[begin + 27 : table_end])
        page = bytearray(data[begin:end])
        page[14:18] = struct.pack("<I", _OGG_SERIAL)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(bytes(page)))
        pages.append(bytes(page))
        begin = end
    return b"".join(pages)


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with Ogg's bit order and no inversion, by way of zlib's, which is its mirror image."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
