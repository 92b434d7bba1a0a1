"""A full disk: nothing can be written any more, neither the database nor the log, and answers go on."""

from __future__ import annotations

import resource
from collections.abc import Generator
from contextlib import contextmanager

import httpx

from tests.e2e.process import Served


@contextmanager
def full_disk(service: Served) -> Generator[None]:
    """No process of the service can make any file longer."""
    before: dict[int, tuple[int, int]] = {}
    for process in service.processes():
        before[process.pid] = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, before[process.pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_answers_go_on_with_a_full_disk(service: Served, client: httpx.Client) -> None:
    words = {"prompt": "Once upon a time", "max_tokens": 4, "seed": 1}
    picture = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}
    before = client.post("/text", json=words).json()["text"]
    with full_disk(service):
        for _ in range(3):
            assert client.post("/text", json=words).json()["text"] == before
            assert client.post("/image", json=picture).status_code == 200
            assert client.post("/speech", json={"text": "one", "seed": 1}).status_code == 200
            assert client.get("/readyz").status_code == 200
        kept = client.post("/text", json=words, headers={"Prefer": "respond-async"})
        assert kept.status_code == 503, kept.text
        assert kept.json()["error"]["code"] == "no_store"
        assert int(kept.headers["Retry-After"]) >= 1
        once = client.post("/text", json=words, headers={"Idempotency-Key": "full"})
        assert once.status_code == 503, once.text
    again = client.post("/text", json=words, headers={"Idempotency-Key": "full"})
    assert again.json()["text"] == before
    assert set(service.readyz()["runners"]) == {"text", "image", "speech"}
