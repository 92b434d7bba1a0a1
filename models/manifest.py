"""A model's files and their SHA-256, as `sha256sum -c` reads them: made when it is fetched, checked later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

NAME = "manifest.sha256"
"""The manifest's name in a model's own folder."""
_PIECE = 1 << 20
_LARGEST_HEADER = 100 << 20
_PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth"})


class BrokenFileError(Exception):
    """A file that is not what it should be; the message names it and says how."""


def place_of(folder: Path) -> Path:
    """Where the manifest of a model in `folder` is: the hub's cache keeps a snapshot free of other files."""
    if folder.parent.name == "snapshots":
        return folder.parents[1] / "manifests" / f"{folder.name}.sha256"
    return folder / NAME


def write_manifest(folder: Path, progress: Callable[[int], object] = lambda _: None) -> int:
    """Hashes every file below `folder`; gives their number. `progress` is told the bytes read.

    Raises `BrokenFileError` for a file that the hub's cache calls by another hash than it has.
    """
    lines: list[str] = []
    for file in _files(folder):
        digest = sha256_of(file, progress)
        called = file.resolve().name  # the hub's cache names a large file by the hub's SHA-256 of it
        if len(called) == 64 and file.is_symlink() and called != digest:
            raise BrokenFileError(
                f"{file.relative_to(folder)} is not what the hub has: remove the model, then pull it again"
            )
        lines.append(f"{digest}  {file.relative_to(folder)}\n")
    manifest = place_of(folder)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def check(folder: Path, progress: Callable[[int], object] = lambda _: None) -> list[str]:
    """What is wrong with the files below `folder`, a line each. Without a manifest only what shows by itself:
    a safetensors file that is cut off or has no header.
    """
    manifest = place_of(folder)
    wrong: list[str] = []
    if manifest.is_file():
        for line in manifest.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            file = folder / name
            if not file.is_file():
                wrong.append(f"{name} is missing")
            elif sha256_of(file, progress) != digest:
                wrong.append(f"{name} has changed: its SHA-256 is not the manifest's")
        return wrong
    for file in _files(folder):
        if file.suffix == ".safetensors":
            try:
                read_header(file)
            except BrokenFileError as error:
                wrong.append(str(error))
    return wrong


def has_manifest(folder: Path) -> bool:
    return place_of(folder).is_file()


def size_of(folder: Path) -> int:
    """Bytes of all files below it."""
    return sum(file.stat().st_size for file in _files(folder))


def sha256_of(file: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a safetensors file: name -> its type and shape. Raises `BrokenFileError`."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(size - 8, _LARGEST_HEADER):
                raise BrokenFileError(f"{file.name} is no safetensors file, or its beginning is missing")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
        tensors = {
            str(name): (str(tensor["dtype"]), tuple(map(int, tensor["shape"])))
            for name, tensor in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise BrokenFileError(f"{file.name} is no safetensors file, or its header is broken") from None
    whole = 8 + length + max(ends, default=0)
    if whole != size:
        raise BrokenFileError(f"{file.name} has {size:,} bytes, and its header says {whole:,}")
    return tensors


def pickles(folder: Path) -> list[str]:
    """The files below `folder` that could run code when they are loaded."""
    return [str(file.relative_to(folder)) for file in _files(folder) if file.suffix.lower() in _PICKLES]


def strays(folder: Path) -> list[str]:
    """What below `folder` is no plain file or folder of its own: pipes, and links, but for those of a file to
    another one in it or, of a snapshot in the hub's cache, to the files that the cache keeps beside it.
    """
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append(folder.resolve().parents[1] / "blobs")

    def is_plain(each: Path) -> bool:
        if each.is_symlink():
            return each.is_file() and any(each.resolve().is_relative_to(home) for home in homes)
        return each.is_file() or each.is_dir()

    return [str(each.relative_to(folder)) for each in sorted(folder.rglob("*")) if not is_plain(each)]


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != NAME)
