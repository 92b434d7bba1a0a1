"""Voice presets: by name from the list, read without pickle, checked before they are used."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file
from transformers import BarkConfig, GenerationConfig

from jobs import ErrorKind, JobError
from models.speech.generation import Rules, read_rules
from models.speech.presets import MAX_FILE_BYTES
from models.speech.voices import FAVOURITE, MAX_LENGTH, PARTS, Voices, check_voice

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def rules() -> Rules:
    return read_rules(BarkConfig(), GenerationConfig())


def make_arrays(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1024, (8, 30))
    return {
        "semantic_prompt": random.integers(0, 10_000, 20),
        "coarse_prompt": codes[:2],
        "fine_prompt": codes,
    }


def list_voices(folder: Path, *names: str) -> None:
    """Voices in the hub's layout, each with arrays of its own."""
    listed: dict[str, object] = {"repo_or_path": "suno/bark"}
    for seed, name in enumerate(names):
        listed[name] = {part: f"speaker_embeddings/{name}_{part}.npy" for part in PARTS}
        for part, array in make_arrays(seed).items():
            path = folder / f"speaker_embeddings/{name}_{part}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(listed))


def get(voices: Voices, name: str | None) -> Any:
    voice = voices.get(name)
    assert voice is not None
    return voice


def test_the_hubs_presets_are_read(tmp_path: Path, rules: Rules) -> None:
    list_voices(tmp_path, "v2/en_speaker_1", "de_speaker_2")
    voices = Voices(tmp_path, rules)
    assert voices.names == ["v2/en_speaker_1", "de_speaker_2"]
    for seed, name in enumerate(voices.names):
        voice = get(voices, name)
        arrays = make_arrays(seed)
        for part, found in zip(PARTS, (voice.semantic, voice.coarse, voice.fine), strict=True):
            assert found.tolist() == arrays[part].tolist()


def test_single_files_are_read(tmp_path: Path, rules: Rules) -> None:
    (tmp_path / "voices").mkdir()
    np.savez(tmp_path / "voices/ann.npz", **make_arrays(1))
    save_file(make_arrays(2), tmp_path / "voices/bob.safetensors")
    (tmp_path / "voices/readme.txt").write_text("not a voice")
    voices = Voices(tmp_path, rules)
    assert voices.names == ["ann", "bob"]
    assert get(voices, "ann").fine.tolist() == make_arrays(1)["fine_prompt"].tolist()
    assert get(voices, "bob").fine.tolist() == make_arrays(2)["fine_prompt"].tolist()


def test_the_default_is_the_favourite_or_the_first(tmp_path: Path, rules: Rules) -> None:
    assert Voices(tmp_path, rules).get(None) is None
    list_voices(tmp_path, "de_speaker_2", "v2/en_speaker_1")
    assert get(Voices(tmp_path, rules), None).name == "de_speaker_2"
    list_voices(tmp_path, "de_speaker_2", FAVOURITE)
    assert get(Voices(tmp_path, rules), None).name == FAVOURITE


@pytest.mark.parametrize(
    "name",
    ["nobody", "", "../ann", "/etc/passwd", "v2/../ann", "ann\0", "%2e%2e/ann", "repo_or_path", "ann.npz"],
)
def test_any_other_name_is_not_found(tmp_path: Path, rules: Rules, name: str) -> None:
    list_voices(tmp_path, "ann")
    with pytest.raises(JobError, match="There are: ann") as refused:
        Voices(tmp_path, rules).get(name)
    assert (refused.value.kind, refused.value.param) == (ErrorKind.NOT_FOUND, "voice")


def test_the_first_twenty_names_are_shown(tmp_path: Path, rules: Rules) -> None:
    list_voices(tmp_path, *(f"speaker_{number}" for number in range(23)))
    with pytest.raises(JobError, match=r"speaker_19 and 3 more\.$"):
        Voices(tmp_path, rules).get("nobody")


@pytest.mark.parametrize("path", ["../outside.npy", "/etc/passwd", "voices/../../outside.npy", 7])
def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path, rules: Rules, path: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    listed = {"ann": dict.fromkeys(PARTS, path)}
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="not in the model's folder"):
        Voices(folder, rules)


def test_voices_whose_files_are_not_there_are_not_listed(tmp_path: Path, rules: Rules) -> None:
    list_voices(tmp_path, "ann", "bob")
    (tmp_path / "speaker_embeddings/ann_fine_prompt.npy").unlink()
    assert Voices(tmp_path, rules).names == ["bob"]


class _Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["npz of objects", "pickle", "text", "cut", "large"])
def test_a_damaged_file_is_one_voices_error_and_runs_nothing(tmp_path: Path, rules: Rules, kind: str) -> None:
    (tmp_path / "voices").mkdir()
    path, trace = tmp_path / "voices/bad.npz", tmp_path / "trace"
    np.savez(tmp_path / "voices/good.npz", **make_arrays())
    if kind == "npz of objects":
        bombs = np.array([_Bomb(trace)], dtype=object)
        np.savez(path, allow_pickle=True, **(make_arrays() | {"semantic_prompt": bombs}))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Bomb(trace)))
    elif kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        path.write_bytes((tmp_path / "voices/good.npz").read_bytes()[:300])
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("semantic_prompt.npy", bytes(MAX_FILE_BYTES + 1))
    voices = Voices(tmp_path, rules)
    with pytest.raises(JobError, match="'bad' is damaged") as refused:
        voices.get("bad")
    assert refused.value.kind is ErrorKind.INTERNAL
    assert str(tmp_path) not in refused.value.message
    assert not trace.exists()
    assert get(voices, "good").name == "good"


