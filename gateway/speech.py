"""The speech endpoint: its job, its encoded sound, whole or piece by piece."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response

from gateway.answers import last_event, result_of, timing_headers, timings
from gateway.runners import RunnerClient
from gateway.schemas import SpeechRequest
from gateway.sending import StreamAbortedError
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse, sse_error
from gateway.tickets import Ticket, seed_or_fresh
from jobs import AudioChunk, Done, Event, JobError, Progress, Queued, SpeechJob, SpeechResult


def speech_job(request: SpeechRequest, ticket: Ticket, timeout_s: float) -> SpeechJob:
    return SpeechJob(
        id=ticket.job_id,
        model=request.model,
        timeout_s=timeout_s,
        stream=request.stream,
        seed=seed_or_fresh(request.seed),
        text=request.text,
        language=request.language,
        voice=request.voice,
        voice_file=None if request.voice_file is None else base64.b64decode(request.voice_file),
        temperature=request.temperature,
        response_format=request.response_format,
        sample_rate=request.sample_rate,
        keep_alive_s=request.keep_alive_s,
    )


async def answer_speech_events(job: SpeechJob, runner: RunnerClient, ticket: Ticket) -> Response:
    """Server-sent events: queued, progress, audio, result or error. Raises `JobError` before any is sent."""
    events = runner.run(job)
    content = _events(rejoin(await peek(events), events), ticket)
    return ClosingStream(content, EVENT_STREAM, {"X-Seed": str(job.seed)})


async def _events(events: AsyncGenerator[Event, None], ticket: Ticket) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Queued):
                    yield sse({"position": event.position}, "queued")
                elif isinstance(event, Progress):
                    yield sse({"step": event.step, "total": event.total}, "progress")
                elif isinstance(event, AudioChunk):
                    yield sse(_piece(event), "audio")
                elif isinstance(event, Done):
                    yield sse(_told(event, ticket), "result")
    except JobError as error:
        yield sse_error(error)


def _piece(chunk: AudioChunk) -> dict[str, Any]:
    data = base64.b64encode(chunk.data).decode("ascii")
    return {"media_type": chunk.media_type, "sample_rate": chunk.sample_rate, "b64": data}


def _told(done: Done, ticket: Ticket) -> dict[str, Any]:
    result = result_of(done, SpeechResult)
    return {
        "id": ticket.request_id,
        "model": result.model,
        "seed": result.seed,
        "media_type": result.media_type,
        "sample_rate": result.sample_rate,
        "duration_s": round(result.duration_s, 3),
        "timings": timings(done),
    }


async def answer_speech(job: SpeechJob, runner: RunnerClient) -> Response:
    """The encoded bytes, as one or as they come. Raises `JobError` before any is sent."""
    headers = {"X-Seed": str(job.seed)}
    events = runner.run(job)
    if job.stream:
        first = await _first_sound(events)
        media_type, sample_rate = _format(first)
        headers["X-Sample-Rate"] = str(sample_rate)
        return ClosingStream(_stream(rejoin(first, events)), media_type, headers)
    done = await last_event(events)
    result = result_of(done, SpeechResult)
    headers |= {"X-Sample-Rate": str(result.sample_rate), **timing_headers(done)}
    return Response(result.data, headers=headers, media_type=result.media_type)


async def _first_sound(events: AsyncGenerator[Event, None]) -> AudioChunk | Done:
    """Nothing can be sent before the first sound, and only it tells the format and the sample rate."""
    try:
        while True:
            event = await anext(events)
            if isinstance(event, AudioChunk | Done):
                return event
    except BaseException:
        await events.aclose()
        raise


def _format(event: AudioChunk | Done) -> tuple[str, int]:
    source = result_of(event, SpeechResult) if isinstance(event, Done) else event
    return source.media_type, source.sample_rate


async def _stream(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Raises `StreamAbortedError` when the job fails on the way: sound has no words for that."""
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, AudioChunk):
                    yield event.data
                elif isinstance(event, Done) and (rest := result_of(event, SpeechResult).data):
                    yield rest
    except JobError:
        raise StreamAbortedError from None
