"""Sound as bytes, read back by soundfile."""

from __future__ import annotations

import io
import struct
import wave
from typing import get_args

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from jobs import AudioFormat
from models.speech.encode import NOTE, bound_peak, encode_audio, media_type, stream_header, to_pcm

FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)
FILES = [chosen for chosen in FORMATS if chosen != "pcm"]
RATE = 16_000


def make_sound(seconds: float = 1.5) -> NDArray[np.float32]:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.mark.parametrize("chosen", FILES)
def test_every_format_is_read_back(chosen: AudioFormat) -> None:
    sound = make_sound()
    read, rate = soundfile.read(io.BytesIO(encode_audio(sound, RATE, chosen)), dtype="float32")
    assert rate == RATE
    assert read.ndim == 1
    assert abs(len(read) - len(sound)) <= (2 * 1152 if chosen == "mp3" else 0)
    strength = np.abs(np.fft.rfft(read[4000:20_000]))
    assert strength.argmax() == 440  # a bin a hertz
    if chosen in ("wav", "flac"):
        np.testing.assert_allclose(read, sound, atol=1 / 32767)


@pytest.mark.parametrize("chosen", FILES)
def test_every_file_says_that_it_is_synthetic(chosen: AudioFormat) -> None:
    with soundfile.SoundFile(io.BytesIO(encode_audio(make_sound(), RATE, chosen))) as file:
        assert file.comment == NOTE


@pytest.mark.parametrize("chosen", FORMATS)
def test_the_same_sound_is_the_same_bytes(chosen: AudioFormat) -> None:
    first = encode_audio(make_sound(), RATE, chosen)
    assert encode_audio(make_sound(), RATE, chosen) == first
    assert encode_audio(make_sound(1.0), RATE, chosen) != first


def test_ogg_pages_keep_a_right_checksum_under_their_fixed_serial_number() -> None:
    """The checksum by the book (RFC 3533: polynomial 0x04c11db7, the field itself as zero)."""
    data = encode_audio(make_sound(), RATE, "ogg")
    begin = pages = 0
    while begin < len(data):
        assert data[begin : begin + 4] == b"OggS"
        table = data[begin + 27 : begin + 27 + data[begin + 26]]
        end = begin + 27 + len(table) + sum(table)
        serial, _, checksum = struct.unpack_from("<III", data, begin + 14)
        register = 0
        for byte in data[begin : begin + 22] + bytes(4) + data[begin + 26 : end]:
            register ^= byte << 24
            for _ in range(8):
                register = (register << 1 ^ 0x04C11DB7 if register >> 31 else register << 1) & 0xFFFFFFFF
        assert (serial, checksum) == (1, register)
        begin, pages = end, pages + 1
    assert pages > 2


@pytest.mark.parametrize("chosen", FILES)
@pytest.mark.parametrize("samples", [1, 100])
def test_very_short_sounds_are_files_too(chosen: AudioFormat, samples: int) -> None:
    data = encode_audio(np.zeros(samples, np.float32), RATE, chosen)
    assert soundfile.info(io.BytesIO(data)).samplerate == RATE


def test_long_sounds_are_encoded() -> None:
    data = encode_audio(make_sound(60), RATE, "ogg")
    assert soundfile.info(io.BytesIO(data)).duration == 60


def test_a_stream_is_a_wav_of_unknown_length_that_says_it_is_synthetic() -> None:
    sound = make_sound()
    head = stream_header(RATE)
    assert head[:4] + head[8:16] == b"RIFFWAVEfmt "
    assert head[4:8] == head[-4:] == b"\xff" * 4
    with soundfile.SoundFile(io.BytesIO(head + to_pcm(sound))) as file:
        assert (file.samplerate, file.comment) == (RATE, NOTE)
        assert file.read(dtype="int16").tobytes() == encode_audio(sound, RATE, "pcm")
    with wave.open(io.BytesIO(head + to_pcm(sound))) as plain:  # a reader that looks for chunks, and no more
        assert plain.readframes(len(sound)) == to_pcm(sound)


def test_loud_sounds_are_made_quieter_and_never_clip() -> None:
    loud = make_sound() * 5
    bounded = bound_peak(loud)
    assert np.abs(bounded).max() == 1
    np.testing.assert_allclose(bounded, loud / 2.5, rtol=1e-3)
    assert np.abs(np.frombuffer(to_pcm(bounded), "<i2")).max() == 32767
    quiet = make_sound()
    assert bound_peak(quiet) is quiet


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sound_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        bound_peak(np.array([0.0, bad], np.float32))


def test_media_types_are_those_of_the_formats() -> None:
    assert [media_type(chosen) for chosen in FORMATS] == [
        "audio/wav",
        "audio/flac",
        "audio/ogg",
        "audio/ogg; codecs=opus",
        "audio/mpeg",
        "audio/pcm",
    ]