def test_a_damaged_safetensors_file_is_one_voices_error(tmp_path: Path, rules: Rules) -> None:
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices/bad.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(JobError, match="damaged"):
        Voices(tmp_path, rules).get("bad")


@pytest.mark.parametrize(
    ("part", "array"),
    [
        ("semantic_prompt", None),
        ("semantic_prompt", np.zeros((2, 5), int)),
        ("semantic_prompt", np.zeros(1, int)),
        ("semantic_prompt", np.full(20, 10_000)),
        ("semantic_prompt", np.full(20, -1)),
        ("semantic_prompt", np.zeros(20)),
        ("coarse_prompt", np.zeros((3, 30), int)),
        ("coarse_prompt", np.zeros(30, int)),
        ("coarse_prompt", np.full((2, 30), 1024)),
        ("coarse_prompt", np.array(3)),
        ("coarse_prompt", np.zeros((2, 0), int)),
        ("coarse_prompt", np.zeros((2, MAX_LENGTH + 1), int)),
        ("coarse_prompt", np.full((2, 30), np.nan)),
        ("fine_prompt", np.zeros((4, 30), int)),
        ("fine_prompt", np.zeros((8, 0), int)),
        ("fine_prompt", np.array("text")),
        ("fine_prompt", np.array(3)),
        ("fine_prompt", np.full((8, 30), 2**64 - 1, np.uint64)),
    ],
)
def test_wrong_arrays_are_refused_by_name(rules: Rules, part: str, array: Any) -> None:
    arrays = make_arrays()
    if array is None:
        del arrays[part]
    else:
        arrays[part] = array
    with pytest.raises(ValueError, match=part):
        check_voice("ann", arrays, rules)


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(header: str) -> bytes:
    """The head of an array in numpy's format, version 1, as a stranger may write it."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin-1")


LAYOUT = "{'descr': '<i8', 'fortran_order': False, 'shape': (SHAPE,), }"
TENSOR = b'{"semantic_prompt":{"dtype":"TYPE","shape":[SHAPE],"data_offsets":[0,END]}}'


def safetensors(dtype: bytes, shape: bytes, size: int) -> bytes:
    head = TENSOR.replace(b"TYPE", dtype).replace(b"SHAPE", shape).replace(b"END", b"%d" % size)
    return struct.pack("<Q", len(head)) + head + bytes(size)


HOSTILE = {
    "no zip": b"PK\x03\x04 never",
    "no members": npz({}),
    "no array": npz({"semantic_prompt.npy": b"hello"}),
    "a terabyte": npz({"semantic_prompt.npy": npy(LAYOUT.replace("SHAPE", str(10**12)))}),
    "a length that wraps": npz({"semantic_prompt.npy": npy(LAYOUT.replace("SHAPE", "2**32, 2**32"))}),
    "a truth for a length": npz({"semantic_prompt.npy": npy(LAYOUT.replace("SHAPE", "True")) + bytes(8)}),
    "objects": npz({"semantic_prompt.npy": npy(LAYOUT.replace("<i8", "|O").replace("SHAPE", "1"))}),
    "an unhashable key": npz({"semantic_prompt.npy": npy("{[]: 1}")}),
    "a head without an end": npz({"semantic_prompt.npy": npy("{'descr': (")}),
    "a head that nests": npz({"semantic_prompt.npy": npy("(" * 9000)}),
    "a bomb": npz({"semantic_prompt.npy": bytes(64 << 20)}, zipfile.ZIP_DEFLATED),
    "a type that numpy has not": safetensors(b"BF16", b"1", 2),
    "a shape that numpy has not": safetensors(b"U8", b",".join([b"1"] * 99), 1),
    "a shape of nothing": safetensors(b"I64", b"0,%d" % 2**62, 0),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_upload_is_the_callers_error(tmp_path: Path, rules: Rules, kind: str) -> None:
    with pytest.raises(JobError) as refused:
        Voices(tmp_path, rules).of_file(HOSTILE[kind], "en")
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "voice_file")
    assert refused.value.code == "bad_voice_file"


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_lies_about_its_size_takes_no_memory(tmp_path: Path, rules: Rules, kind: int) -> None:
    data = bytearray(npz({"semantic_prompt.npy": bytes(256 << 20)}, kind))
    assert len(data) < MAX_FILE_BYTES
    listed = data.index(b"PK\x01\x02")
    for place in (22, listed + 24):  # its size, which the list of members repeats
        data[place : place + 4] = struct.pack("<I", 100)
    tracemalloc.start()
    with pytest.raises(JobError, match=r"compressed otherwise|not an \.npz") as refused:
        Voices(tmp_path, rules).of_file(bytes(data), "en")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.param == "voice_file"
    assert peak < 4 * MAX_FILE_BYTES


def test_ten_thousand_damaged_uploads_are_refused_or_read(tmp_path: Path, rules: Rules) -> None:
    voices, random = Voices(tmp_path, rules), Random(4)
    file = io.BytesIO()
    np.savez(file, **make_arrays())
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    sources = [save(make_arrays()), *(npz(members, kind) for kind in kinds)]
    refused = 0
    for _ in range(10_000):
        data = bytearray(random.choice(sources))
        for _ in range(random.choice((1, 2, 10))):
            data[random.randrange(len(data))] = random.randrange(256)
        end = random.choice((len(data), random.randrange(len(data))))
        try:
            voices.of_file(bytes(data[:end]), "en")
        except JobError as error:
            refused += error.kind is ErrorKind.INVALID
    assert refused > 5000
