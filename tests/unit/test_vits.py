"""VITS behind the protocol of speech: a tiny random checkpoint on disk, alone and in company."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from transformers import VitsConfig, VitsModel

from jobs import AudioChunk, Event, JobError, SpeechJob, SpeechResult
from models.protocol import ModelSpec
from models.speech.vits import Row, Vits, load, voices_in

RATE = 16_000


def write_checkpoint(folder: Path, speakers: int = 1) -> Path:
    torch.manual_seed(3)
    config = VitsConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        prior_encoder_num_flows=2,
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        depth_separable_num_layers=1,
        upsample_initial_channel=16,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        sampling_rate=RATE,
    )
    VitsModel(config).save_pretrained(folder)
    letters = {"_": 0, **{letter: place for place, letter in enumerate(" abcdefghijklmnopqrstuvwxyz", 1)}}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = {"tokenizer_class": "VitsTokenizer", "pad_token": "_", "unk_token": "_", "add_blank": True}
    more = {"normalize": True, "phonemize": False, "is_uroman": False, "language": "eng"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | more))
    return folder


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Vits:
    torch.set_num_threads(1)
    model = load(ModelSpec(name="mms", folder=write_checkpoint(tmp_path_factory.mktemp("vits")), max_rows=4))
    model.warm_up()
    return model


def job(text: str = "one two", **fields: Any) -> SpeechJob:
    given: dict[str, Any] = {"id": "1", "timeout_s": 60, "seed": 1, "temperature": 0.8} | fields
    return SpeechJob(text=text, **given)


def say(
    vits: Vits, jobs: Sequence[SpeechJob], *, abreast: bool = False
) -> tuple[list[SpeechResult], list[Event]]:
    """Steps as many rows as the engine would in turn, or all of them `abreast`, as on a GPU."""
    rows: list[Row] = [vits.prepare(each) for each in jobs]
    assert all(vits.reserve(row) for row in rows)
    started = list(rows)
    told: list[Event] = []
    while waiting := [row for row in rows if vits.lane(row) is not None]:
        lane = vits.lane(waiting[0])
        assert lane is not None
        there = [row for row in waiting if vits.lane(row) == lane]
        stepping = there if abreast else there[: round(vits.budget(lane) / vits.cost(there[0]))]
        for events in vits.step(lane, stepping):
            told += events
        rows.sort(key=lambda row: row in stepping)
    results = [vits.finish(row) for row in started]
    for row in started:
        vits.release(row)
    return results, told


def sound(result: SpeechResult) -> NDArray[np.float32]:
    samples: Any = soundfile.read(io.BytesIO(result.data), dtype="float32")[0]
    return samples


COMPANY = [job(), job("a much longer sentence than the others", seed=2), job("three. four", seed=3)]


def test_rows_sound_in_company_as_they_do_alone(vits: Vits) -> None:
    together = [sound(result) for result in say(vits, COMPANY, abreast=True)[0]]
    for each, one in zip(COMPANY, together, strict=True):
        alone = sound(say(vits, [each])[0][0])
        assert len(alone) == len(one) > 500
        np.testing.assert_allclose(one, alone, atol=1e-3)


def test_on_a_cpu_they_are_the_same_bytes(vits: Vits) -> None:
    together = [result.data for result in say(vits, COMPANY)[0]]
    assert together == [say(vits, [each])[0][0].data for each in COMPANY]


def test_the_same_seed_is_the_same_sound_and_another_is_another(vits: Vits) -> None:
    first, again, other = (say(vits, [job(seed=seed)])[0][0].data for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_without_noise_it_is_what_transformers_makes(vits: Vits, tmp_path: Path) -> None:
    model: Any = VitsModel.from_pretrained(write_checkpoint(tmp_path)).eval()
    model.noise_scale = model.noise_scale_duration = 0.0
    tokens = torch.tensor([vits.prepare(job()).sentences[0][0]])
    with torch.no_grad():
        wanted = model(tokens).waveform[0].numpy()
    heard = sound(say(vits, [job(temperature=0.0)])[0][0])
    np.testing.assert_allclose(heard, wanted / max(1.0, float(np.abs(wanted).max())), atol=1e-3)


def test_a_stream_sends_each_sentence(vits: Vits) -> None:
    (whole,), _ = say(vits, [job("one. two. three", response_format="pcm")])
    _, told = say(vits, [job("one. two. three", response_format="pcm", stream=True)])
    chunks = [event.data for event in told if isinstance(event, AudioChunk)]
    assert len(chunks) == 3
    assert b"".join(chunks) == whole.data


def test_speakers_are_voices(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, speakers=3)
    assert voices_in(folder, "en") == {"speaker_0": "en", "speaker_1": "en", "speaker_2": "en"}
    many = load(ModelSpec(name="mms", folder=folder, max_rows=4))
    results, _ = say(many, [job(), job(voice="speaker_0"), job(voice="speaker_2")])
    assert results[0].data == results[1].data != results[2].data


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"voice": "../x"}, "voice"),
        ({"language": "de"}, "language"),
        ({"voice_file": b"x"}, "voice_file"),
        ({"text": "..."}, "text"),
        ({"text": "One. " * 60}, "text"),
        ({"text": "one " * 200}, "text"),
    ],
)
def test_what_it_cannot_say_is_refused(vits: Vits, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(JobError) as refused:
        vits.prepare(job(**fields))
    assert refused.value.param == param


def test_places_are_bounded_and_come_back(vits: Vits) -> None:
    rows = [vits.prepare(job()) for _ in range(5)]
    assert [vits.reserve(row) for row in rows] == [True] * 4 + [False]
    for row in rows:
        vits.release(row)
    assert vits.reserve(rows[0])
    vits.release(rows[0])
