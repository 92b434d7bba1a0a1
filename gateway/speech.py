"""The speech endpoint: its job, its encoded sound, whole or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from gateway.answers import last_event, result_of, timing_headers
from gateway.runners import RunnerClient
from gateway.schemas import SpeechRequest
from gateway.sending import StreamAbortedError
from gateway.streams import ClosingStream, rejoin
from gateway.tickets import Ticket, seed_or_fresh
from jobs import AudioChunk, Done, Event, JobError, SpeechJob, SpeechResult


def speech_job(request: SpeechRequest, ticket: Ticket, timeout_s: float) -> SpeechJob:
    return SpeechJob(
        id=ticket.job_id,
        model=request.model,
        timeout_s=timeout_s,
        stream=request.stream,
        seed=seed_or_fresh(request.seed),
        text=request.text,
        voice=request.voice,
        temperature=request.temperature,
        response_format=request.response_format,
    )


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
