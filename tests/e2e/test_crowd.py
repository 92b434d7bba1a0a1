"""Many clients at once: no errors, no answer to the wrong client, the same answer in any company."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.e2e.process import Served

CLIENTS = 32
CROWD_S = 60


@dataclass(frozen=True)
class Case:
    """A request whose answer is known: what it gave when nobody else was there."""

    path: str
    body: dict[str, Any]
    alone: Any


def answer_of(path: str, response: httpx.Response) -> Any:
    if path == "/text":
        return response.json()["text"]
    if path == "/image":
        return np.array(Image.open(io.BytesIO(response.content)).convert("RGB"), dtype=int)
    return response.content


def same(case: Case, answer: Any) -> bool:
    """Bit for bit, but pictures within 2 of 255."""
    if case.path == "/image":
        return bool(np.abs(case.alone - answer).max() <= 2)
    return bool(case.alone == answer)


def known_cases(client: httpx.Client) -> list[Case]:
    stories = [{"prompt": "Once upon a time", "seed": seed, "max_tokens": 24} for seed in range(6)]
    pictures = [
        {"prompt": f"a {thing}", "seed": 1, "num_inference_steps": steps, "scheduler": scheduler}
        for thing, steps, scheduler in [
            ("red circle", 6, "ddim"),
            ("green star", 9, "euler_ancestral"),
            ("white square", 7, "dpmpp_2m"),
            ("yellow ring", 4, "lcm"),
        ]
    ]
    sayings = [{"text": words, "seed": 3} for words in ("one", "nine two", "five")]
    asked: list[tuple[str, dict[str, Any]]] = [
        *(("/text", body) for body in stories),
        *(("/image", body) for body in pictures),
        *(("/speech", body) for body in sayings),
    ]
    return [Case(path, body, answer_of(path, client.post(path, json=body))) for path, body in asked]


def test_a_mixed_crowd_gets_its_own_answers(service: Served, client: httpx.Client) -> None:
    cases = known_cases(client)
    ends = time.monotonic() + CROWD_S
    statuses: Counter[int] = Counter()
    paths: Counter[str] = Counter()

    def one_client(number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=service.url, timeout=300) as mine:
            while time.monotonic() < ends:
                case = chance.choice(cases)
                nonce = f"{number}-{chance.random()}"
                response = mine.post(case.path, json=case.body, headers={"X-Request-Id": nonce})
                assert response.headers["X-Request-Id"] == nonce
                statuses[response.status_code] += 1
                if response.status_code == 503:
                    assert int(response.headers["Retry-After"]) >= 1
                    continue
                assert response.status_code == 200, response.text
                assert same(case, answer_of(case.path, response)), case.body
                paths[case.path] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        for ended in [pool.submit(one_client, number) for number in range(CLIENTS)]:
            ended.result()
    assert set(paths) == {"/text", "/image", "/speech"}
    assert statuses[503] <= statuses.total() * 0.01, statuses


def test_two_thousand_calls_without_an_error(service: Served) -> None:
    """BentoML's client to a runner closes calls in flight unless its connection is set up as ours is."""

    def calls(number: int) -> Counter[int]:
        with httpx.Client(base_url=service.url, timeout=300) as mine:
            body = {"prompt": "Once", "max_tokens": 1, "seed": number}
            return Counter(mine.post("/text", json=body).status_code for _ in range(63))

    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = sum(pool.map(calls, range(CLIENTS)), Counter[int]())
    assert statuses == {200: 63 * CLIENTS}


def test_sixty_four_mixed_requests_may_wait(service: Served) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/text", {"prompt": "Once", "max_tokens": 8}),
        ("/image", {"prompt": "a red circle", "num_inference_steps": 2}),
        ("/speech", {"text": "one"}),
        ("/image", {"prompt": "a blue ring", "num_inference_steps": 3, "guidance_scale": 1}),
    ] * 16

    def ask(asked: tuple[str, dict[str, Any]]) -> int:
        return httpx.post(f"{service.url}{asked[0]}", json=asked[1], timeout=300).status_code

    with ThreadPoolExecutor(len(bodies)) as pool:
        assert set(pool.map(ask, bodies)) == {200}
