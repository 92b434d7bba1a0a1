"""Bark's verbs: rows come, go, fail and stream."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import save
from transformers import PreTrainedTokenizerFast

from jobs import AudioChunk, ErrorKind, Event, JobError, Progress
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.speech.bark import Bark, load
from models.speech.encode import stream_header
from models.speech.output import Output
from models.speech.rows import MAX_ABREAST
from models.speech.text import Prompts
from models.speech.utterance import EMPTY_S, Stage
from models.speech.voices import PARTS, Voices
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
    assert (rows[10].bank, list(rows[10].slots)) == (0, [1])
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
    row.begin(0)
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


LONG = "one one one one one one. two two two two two. three three. four. five five. six"


def test_sentences_are_said_abreast_and_sound_as_if_each_was_said_alone(bark: Bark) -> None:
    said = say(bark, [make_job(LONG, voice="short", response_format="pcm")])
    utterances = said.rows[0].utterances
    assert len(utterances) == 6
    assert max(rows for stage, rows in said.steps if stage == "coarse") == 1  # one row, of several of them
    forwards = [stage for stage, _ in said.steps].count("semantic")
    assert forwards < sum(-(-len(utterance.semantic) // 2) for utterance in utterances)
    output = Output("pcm", RATE, RATE)
    parts = [output.add(made.sound, made.pause_s) for made in utterances if made.sound is not None]
    assert said.results[0].data == b"".join([*parts, output.end()])


def test_a_long_text_leaves_a_slot_to_the_next_row(bark: Bark) -> None:
    rows = [bark.prepare(make_job(LONG, voice="short")) for _ in range(3)]
    assert all(bark.reserve(row) for row in rows)
    for _ in range(3):
        for row in rows:
            if lane := bark.lane(row):
                bark.step(lane, [row])
    assert [len(row.slots) for row in rows] == [MAX_ABREAST, 2, 1]
    late = bark.prepare(make_job())
    assert bark.reserve(late)
    for row in (*rows, late):
        bark.release(row)
    after = bark.prepare(make_job())
    assert bark.reserve(after)
    assert list(after.slots) == [0]
    bark.release(after)


def test_without_a_voice_the_first_sentences_is_carried_on(tmp_path: Path) -> None:
    other = load(ModelSpec(name="tiny", folder=write_folder(tmp_path), max_rows=4))
    said = say(other, [make_job("one one two. three four. five", seed=3)])
    first, *rest = said.rows[0].utterances
    assert first.voice is None
    assert len(first.semantic) > 1
    for utterance in rest:
        assert utterance.voice is not None
        assert utterance.voice.semantic.tolist() == first.semantic
        assert torch.equal(utterance.voice.fine, first.codec_codes())


def test_a_streams_first_sentence_goes_alone_and_the_others_together(bark: Bark) -> None:
    row = bark.prepare(make_job(LONG, voice="short", stream=True))
    assert bark.reserve(row)
    first = row.utterances[0]
    events: list[Event] = []
    while first.stage is not Stage.DONE:
        assert list(row.slots.values()) == [first]
        lane = bark.lane(row)
        assert lane is not None
        events = bark.step(lane, [row])[0]
    assert any(isinstance(event, AudioChunk) for event in events)
    assert list(row.slots.values()) == row.utterances[1 : 1 + MAX_ABREAST]
    bark.release(row)


def chunks(said: Said) -> list[AudioChunk]:
    return [event for event in said.events[0] if isinstance(event, AudioChunk)]


def test_a_stream_sends_each_piece_as_it_is_ready(bark: Bark) -> None:
    whole = say(bark, [make_job(LONG, voice="short", response_format="pcm")]).results[0]
    for chosen, head in (("pcm", b""), ("wav", stream_header(RATE))):
        said = say(bark, [make_job(LONG, voice="short", response_format=chosen, stream=True)])
        sent = chunks(said)
        assert len(sent) > 1
        assert b"".join(chunk.data for chunk in sent) == head + whole.data
        assert said.results[0].data == b""
        assert said.results[0].duration_s == whole.duration_s


@pytest.mark.parametrize("chosen", ["flac", "ogg", "opus"])
def test_a_compressed_streams_pieces_are_the_whole_file(bark: Bark, chosen: str) -> None:
    whole = say(bark, [make_job(LONG, voice="short", response_format=chosen)]).results[0]
    sent = chunks(say(bark, [make_job(LONG, voice="short", response_format=chosen, stream=True)]))
    assert b"".join(chunk.data for chunk in sent) == whole.data
    assert {chunk.media_type for chunk in sent} == {whole.media_type}
    assert (len(sent) > 1) == (chosen != "flac")


@pytest.mark.parametrize("chosen", ["wav", "opus", "mp3"])
def test_the_sample_rate_is_what_was_asked_for(bark: Bark, chosen: str) -> None:
    result = say(bark, [make_job(LONG, sample_rate=24_000, response_format=chosen)]).results[0]
    assert result.sample_rate == 24_000
    info = soundfile.info(io.BytesIO(result.data))
    assert info.samplerate == 24_000
    assert info.duration == pytest.approx(result.duration_s, abs=0.1)
    plain = say(bark, [make_job(LONG, response_format="pcm")]).results[0]
    assert plain.duration_s == pytest.approx(result.duration_s, abs=1e-3)


def test_an_uploaded_voice_speaks_as_the_listed_one(bark: Bark, folder: Path) -> None:
    parts = {part: np.load(folder / f"odd_{part}.npy") for part in PARTS}
    archive = io.BytesIO()
    np.savez(archive, **parts)
    listed, *uploaded = say(
        bark,
        [make_job(voice="odd"), *(make_job(voice_file=data) for data in (archive.getvalue(), save(parts)))],
    ).results
    assert [result.data for result in uploaded] == [listed.data] * 2


@pytest.mark.parametrize("data", [b"", b"PK nothing", b"\xff" * 64, save({"semantic_prompt": np.zeros(3)})])
def test_an_uploaded_voice_that_is_none_is_refused(bark: Bark, data: bytes) -> None:
    with pytest.raises(JobError, match="`voice_file` is not a preset") as refused:
        bark.prepare(make_job(voice_file=data))
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "voice_file")


def test_a_cancelled_row_leaves_every_slot(bark: Bark) -> None:
    row = bark.prepare(make_job(LONG, voice="short"))
    assert bark.reserve(row)
    for _ in range(4):
        lane = bark.lane(row)
        assert lane is not None
        bark.step(lane, [row])
    assert len(row.slots) == MAX_ABREAST
    bark.release(row)
    test_slots_are_bounded_and_come_back(bark)
