"""What a job and the catalog say reaches the speech, Bark's and VITS': language, rate and loudness."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from transformers import AutoTokenizer, VitsModel

from jobs import ErrorKind, JobError
from models.catalog import Entry
from models.loading import spec_of
from models.protocol import ModelSpec, OutOfMemoryError
from models.speech.bark import Bark, load
from models.speech.sentences import SENTENCE_PAUSE_S
from models.speech.vits import Vits
from models.speech.vits import load as load_vits
from models.speech.voices import PARTS
from tests.unit.test_vits import RATE, job, sound, write_checkpoint
from tests.unit.test_vits import say as say_vits
from tests.unit.tiny_speech import make_job, say, write_folder

VOICES = {"de_speaker_1": (4, 6), "en_speaker_1": (9, 13)}
LEVEL = -30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_folder(tmp_path_factory.mktemp("bark"), voices=VOICES)


@pytest.fixture(scope="module")
def bark(folder: Path) -> Bark:
    return load(ModelSpec(name="tiny", folder=folder, max_rows=4, loudness_lufs=LEVEL))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vits"))


@pytest.fixture(scope="module")
def vits(checkpoint: Path) -> Vits:
    return load_vits(ModelSpec(name="mms", folder=checkpoint, max_rows=4, loudness_lufs=LEVEL))


def words(bark: Bark, **fields: Any) -> list[int]:
    """The text tokens of a job's first sentence; this model knows English numbers alone."""
    return bark.prepare(make_job(**fields)).utterances[0].text.tolist()


def uploaded(folder: Path) -> bytes:
    return save({part: np.load(folder / f"en_speaker_1_{part}.npy") for part in PARTS})


def test_numbers_are_read_in_the_jobs_language_else_the_voices(bark: Bark, folder: Path) -> None:
    three = words(bark, text="three", voice="en_speaker_1")
    assert words(bark, text="3", voice="en_speaker_1") == three
    assert words(bark, text="3", voice="de_speaker_1") != three
    assert words(bark, text="3", voice="de_speaker_1", language="en") == three
    own = uploaded(folder)
    assert words(bark, text="3", voice=None, voice_file=own, language="en") == three
    row = bark.prepare(make_job("3", voice=None, voice_file=own, language="de"))
    assert row.utterances[0].text.tolist() != three
    assert row.utterances[0].voice is not None
    assert row.utterances[0].voice.language == "de"


@pytest.mark.parametrize(
    ("text", "voice"),
    [
        ("Guten Morgen, wie geht es Ihnen heute?", "de_speaker_1"),
        ("Good morning, how are you today?", "en_speaker_1"),
    ],
)
def test_without_a_voice_the_texts_language_chooses_one(bark: Bark, text: str, voice: str) -> None:
    chosen = bark.prepare(make_job(text, voice=None)).utterances[0].voice
    assert chosen is not None
    assert chosen.name == voice


def test_the_rate_is_one_that_the_format_knows(bark: Bark, vits: Vits) -> None:
    made = [
        say(bark, [make_job(voice="en_speaker_1", response_format="opus", sample_rate=22_050)]).results[0],
        say_vits(vits, [job(response_format="opus", sample_rate=22_050)])[0][0],
    ]
    for result in made:
        assert result.sample_rate == 24_000
        assert soundfile.info(io.BytesIO(result.data)).samplerate == 24_000


def loudness(samples: NDArray[np.float32], rate: int) -> float:
    return pyloudnorm.Meter(rate, block_size=min(0.4, len(samples) / rate)).integrated_loudness(samples)


def test_loudness_is_the_catalogs(bark: Bark, vits: Vits, folder: Path) -> None:
    spoken = say(bark, [make_job(voice="en_speaker_1")]).results[0]
    assert loudness(sound(spoken), spoken.sample_rate) == pytest.approx(LEVEL, abs=0.5)
    spoken = say_vits(vits, [job()])[0][0]
    assert loudness(sound(spoken), spoken.sample_rate) == pytest.approx(LEVEL, abs=0.5)
    entry = Entry(family="speech.bark", source=f"folder:{folder}", licence="none", loudness_lufs=LEVEL)
    assert spec_of("tiny", entry, "cpu").loudness_lufs == LEVEL


def test_vits_reads_out_and_pauses(vits: Vits) -> None:
    assert vits.prepare(job("3")).sentences == vits.prepare(job("three")).sentences
    assert vits.prepare(job("one. two")).sentences[0][1] == SENTENCE_PAUSE_S
    one, two, both = (len(sound(say_vits(vits, [job(text)])[0][0])) for text in ("one", "two", "one. two"))
    assert both > one + two + 0.5 * SENTENCE_PAUSE_S * RATE


def test_a_vits_speaker_is_the_one_of_transformers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, speakers=3)
    ours = load_vits(ModelSpec(name="mms", folder=folder, max_rows=4))
    theirs: Any = VitsModel.from_pretrained(folder).eval()
    theirs.noise_scale = theirs.noise_scale_duration = 0.0
    row = ours.prepare(job(voice="speaker_2", temperature=0.0))
    with torch.no_grad():
        wanted = theirs(torch.tensor([row.sentences[0][0]]), speaker_id=2).waveform[0].numpy()
    heard = sound(say_vits(ours, [job(voice="speaker_2", temperature=0.0)])[0][0])
    np.testing.assert_allclose(heard, wanted / max(1.0, float(np.abs(wanted).max())), atol=1e-3)


def failing(checkpoint: Path) -> tuple[Vits, Any]:
    model: Any = VitsModel.from_pretrained(checkpoint).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    return Vits(ModelSpec(name="mms", folder=checkpoint, max_rows=4), model, tokenizer), model


def test_a_vits_step_without_memory_says_so_and_goes_again(checkpoint: Path) -> None:
    vits, model = failing(checkpoint)

    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError

    hook = model.text_encoder.register_forward_pre_hook(no_room)
    row = vits.prepare(job())
    lane = vits.lane(row)
    assert lane is not None
    with pytest.raises(OutOfMemoryError):
        vits.step(lane, [row])
    hook.remove()
    vits.step(lane, [row])
    assert vits.finish(row).data == say_vits(vits, [job()])[0][0].data


def test_a_vits_sound_that_is_none_is_that_rows_failure(checkpoint: Path) -> None:
    vits, model = failing(checkpoint)
    with torch.no_grad():
        model.decoder.conv_post.weight.fill_(torch.nan)
    with pytest.raises(JobError, match="another seed") as failed:
        say_vits(vits, [job()])
    assert failed.value.kind is ErrorKind.INTERNAL
