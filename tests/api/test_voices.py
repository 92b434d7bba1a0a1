"""GET /voices: the list, and a sample of each."""

from __future__ import annotations

import httpx

from jobs import SpeechJob
from tests.api.fakes import SOUND, FakeRunner
from tests.api.test_errors import error_of


async def test_voices_are_listed_with_language_and_sample(client: httpx.AsyncClient) -> None:
    voices = (await client.get("/voices")).json()["voices"]
    assert [(voice["name"], voice["language"]) for voice in voices] == [
        ("v2/de_speaker_1", "de"),
        ("ann", "en"),
    ]
    assert voices[0]["sample"] == "/voices/fake/v2/de_speaker_1"


async def test_a_sample_is_spoken_in_the_voices_language(
    client: httpx.AsyncClient, runners: dict[str, FakeRunner]
) -> None:
    answer = await client.get("/voices/fake/v2/de_speaker_1")
    assert (answer.content, answer.headers["Content-Type"]) == (SOUND, "audio/wav")
    (job,) = runners["speech"].jobs
    assert isinstance(job, SpeechJob)
    assert (job.voice, job.text, job.model) == ("v2/de_speaker_1", "Eins, zwei, drei, vier.", "fake")
    assert (await client.get("/voices/fake/v2/de_speaker_1")).headers["X-Seed"] == answer.headers["X-Seed"]


async def test_other_methods_and_paths_are_refused(client: httpx.AsyncClient) -> None:
    error_of(await client.post("/voices", json={}), 405)
    error_of(await client.get("/voices/fake"), 404)
