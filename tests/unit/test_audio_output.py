"""Pieces of sound on their way to one file: joined, levelled, resampled, encoded as they come."""

from __future__ import annotations

import io

import numpy as np
import pyloudnorm
import pytest
import soundfile
from numpy.typing import NDArray

from jobs import AudioFormat
from models.speech.encode import NOTE
from models.speech.output import CROSSFADE_S, Joiner, Output, levelled

RATE = 16_000
Sound = NDArray[np.float32]


def tone(seconds: float = 0.5, level: float = 0.5, hertz: float = 440) -> Sound:
    time = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def joined(*pieces: tuple[Sound, float]) -> Sound:
    joiner = Joiner(RATE)
    return np.concatenate([*(joiner.add(*piece) for piece in pieces), joiner.end()])


def test_one_piece_stays_as_it_is() -> None:
    assert np.array_equal(joined((tone(), 0.3)), tone())


def test_a_pause_is_silence_without_a_click() -> None:
    sound = joined((tone(), 0.3), (tone(), 0.3))
    silent = np.abs(sound[8000 : 8000 + 4800]) < 1e-6
    assert silent.all()
    assert len(sound) == pytest.approx(2 * 8000 + 4800, abs=20)
    assert np.abs(np.diff(sound)).max() <= np.abs(np.diff(tone())).max() * 1.01
    loud = np.ones(8000, np.float32)  # ends at its loudest
    assert np.abs(np.diff(joined((loud, 0.3), (loud, 0.3)))).max() < 0.02


def test_silence_that_the_pieces_bring_is_part_of_the_pause() -> None:
    quiet = np.zeros(RATE, np.float32)
    sound = joined((np.concatenate([tone(), quiet]), 0.3), (np.concatenate([quiet[:1600], tone()]), 0.3))
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    assert np.diff(loud).max() / RATE == pytest.approx(0.4, abs=0.01)  # 0.3 of the first, 0.1 of the second
    assert joined((np.concatenate([tone(), quiet]), 0.3)).size == 8000 + RATE  # the last one's own end stays


def test_without_a_pause_pieces_run_into_each_other() -> None:
    one = np.ones(8000, np.float32)
    sound = joined((one, 0.0), (one, 0.0))
    assert len(sound) == 16_000 - round(CROSSFADE_S * RATE)
    np.testing.assert_allclose(sound, 1, atol=1e-6)


def test_pieces_of_silence_and_of_nothing_are_joined() -> None:
    nothing = np.zeros(0, np.float32)
    assert not joined(
        (np.zeros(800, np.float32), 0.1), (nothing, 0.0), (np.zeros(800, np.float32), 0.3)
    ).any()


def made(chosen: AudioFormat, *, streamed: bool, sample_rate: int = RATE) -> tuple[list[bytes], Output]:
    output = Output(chosen, RATE, sample_rate, streamed=streamed)
    noise = np.random.default_rng(1).normal(0, 0.1, RATE).astype(np.float32)
    return [output.add(noise, 0.3), output.add(tone(1), 0.0), output.add(noise, 0.3), output.end()], output


@pytest.mark.parametrize("chosen", ["wav", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("sample_rate", [16_000, 24_000])
def test_a_streams_pieces_are_one_file(chosen: AudioFormat, sample_rate: int) -> None:
    pieces, output = made(chosen, streamed=True, sample_rate=sample_rate)
    assert all(len(piece) > 0 for piece in pieces[:1])
    assert sum(len(piece) > 0 for piece in pieces) >= 3
    sound, rate = soundfile.read(io.BytesIO(b"".join(pieces)))
    assert rate == sample_rate
    assert len(sound) / rate == pytest.approx(output.duration_s, abs=0.15)
    whole = b"".join(made(chosen, streamed=False, sample_rate=sample_rate)[0])
    if chosen in ("ogg", "opus"):
        assert b"".join(pieces) == whole
    for data in (whole, b"".join(pieces)):
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert file.comment == NOTE


def test_there_is_one_wav_header_for_a_stream() -> None:
    assert b"".join(made("wav", streamed=True)[0]).count(b"RIFF") == 1


def test_resampling_by_pieces_is_resampling_the_whole() -> None:
    pieces, output = made("pcm", streamed=True, sample_rate=24_000)
    assert output.duration_s == pytest.approx(made("pcm", streamed=True)[1].duration_s, abs=1e-3)
    assert len(b"".join(pieces)) == 2 * round(output.duration_s * 24_000)


@pytest.mark.parametrize("level", [0.02, 0.4])
@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_loudness_is_levelled(level: float, seconds: float) -> None:
    sound = levelled(tone(seconds, level), RATE, -23)
    meter = pyloudnorm.Meter(RATE, block_size=min(0.4, seconds))
    assert meter.integrated_loudness(sound) == pytest.approx(-23, abs=0.1)
    assert np.abs(levelled(tone(1, 0.9), RATE, -5)).max() <= 1
    assert not levelled(np.zeros(RATE, np.float32), RATE, -23).any()


def test_a_level_makes_pieces_equally_loud() -> None:
    output = Output("pcm", RATE, RATE, loudness_lufs=-23, streamed=True)
    data = output.add(tone(1, 0.05), 0.3) + output.add(tone(1, 0.8), 0.3) + output.end()
    sound = np.frombuffer(data, "<i2")
    assert np.abs(sound[:8000]).max() == pytest.approx(np.abs(sound[-8000:]).max(), rel=0.02)
