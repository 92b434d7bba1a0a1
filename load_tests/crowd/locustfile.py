"""A mixed crowd of callers, at the native doors and at OpenAI's, for locust.

By itself: `locust -f load_tests/crowd/locustfile.py --host http://127.0.0.1:3000`, by `--tags image` a part.
Under `make load` it ramps up by LOAD_CLIENTS ("1,2,4") for LOAD_STAGE_S seconds each, stops by itself, and
writes each request to LOAD_SAMPLES. LOAD_KEY is the callers' key, where one is needed.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, LoadTestShape, between, events, tag, task

STAGES = [int(each) for each in os.environ.get("LOAD_CLIENTS", "").split(",") if each]
STAGE_S = float(os.environ.get("LOAD_STAGE_S", "15"))
ANIMALS = ("fox", "cat", "owl", "bear", "frog")
COLOURS = ("red", "green", "blue", "white", "black")


def words(what: str) -> str:
    return f"{what} about a {random.choice(COLOURS)} {random.choice(ANIMALS)}"


class Caller(FastHttpUser):
    """Thinks a little between two requests."""

    abstract = True
    wait_time = between(0.1, 0.3)
    network_timeout = 300.0
    connection_timeout = 30.0

    def on_start(self) -> None:
        key = os.environ.get("LOAD_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, path: str, body: dict[str, Any], name: str | None = None) -> None:
        self.client.post(path, json=body, headers=self.headers, name=name or path)


class NativeCaller(Caller):
    weight = 3

    @tag("text")
    @task(4)
    def text(self) -> None:
        self.ask("/text", {"prompt": words("Tell me a story"), "max_tokens": 32})

    @tag("text")
    @task(3)
    def text_stream(self) -> None:
        body = {"prompt": words("Tell me a story"), "max_tokens": 32, "stream": True}
        self.ask("/text", body, "/text (stream)")

    @tag("image")
    @task(2)
    def image(self) -> None:
        loras = random.choice(([], [], [{"name": "night"}], [{"name": "outline"}]))
        steps = random.choice((8, 12, 20))
        prompt = f"a {random.choice(COLOURS)} circle on a blue background"
        self.ask("/image", {"prompt": prompt, "num_inference_steps": steps, "loras": loras})

    @tag("speech")
    @task(2)
    def speech(self) -> None:
        self.ask(
            "/speech", {"text": "one two three", "voice": random.choice(("ada", "vera", "otto", "hugo"))}
        )

    @tag("embed")
    @task(2)
    def embed(self) -> None:
        self.ask("/embed", {"texts": [words("A story") for _ in range(4)]})


class OpenAICaller(Caller):
    weight = 2

    @tag("text")
    @task(5)
    def chat(self) -> None:
        messages = [{"role": "user", "content": words("Tell me a story")}]
        self.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 32})

    @tag("image")
    @task(1)
    def images(self) -> None:
        self.ask("/v1/images/generations", {"prompt": "a green ring", "num_inference_steps": 8})

    @tag("speech")
    @task(1)
    def speech(self) -> None:
        body = {"model": "tts-1", "voice": "alloy", "input": "one two", "response_format": "wav"}
        self.ask("/v1/audio/speech", body)

    @tag("embed")
    @task(2)
    def embeddings(self) -> None:
        self.ask("/v1/embeddings", {"input": [words("A story")]})


if STAGES:

    class Ramp(LoadTestShape):
        """The next number of clients every `STAGE_S` seconds, then the end."""

        def tick(self) -> tuple[int, float] | None:
            stage = int(self.get_run_time() / STAGE_S)
            return (STAGES[stage], STAGES[stage]) if stage < len(STAGES) else None


if file := os.environ.get("LOAD_SAMPLES"):
    samples = Path(file).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as locust runs

    @events.request.add_listener
    def note(name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
        failed = None if exception is None else str(exception)[:200]
        line = {"at": time.time(), "name": name, "ms": response_time, "failed": failed}
        samples.write(json.dumps(line) + "\n")

    @events.quitting.add_listener
    def close(**_: Any) -> None:
        samples.close()
