"""The image endpoint: its jobs, its encoded pictures, its stream of progress."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response

from gateway.answers import result_of, timing_headers, timings
from gateway.runners import RunnerClient
from gateway.schemas import ImageRequest, ImagesAnswer, OneImage, Timings
from gateway.several import all_done, merged, numbered
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse, sse_error
from gateway.tickets import Ticket, seed_or_fresh
from jobs import Done, Event, ImageJob, ImageResult, JobError, LoraChoice, Preview, Progress, Queued


def image_jobs(request: ImageRequest, ticket: Ticket, timeout_s: float) -> list[ImageJob]:
    """A job a picture, so that each is the picture of its own seed; after the largest seed comes 0."""
    seed = seed_or_fresh(request.seed)
    each = numbered(ticket.job_id, seed, request.num_images)
    return [_job(request, id, its_seed, timeout_s) for id, its_seed in each]


def _job(request: ImageRequest, id: str, seed: int, timeout_s: float) -> ImageJob:
    return ImageJob(
        id=id,
        model=request.model,
        timeout_s=timeout_s,
        stream=request.stream,
        seed=seed,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        timestep_spacing=request.timestep_spacing,
        init_image=_file(request.init_image),
        mask_image=_file(request.mask_image),
        strength=request.strength,
        loras=tuple(LoraChoice(name=lora.name, weight=lora.weight) for lora in request.loras),
        response_format=request.response_format,
        keep_alive_s=request.keep_alive_s,
    )


def _file(encoded: str | None) -> bytes | None:
    return None if encoded is None else base64.b64decode(encoded)


async def answer_image(jobs: Sequence[ImageJob], runner: RunnerClient, ticket: Ticket) -> Response:
    """The encoded bytes of one job, JSON with those of several, or server-sent events when the jobs stream.

    When one job fails the others are cancelled. Raises `JobError` before anything is sent.
    """
    headers = {"X-Seed": str(jobs[0].seed)}
    if jobs[0].stream:
        events = merged(jobs, runner)
        content = _stream(rejoin(await peek(events), events), ticket, several=len(jobs) > 1)
        return ClosingStream(content, EVENT_STREAM, headers)
    ends = await all_done(jobs, runner)
    last = max(ends, key=lambda done: done.total_ms)
    headers |= timing_headers(last)
    results = [result_of(done, ImageResult) for done in ends]
    headers |= verdict(results)
    if len(results) == 1:
        return Response(results[0].data, headers=headers, media_type=results[0].media_type)
    answer = ImagesAnswer(
        id=ticket.request_id,
        model=results[0].model,
        media_type=results[0].media_type,
        images=[_one(result) for result in results],
        timings=Timings(**timings(last)),
    )
    return JSONResponse(answer.model_dump(), headers=headers)


def _one(result: ImageResult) -> OneImage:
    return OneImage(b64_json=_base64(result.data), seed=result.seed, flagged=result.flagged)


def verdict(results: Sequence[ImageResult]) -> dict[str, str]:
    """Nothing where no safety checker looked; `flagged` when it withheld any of the pictures."""
    verdicts = [result.flagged for result in results if result.flagged is not None]
    return {"X-Safety-Checker": "flagged" if any(verdicts) else "passed"} if verdicts else {}


async def _stream(
    events: AsyncGenerator[tuple[int, Event], None], ticket: Ticket, *, several: bool
) -> AsyncGenerator[bytes, None]:
    """With several pictures each event tells its picture's `index`."""
    try:
        async with aclosing(events):
            async for index, event in events:
                named = _told(event, ticket)
                if named is not None:
                    name, data = named
                    yield sse({"index": index, **data} if several else data, name)
    except JobError as error:
        yield sse_error(error)


def _told(event: Event, ticket: Ticket) -> tuple[str, dict[str, Any]] | None:
    """The name and data of a server-sent event; None for what a picture's caller is not told."""
    if isinstance(event, Queued):
        return "queued", {"position": event.position}
    if isinstance(event, Progress):
        return "progress", {"step": event.step, "total": event.total}
    if isinstance(event, Preview):
        return "preview", {"media_type": event.media_type, "b64": _base64(event.data)}
    if isinstance(event, Done):
        result = result_of(event, ImageResult)
        return "result", {
            "id": ticket.request_id,
            "model": result.model,
            "seed": result.seed,
            "flagged": result.flagged,
            "media_type": result.media_type,
            "b64": _base64(result.data),
            "timings": timings(event),
        }
    return None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
