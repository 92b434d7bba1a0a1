"""Bark's verbs: rows come, go, fail and stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from jobs import AudioChunk, JobError, Progress
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.speech.bark import Bark, load
from models.speech.encode import stream_header
from models.speech.rows import PAUSE_S
from models.speech.text import Prompts
from models.speech.utterance import EMPTY_S
from models.speech.voices import Voices
from tests.unit.tiny_speech import RATE, SEMANTIC, VOICES, Said, make_job, make_lanes, say, write_folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("bark"), voices=VOICES)


@pytest.fixture(scope="module")
def bark(folder: Path) -> Bark:
    return load(ModelSpec(name="tiny", folder=folder, max_rows=10))


def test_slots_are_bounded_and_come_back(bark: Bark) -> None:
    rows = [bark.prepare(make_job()) for _ in range(11)]
    assert [bark.reserve(row) for row in rows] == [True] * 10 + [False]
    lanes = {bark.lane(row) for row in rows[:10]}
    assert lanes == {Lane("tiny", "semantic prefill", (bank,)) for bank in (0, 1)}
    for row in rows[1:]:
        bark.release(row)  # the last one of them never had a slot
    assert bark.reserve(rows[10])
    assert rows[10].slot == 1
    bark.release(rows[10])
    bark.release(rows[0])


def test_windows_that_only_go_on_are_not_read_again(bark: Bark) -> None:
    said = say(bark, [make_job("one two three four", voice="short", temperature=0.0)])
    windows = -(-said.rows[0].utterances[0].coarse_made // bark.rules.coarse.window)
    # The voice has 10 coarse tokens and a window sees 28, so that the second of them has lost nothing.
    assert [stage for stage, _ in said.steps].count("coarse prefill") == windows - 1 > 1


def test_progress_rises_to_the_end(bark: Bark) -> None:
    told = [event.step for event in say(bark, [make_job()]).events[0] if isinstance(event, Progress)]
    assert told == sorted(set(told))
    assert told[-1] == 100


def test_an_utterance_may_be_empty(bark: Bark) -> None:
    row = bark.prepare(make_job())
    row.utterances[0].apply_semantic([SEMANTIC, 3])  # the end, and what a step made after it
    row.advance()
    assert bark.lane(row) is None
    assert bark.finish(row).duration_s == EMPTY_S


def test_sound_is_bounded(bark: Bark) -> None:
    for result in say(bark, [make_job("one", seed=seed, temperature=1.5) for seed in range(3)]).results:
        assert 0 < result.duration_s <= bark.rules.max_seconds
        assert result.sample_rate == RATE


class _Broken:
    """A codec that fails as it is told to."""

    def __init__(self, decode: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.decode = decode


def _no_memory(codes: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError(f"{codes.shape}")


@pytest.mark.parametrize(
    ("decode", "error"),
    [
        (_no_memory, OutOfMemoryError),
        (lambda codes: torch.full((codes.shape[1],), torch.nan), JobError),
    ],
)
def test_a_codec_that_fails_leaves_the_row_as_it_was(
    folder: Path, decode: Any, error: type[Exception]
) -> None:
    broken: Any = _Broken(decode)
    lanes = replace(make_lanes(folder), codec=broken)
    prompts = Prompts(PreTrainedTokenizerFast.from_pretrained(folder), folder, lanes.rules.semantic)
    other = Bark("tiny", lanes, prompts, Voices(folder, lanes.rules), max_rows=1)
    row = other.prepare(make_job())
    assert other.reserve(row)
    while (lane := other.lane(row)) is not None and lane.stage != "codec":
        other.step(lane, [row])
    assert lane is not None
    with pytest.raises(error):
        other.step(lane, [row])
    assert other.lane(row) == lane


def test_pieces_are_joined_with_a_pause(bark: Bark) -> None:
    said = say(bark, [make_job("one one one one one one. two two two two two", response_format="pcm")])
    parts = [utterance.sound for utterance in said.rows[0].utterances]
    assert len(parts) == 2
    samples = sum(len(part) for part in parts if part is not None) + round(PAUSE_S * RATE)
    assert len(said.results[0].data) == 2 * samples
    assert said.results[0].duration_s == samples / RATE


LONG = "one one one one one one. two two two two two. three three"


def chunks(said: Said) -> list[AudioChunk]:
    return [event for event in said.events[0] if isinstance(event, AudioChunk)]


def test_a_stream_sends_each_piece_as_it_is_ready(bark: Bark) -> None:
    whole = say(bark, [make_job(LONG, response_format="pcm")]).results[0]
    for chosen, head in (("pcm", b""), ("wav", stream_header(RATE))):
        said = say(bark, [make_job(LONG, response_format=chosen, stream=True)])
        sent = chunks(said)
        assert len(sent) == len(said.rows[0].utterances) > 1
        assert b"".join(chunk.data for chunk in sent) == head + whole.data
        assert said.results[0].data == b""
        assert said.results[0].duration_s == whole.duration_s


@pytest.mark.parametrize("chosen", ["flac", "ogg", "mp3"])
def test_a_compressed_stream_is_the_whole_file_in_one_piece(bark: Bark, chosen: str) -> None:
    whole = say(bark, [make_job(LONG, response_format=chosen)]).results[0]
    sent = chunks(say(bark, [make_job(LONG, response_format=chosen, stream=True)]))
    assert [(chunk.data, chunk.media_type) for chunk in sent] == [(whole.data, whole.media_type)]


def test_quantization_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="quantization"):
        load(ModelSpec(name="tiny", folder=folder, quantization="int8"))
