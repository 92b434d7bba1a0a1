"""Sound as bytes: the formats that are served, each marked as synthetic where it can say so."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from jobs import AudioFormat

NOTE = "Synthetic speech, made by a machine"
"""Written into the metadata of every format that has any."""
STREAMED: frozenset[AudioFormat] = frozenset({"wav", "pcm"})
"""Formats whose pieces can be sent as they come."""
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


def encode_audio(sound: NDArray[np.float32], sample_rate: int, response_format: AudioFormat) -> bytes:
    """A whole file; the same sound gives the same bytes.

    Args:
        sound: Mono samples in [-1, 1], [samples].
        sample_rate: In Hz.
        response_format: One of `CONTAINERS`.
    """
    if response_format == "pcm":
        return to_pcm(sound)
    container = CONTAINERS[response_format]
    lossless = container.subtype == "PCM_16"
    samples = np.frombuffer(to_pcm(sound), "<i2") if lossless else sound
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", sample_rate, 1, container.subtype, format=container.format) as file:
        file.title = "Speech"
        file.comment = NOTE
        for begin in range(0, len(samples), _BLOCK):  # libvorbis overflows its stack on one long piece
            file.write(samples[begin : begin + _BLOCK])
    data = out.getvalue()
    return _fix_ogg_serial(data) if response_format == "ogg" else data


def stream_header(sample_rate: int) -> bytes:
    """The head of a WAV whose length is not known yet: 16-bit mono, both sizes 0xFFFFFFFF as streams have."""
    unknown = 0xFFFFFFFF
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", unknown, b"WAVE", b"fmt ", 16)
        + form
        + struct.pack("<4sI", b"data", unknown)
    )


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
