"""Three real BentoML services that play runners by a script in the prompt, and the gateway before them.

The first word says what happens: `fail KIND` before any event, `late KIND` after some, `hang` waits to be
cancelled, `mute` too but without a single event, `quit` ends without an end, `bug` raises, `die` kills
the process; anything else is echoed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from typing import Any

import bentoml

from gateway import Gateway, GatewayOptions, open_doors
from gateway.options import ServedModel
from jobs import (
    Alternative,
    AudioChunk,
    ClassifyResult,
    Done,
    EmbedJob,
    EmbedResult,
    ErrorKind,
    Event,
    Failed,
    Finding,
    ImageJob,
    ImageResult,
    Job,
    JobError,
    Label,
    Preview,
    Progress,
    Queued,
    Result,
    SpeechJob,
    SpeechResult,
    SteppedJob,
    TextDelta,
    TextJob,
    TextResult,
    TokenLogprob,
    ToolCall,
    WholeJob,
    decode_job,
    encode_event,
)
from untimed import UntimedService

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100
SOUND = b"RIFF" + bytes(range(256)) * 100


def script(job: Job) -> str:
    if isinstance(job, WholeJob):
        return job.texts[0]
    if isinstance(job, SpeechJob):
        return job.text
    if isinstance(job, ImageJob):
        return job.prompt
    return job.prompt if job.prompt is not None else " ".join(m.content for m in job.messages or ())


def first_word(job: Job) -> str:
    return (script(job).split() or [""])[0]


def result(job: SteppedJob) -> Result:
    model = job.model or "fake"
    if isinstance(job, TextJob):
        words = script(job)
        calls = (ToolCall(id="c1", name="look", arguments="{}"),) if job.tools else ()
        return TextResult(
            model=model,
            seed=job.seed,
            text=words,
            finish_reason="tool_calls" if calls else "stop",
            prompt_tokens=3,
            completion_tokens=len(words.split()),
            logprobs=None if job.logprobs is None else logprobs(job),
            tool_calls=calls,
        )
    if isinstance(job, ImageJob):
        return ImageResult(
            model=model,
            seed=job.seed,
            data=PICTURE,
            media_type=f"image/{job.response_format}",
            flagged=VERDICTS.get(first_word(job)),
        )
    return SpeechResult(
        model=model,
        seed=job.seed,
        data=b"" if job.stream else SOUND,
        media_type="audio/wav",
        sample_rate=24000,
        duration_s=1.5,
    )


def whole_result(job: WholeJob) -> Result:
    """A vector of a text's length and two, or a label of it."""
    model, read = job.model or f"fake-{job.kind}", tuple(len(text.split()) for text in job.texts)
    if isinstance(job, EmbedJob):
        vectors = tuple((float(len(text)), 0.5, -0.25) for text in job.texts)
        return EmbedResult(model=model, vectors=vectors, tokens=read)
    said = tuple(Finding(labels=(Label(label=text, score=0.75),)) for text in job.texts)
    return ClassifyResult(model=model, findings=said, tokens=read, written=2)


def logprobs(job: TextJob) -> tuple[TokenLogprob, ...]:
    """Of the first word alone, and only if they are asked for."""
    if job.logprobs is None:
        return ()
    word = first_word(job)
    return (TokenLogprob(token=word, logprob=-0.5, top=(Alternative(token=word, logprob=-0.5),)),)


def progress(job: SteppedJob) -> list[Event]:
    if isinstance(job, TextJob):
        first, *rest = [TextDelta(text=piece) for piece in script(job).partition(" ") if piece] or [_NOTHING]
        return [TextDelta(text=first.text, logprobs=logprobs(job)), *rest]
    if isinstance(job, ImageJob):
        preview = Preview(data=b"rough", media_type="image/jpeg")
        return [Progress(step=1, total=2), preview, Progress(step=2, total=2)]
    if not job.stream:
        return []
    half = len(SOUND) // 2
    return [
        AudioChunk(data=piece, media_type="audio/wav", sample_rate=24000)
        for piece in (SOUND[:half], SOUND[half:])
    ]


