"""Weights that are not what they should be: the error names the file, before anything is made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.catalog import Entry, Modality, models_served
from models.loading import EMBEDDED, LoadError, load_model
from models.manifest import write_manifest
from models.protocol import ModelSpec

WEIGHTS = {
    "tiny-llama": "model.safetensors",
    "tiny-sd": "unet/diffusion_pytorch_model.safetensors",
    "tiny-bark": "model.safetensors",
}


def copy_of(name: str, folder: Path) -> tuple[Entry, Path]:
    """An embedded model as one in a folder, and the file of its weights."""
    shutil.copytree(EMBEDDED / name, folder / name)
    entries = {name: entry for kind in Modality for name, entry in models_served("embedded", kind).items()}
    entry = entries[name].model_copy(update={"source": f"folder:{folder / name}"})
    return entry, folder / name / WEIGHTS[name]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("left", [0.5, 0.999, 0.0])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, name: str, left: float) -> None:
    entry, file = copy_of(name, tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(LoadError, match=file.name):
        load_model(name, entry, "cpu")


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_flipped_bit_is_found_by_the_manifest(tmp_path: Path, name: str) -> None:
    entry, file = copy_of(name, tmp_path)
    write_manifest(tmp_path / name)
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(LoadError, match=rf"{file.name} has changed: its SHA-256"):
        load_model(name, entry, "cpu")


def test_a_pickle_by_the_name_of_safetensors_runs_nothing(tmp_path: Path) -> None:
    entry, file = copy_of("tiny-llama", tmp_path)
    harm = tmp_path / "harm"
    file.write_bytes(f"cposix\nsystem\n(S'touch {harm}'\ntR.".encode())
    with pytest.raises(LoadError, match=file.name):
        load_model("tiny-llama", entry, "cpu")
    assert not harm.exists()


def test_code_of_a_model_is_never_run() -> None:
    """`trust_remote_code` is on nowhere, and no model's specification could turn it on."""
    root = EMBEDDED.parents[1]
    for folder in ("gateway", "runners", "models", "commands"):
        for file in (root / folder).rglob("*.py"):
            assert "trust_remote_code=True" not in file.read_text(encoding="utf-8"), file
    assert not any("trust" in field for field in ModelSpec.__dataclass_fields__)
