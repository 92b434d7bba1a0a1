"""The files of a voice: three arrays as .npy, or one .npz or .safetensors. A stranger may have made them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

PARTS = ("semantic_prompt", "coarse_prompt", "fine_prompt")
SUFFIXES = (".npz", ".safetensors")
MAX_FILE_BYTES = 4 << 20
"""The hub's largest array has 60 kB."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those of `np.savez` and `np.savez_compressed`."""

Arrays = Mapping[str, NDArray[Any]]


class PresetError(ValueError):
    """What is wrong with a preset, in words that a caller may read."""


def read_files(paths: Mapping[str, Path]) -> Arrays:
    """One array of each .npy file. Raises `PresetError`, and OSError where a file is not there."""
    try:
        return {
            part: np.load(io.BytesIO(_bytes_of(path)), allow_pickle=False) for part, path in paths.items()
        }
    except (PresetError, OSError):
        raise
    except Exception as error:  # as in `_read_npz`
        raise PresetError("it is not an .npy file") from error


def read_file(path: Path) -> Arrays:
    """All arrays of one file. Raises `PresetError`, and OSError where it is not there."""
    return read_preset(_bytes_of(path))


def read_preset(data: bytes) -> Arrays:
    """All arrays of the bytes of an .npz or a .safetensors file, pickled ones never. Raises `PresetError`."""
    _check_size(len(data))
    return _read_npz(data) if data.startswith(b"PK") else _read_safetensors(data)


def _read_npz(data: bytes) -> Arrays:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            # Others unpack whole blocks at once, whatever size they claim: 900 bytes of bzip2 are a gigabyte.
            if any(entry.compress_type not in _COMPRESSIONS for entry in entries):
                raise PresetError("it is compressed otherwise than by numpy")
            _check_size(sum(entry.file_size for entry in entries))
            names = {part: f"{part}.npy" for part in PARTS}
            there = {entry.filename for entry in entries}
            return {part: _member(archive, name) for part, name in names.items() if name in there}
    except PresetError:
        raise
    except Exception as error:  # chosen bytes make zipfile and numpy raise nearly anything
        raise PresetError("it is not an .npz file") from error


def _read_safetensors(data: bytes) -> Arrays:
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # a type or a shape that numpy has not
        raise PresetError("it is neither an .npz nor a .safetensors file") from error


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as member:
        return _array(member.read(MAX_FILE_BYTES))  # without a bound it would unpack more than it claims


def _array(data: bytes) -> NDArray[Any]:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _bytes_of(path: Path) -> bytes:
    _check_size(path.stat().st_size)
    return path.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise PresetError(f"it has {size} bytes, more than the {MAX_FILE_BYTES} of any voice")