class FakeRunner:
    """Keeps what the tests ask about: the jobs it has seen, those that live, those cancelled."""

    modality: str

    def __init__(self) -> None:
        STARTED[self.modality] = self
        self.jobs: list[Any] = []
        self.live: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.condition = "ready"

    @bentoml.api
    async def run(self, job: str) -> AsyncGenerator[str, None]:
        task: Any = decode_job(job)
        self.jobs.append(task)
        self.live[task.id] = asyncio.Event()
        try:
            async for event in self.play(task):
                line = encode_event(event)
                yield line[:7]
                yield line[7:]
        except JobError as error:
            yield encode_event(Failed.of(error))
        finally:
            del self.live[task.id]

    async def play(self, job: SteppedJob) -> AsyncGenerator[Event, None]:
        action, _, rest = script(job).partition(" ")
        if action == "fail":
            raise failure(rest)
        if action == "bug":
            raise ValueError(script(job))
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "mute":
            await self.until_cancelled(job)
        yield Queued(position=2, wait_s=2.5)
        if action == "hang":
            await self.until_cancelled(job)
        for event in progress(job):
            yield event
        if action == "late":
            raise failure(rest)
        if action == "quit":
            return
        yield Done(result=result(job), queue_ms=1.25, total_ms=20.5)

    async def until_cancelled(self, job: Job) -> None:
        await self.live[job.id].wait()
        raise JobError(ErrorKind.CANCELLED, "It was cancelled.")

    @bentoml.api
    async def cancel(self, id: str) -> bool:
        if id not in self.cancelled:
            self.cancelled.append(id)
        if id not in self.live:
            return False
        self.live[id].set()
        return True

    @bentoml.api
    async def state(self) -> dict[str, Any]:
        if self.condition == "mute":
            await asyncio.Event().wait()
        why = f"{len(self.cancelled)} cancelled, {len(self.live)} alive"
        resident = [{"name": name, "size_bytes": 7, "leaves_in_s": s} for name, s in RESIDENT.items()]
        return {"state": self.condition, "why": why, "models": ["fake"], "resident": resident}

    @bentoml.api
    async def watch(self) -> AsyncGenerator[str, None]:
        while True:
            yield "\n"
            await asyncio.sleep(0.2)


def failure(kind: str) -> JobError:
    """`KIND`, and if the field at fault is not the model, `KIND param=FIELD`."""
    return JobError(
        ErrorKind[kind.split()[0].upper()],
        f"It is {kind}.",
        param=kind.partition("param=")[2] or "model",
        code="scripted",
        retry_after_s=2.5,
    )


SERVICE: Any = {
    "service_class": UntimedService,
    "traffic": {"timeout": 10 * 365 * 86_400},  # it cuts `watch` too, whose end says that the runner has gone
    "runner_connection": {"max_requests": 10**9, "max_age": 1e9},
    "logging": {"access": {"enabled": False}},
}
_NOTHING = TextDelta(text="")
RESIDENT: dict[str, float | None] = {"fake": 300.0}
"""The text models in memory, and in how many seconds each leaves."""
VERDICTS = {"flagged": True, "passed": False}
STARTED: dict[str, FakeRunner] = {}
"""The runners of this process by modality, when they run inside the gateway."""


@bentoml.service(name="fake-text", **SERVICE)
class FakeText(FakeRunner):
    modality = "text"

    @bentoml.api(batchable=True, max_latency_ms=60_000)
    async def answer(self, jobs: list[str]) -> list[str]:
        return [encode_event(self.answered(decode_job(line))) for line in jobs]

    def answered(self, job: Job) -> Event:
        assert isinstance(job, WholeJob)
        self.jobs.append(job)
        action, _, rest = job.texts[0].partition(" ")
        if action == "fail":
            return Failed.of(failure(rest))
        return Done(result=whole_result(job), queue_ms=0.25, total_ms=1.25)


@bentoml.service(name="fake-image", **SERVICE)
class FakeImage(FakeRunner):
    modality = "image"


@bentoml.service(name="fake-speech", **SERVICE)
class FakeSpeech(FakeRunner):
    modality = "speech"

    @bentoml.api
    async def voices(self) -> list[dict[str, str]]:
        return [
            {"name": "v2/de_speaker_1", "model": "fake", "language": "de"},
            {"name": "ann", "model": "fake", "language": "en"},
        ]


SECRET = "a secret of the tests"  # noqa: S105 - it keeps nothing
MODELS = (
    ServedModel(name="fake", modality="text", licence="MIT"),
    ServedModel(name="fake-embed", modality="text", kind="embed", aliases=("text-embedding-3-small",)),
    ServedModel(name="fake-classify", modality="text", kind="classify"),
    ServedModel(name="fake-picture", modality="image", aliases=("gpt-image-1",)),
    ServedModel(name="fake-sound", modality="speech", aliases=("tts-1",), voices={"alloy": "ada"}),
)


@bentoml.service(name="fake-gateway", service_class=UntimedService)
class FakeGateway(Gateway):
    text_runner = bentoml.depends(FakeText)
    image_runner = bentoml.depends(FakeImage)
    speech_runner = bentoml.depends(FakeSpeech)
    options = GatewayOptions(timeout_s=20, body_timeout_s=1, models=MODELS, secret=SECRET)


open_doors(FakeGateway)
