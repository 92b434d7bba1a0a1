"""Embeddings and classification by the real service, by each of its doors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import ollama
from openai import OpenAI

from models.text.reader import MOST_TOKENS
from tests.e2e.process import Served

PASSAGES = (
    "A star is a shape with five points.",
    "A ring is a round shape with a hole in it.",
    "There was a red fox named Otto in the forest.",
    "7 + 8 is 15.",
    "I am well, thank you. What would you like to hear?",
)
QUESTIONS = (
    "What does the word star mean?",
    "Explain ring.",
    "Tell me a story about a red fox named Otto in the forest.",
    "How much is 7 plus 8?",
    "How are you today?",
)


def vectors(client: httpx.Client, *texts: str, **more: Any) -> np.ndarray:
    answer = client.post("/embed", json={"texts": texts, **more})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["vectors"])


def test_a_question_lies_nearest_to_its_passage(client: httpx.Client) -> None:
    asked, told = vectors(client, *QUESTIONS), vectors(client, *PASSAGES)
    assert np.allclose(np.linalg.norm(told, axis=1), 1, atol=1e-5)
    assert (asked @ told.T).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_other_peoples_clients_get_the_same_vectors(service: Served, client: httpx.Client) -> None:
    expected = vectors(client, *PASSAGES)
    with OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as ai:
        told = ai.embeddings.create(model="text-embedding-3-small", input=list(PASSAGES))
    assert told.model == "tiny-embed"
    assert np.allclose([each.embedding for each in told.data], expected, atol=1e-6)
    with ollama.Client(service.url) as llama:
        again = llama.embed("tiny-embed", list(PASSAGES))
    assert np.allclose(again.embeddings, expected, atol=1e-6)


def test_each_door_says_its_own_word_for_the_texts(client: httpx.Client) -> None:
    long = "many words " * 200
    for path, body, field in (
        ("/embed", {"texts": [long]}, "texts"),
        ("/v1/embeddings", {"input": long}, "input"),
    ):
        error = client.post(path, json=body).json()["error"]
        assert (error["param"], error["code"]) == (field, "text_too_long")
        assert f"`{field}`[0] has" in error["message"]
    told = client.post("/api/embed", json={"model": "tiny-embed", "input": long, "truncate": False})
    assert "`input`[0] has" in told.json()["error"]


def test_many_callers_share_calls_and_a_bad_one_is_alone(client: httpx.Client) -> None:
    def calls() -> tuple[float, float]:
        lines = client.get("/metrics").text.splitlines()
        name = 'triptych_rows_per_step_{}{{lane="embed",modality="embed"}}'
        told = [
            float(line.split()[-1])
            for kind in ("count", "sum")
            for line in lines
            if line.startswith(name.format(kind))
        ]
        return told[0], told[1]

    expected = vectors(client, "one", "two")
    before = calls()
    bodies: list[dict[str, Any]] = [{"texts": ["one", "two"]}] * 40
    bodies[7] = {"texts": ["one", "many words " * 200]}
    bodies[9] = {"texts": ["one"], "model": "tiny-classify"}
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda body: client.post("/embed", json=body), bodies))
    assert [answers[7].status_code, answers[9].status_code] == [400, 404]
    assert answers[7].json()["error"]["param"] == "texts"
    for place in set(range(40)) - {7, 9}:
        assert np.allclose(answers[place].json()["vectors"], expected, atol=1e-5)
    after = calls()
    assert after[1] - before[1] == 38
    assert after[0] - before[0] < 38, "each had a call of its own"


def test_requests_are_told_apart(client: httpx.Client) -> None:
    answer = client.post("/classify", json={"texts": [*QUESTIONS, "Zorgle the frim."], "top_k": 1})
    assert answer.status_code == 200
    told = [each["labels"][0]["label"] for each in answer.json()["results"]]
    assert told == ["define", "define", "story", "add", "talk", "unknown"]


def test_the_most_of_a_request_is_read(client: httpx.Client) -> None:
    """In several forwards: 256 texts of the model's whole length are more than one takes."""
    assert MOST_TOKENS < 256 * 100
    long = "Tell me a story about a red fox named Otto in the forest. " * 20
    made = vectors(client, *[long] * 255, "What is a star?", truncate=True)
    assert made.shape == (256, 128)
    assert np.allclose(made[-1], vectors(client, "What is a star?")[0], atol=1e-5)
