"""The image endpoint: its job, its encoded picture, its stream of progress."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from gateway.answers import last_event, result_of, timing_headers, timings
from gateway.runners import RunnerClient
from gateway.schemas import ImageRequest
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse, sse_error
from gateway.tickets import Ticket, seed_or_fresh
from jobs import Done, Event, ImageJob, ImageResult, JobError, LoraChoice, Preview, Progress, Queued


def image_job(request: ImageRequest, ticket: Ticket, timeout_s: float) -> ImageJob:
    return ImageJob(
        id=ticket.job_id,
        model=request.model,
        timeout_s=timeout_s,
        stream=request.stream,
        seed=seed_or_fresh(request.seed),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        loras=tuple(LoraChoice(name=lora.name, weight=lora.weight) for lora in request.loras),
        response_format=request.response_format,
    )


async def answer_image(job: ImageJob, runner: RunnerClient, ticket: Ticket) -> Response:
    """The encoded bytes, or server-sent events when the job streams. Raises `JobError` before any is sent."""
    headers = {"X-Seed": str(job.seed)}
    events = runner.run(job)
    if job.stream:
        content = _stream(rejoin(await peek(events), events), ticket)
        return ClosingStream(content, EVENT_STREAM, headers)
    done = await last_event(events)
    result = result_of(done, ImageResult)
    return Response(result.data, headers=headers | timing_headers(done), media_type=result.media_type)


async def _stream(events: AsyncGenerator[Event, None], ticket: Ticket) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Queued):
                    yield sse({"position": event.position}, "queued")
                elif isinstance(event, Progress):
                    yield sse({"step": event.step, "total": event.total}, "progress")
                elif isinstance(event, Preview):
                    yield sse({"media_type": event.media_type, "b64": _base64(event.data)}, "preview")
                elif isinstance(event, Done):
                    yield _result(event, ticket)
    except JobError as error:
        yield sse_error(error)


def _result(done: Done, ticket: Ticket) -> bytes:
    result = result_of(done, ImageResult)
    answer = {
        "id": ticket.request_id,
        "model": result.model,
        "seed": result.seed,
        "media_type": result.media_type,
        "b64": _base64(result.data),
        "timings": timings(done),
    }
    return sse(answer, "result")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
