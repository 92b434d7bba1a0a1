"""Several text models in one runner's memory: there from the start, brought by a request, swapped, let go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.process import START_S, Served, until
from tests.unit.tiny_text import write_model, write_t5

NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three decoders and an encoder-decoder, as any folder in the hub's layout."""
    folder = tmp_path_factory.mktemp("models")
    same = {"family": "text.decoder", "licence": "none", "load": "use"}
    models: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        source = write_model(folder / name, template=None if name == "third" else "{{ messages[0].content }}")
        models[name] = {**same, "source": f"folder:{source}"}
    models["first"]["load"] = "start"
    models["small"] = {**same, "family": "text.seq2seq", "source": f"folder:{write_t5(folder / 'small')}"}
    path = folder / "catalog.yaml"
    path.write_text(json.dumps({"models": models, "profiles": {"default": {"text": list(models)}}}))
    return path


@pytest.fixture(scope="module")
def client(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service whose memory has room for two of the decoders."""
    weights = (catalog.parent / "first" / "model.safetensors").stat().st_size
    served = Served.triptych(
        tmp_path_factory.mktemp("service") / "log",
        TRIPTYCH_PROFILE=str(catalog),
        TRIPTYCH_MEMORY_GIB=str(2.5 * weights / 2**30),
    )
    try:
        served.wait_ready()
        with httpx.Client(base_url=served.url, timeout=120) as client:
            yield client
    finally:
        served.stop()


def asked(client: httpx.Client, model: str, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": "hello", "max_tokens": 8, "seed": 1, **fields}
    answer = client.post("/text", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def resident(client: httpx.Client) -> set[str]:
    return {model["name"] for model in client.get("/api/ps").json()["models"]}


def test_models_come_and_go(client: httpx.Client) -> None:
    assert resident(client) == {"first"}
    assert asked(client, "second")["model"] == "second"
    assert resident(client) == {"first", "second"}
    asked(client, "first")
    asked(client, "third")
    assert resident(client) == {"first", "third"}, "the least recently used has left"
    asked(client, "third", keep_alive_s=0.1)
    until(lambda: resident(client) == {"first"}, 30, "the end of its time")
    told = client.post("/api/generate", json={"model": "second", "keep_alive": "1h"}).json()
    assert (told["done_reason"], resident(client)) == ("load", {"first", "second"})
    told = client.post("/api/generate", json={"model": "second", "keep_alive": 0}).json()
    assert (told["done_reason"], resident(client)) == ("unload", {"first"})


def test_a_crowd_that_asks_for_all_of_them_gets_the_answers_of_each(client: httpx.Client) -> None:
    alone = {name: asked(client, name)["text"] for name in (*NAMES, "small")}
    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(lambda name: asked(client, name), [*alone] * 6))
    assert [each["text"] for each in told] == [*alone.values()] * 6


def test_messages_want_a_template(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    assert asked(client, "first", prompt=None, messages=messages)["usage"]["completion_tokens"] > 0
    for name in ("third", "small"):
        answer = client.post("/text", json={"model": name, "messages": messages})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "messages", "no_chat_template")


def test_on_vllm_several_are_refused_at_the_start(catalog: Path, tmp_path: Path) -> None:
    models = json.loads(catalog.read_text())["models"]
    two = {"models": models, "profiles": {"default": {"text": ["first", "second"]}}}
    (tmp_path / "two.yaml").write_text(json.dumps(two))
    served = Served.triptych(
        tmp_path / "log", TRIPTYCH_PROFILE=str(tmp_path / "two.yaml"), TRIPTYCH_TEXT_ENGINE="vllm"
    )

    def text() -> dict[str, Any]:
        runners: dict[str, dict[str, Any]] = served.readyz().get("runners", {})
        return runners.get("text", {})

    try:
        until(lambda: text().get("state") == "down" and "vLLM" in text()["why"], START_S, "the refusal")
        assert "vLLM serves one model a runner, and the profile has first, second" in text()["why"]
    finally:
        served.stop()
