"""Requests that mean harm, against the real service: what it opens, and how much memory it takes."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.process import Served

MIB = 1 << 20


def high_mark(pid: int) -> int:
    """The most memory, in bytes, that the process has had since `forget_high_mark`."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_high_mark(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


class Memory:
    """How much more memory than before each process of the service has taken since this was made."""

    def __init__(self, service: Served) -> None:
        self._before: dict[int, int] = {}
        for process in service.processes()[1:]:
            forget_high_mark(process.pid)
            self._before[process.pid] = high_mark(process.pid)

    def taken(self) -> int:
        return max(high_mark(pid) - before for pid, before in self._before.items())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A black picture, which deflates to a thousandth of its size; `more` chunks before it."""
    squeezed = zlib.compressobj(9)
    rows = b"".join(squeezed.compress(bytes(width + 1)) for _ in range(height)) + squeezed.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npz(shape: tuple[int, ...], said: int | None = None) -> bytes:
    """A preset whose arrays are zeros; `said`: the size that the archive's list tells of each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("semantic_prompt", "coarse_prompt", "fine_prompt"):
            array = io.BytesIO()
            np.save(array, np.zeros(shape, np.int16))
            archive.writestr(f"{part}.npy", array.getvalue())
            if said is not None:
                archive.getinfo(f"{part}.npy").file_size = said
    return file.getvalue()


def pickled() -> bytes:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (Path("/tmp/triptych-was-harmed"),))  # noqa: S108 - it must never be made

    return pickle.dumps(Harm())


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


DEFLATED = zlib.compress(bytes(256 * MIB), 9)
BOMBS: dict[str, tuple[str, dict[str, Any]]] = {
    "picture": ("/image", {"prompt": "x", "init_image": text_of(png(20_000, 20_000))}),
    "mask": (
        "/image",
        {"prompt": "x", "init_image": text_of(png(64, 64)), "mask_image": text_of(png(20_000, 20_000))},
    ),
    "words in a picture": (
        "/image",
        {"prompt": "x", "init_image": text_of(png(64, 64, chunk(b"zTXt", b"a\0\0" + DEFLATED)))},
    ),
    "profile in a picture": (
        "/image",
        {"prompt": "x", "init_image": text_of(png(64, 64, chunk(b"iCCP", b"a\0\0" + DEFLATED)))},
    ),
    "voice": ("/speech", {"text": "one", "voice_file": text_of(npz((100_000_000,)))}),
    "voice that lies": ("/speech", {"text": "one", "voice_file": text_of(npz((100_000_000,), said=1000))}),
    "pickle": ("/speech", {"text": "one", "voice_file": text_of(pickled())}),
    "pickle as picture": ("/image", {"prompt": "x", "init_image": text_of(pickled())}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(service: Served, client: httpx.Client, name: str) -> None:
    path, body = BOMBS[name]
    memory = Memory(service)
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in body
    assert memory.taken() < 50 * MIB
    assert not Path("/tmp/triptych-was-harmed").exists()  # noqa: S108


def test_a_body_without_end_is_refused_in_little_memory(service: Served, client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(MIB)

    headers = {"Content-Type": "application/json"}
    for path in ("/text", "/image", "/v1/images/edits"):
        memory = Memory(service)
        squeezed = gzip.compress(bytes(100 * MIB))
        more = {**headers, "Content-Encoding": "gzip"}
        assert client.post(path, content=squeezed, headers=more).status_code == 415
        for body in (endless(), bytes(100 * MIB)):
            with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may hang up
                assert client.post(path, content=body, headers=headers).status_code == 413
        assert memory.taken() < 20 * MIB


def test_no_connection_is_ever_made_for_a_caller(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.safetensors"
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/text", {"prompt": url, "max_tokens": 1}),
            ("/text", {"prompt": "x", "model": url}),
            ("/image", {"prompt": url, "num_inference_steps": 1}),
            ("/image", {"prompt": "x", "loras": [{"name": url}]}),
            ("/image", {"prompt": "x", "init_image": url}),
            ("/speech", {"text": "one", "voice": url}),
            ("/speech", {"text": "one", "voice_file": url}),
            ("/v1/images/edits", {"prompt": "x", "image": url}),
            ("/api/show", {"model": url}),
        ]
        for path, body in asked:
            answer = client.post(path, json=body)
            assert answer.status_code == (200 if url in (body.get("prompt"), body.get("text")) else 400)
        with pytest.raises(BlockingIOError):
            listener.accept()
