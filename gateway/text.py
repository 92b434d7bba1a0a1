"""The text endpoint: its job, its JSON answer, its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response

from gateway.answers import last_event, result_of, timings
from gateway.runners import RunnerClient
from gateway.schemas import TextRequest
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse, sse_error
from gateway.tickets import Ticket, seed_or_fresh
from jobs import Done, Event, JobError, Message, TextDelta, TextJob, TextResult


def text_job(request: TextRequest, ticket: Ticket, timeout_s: float) -> TextJob:
    messages = request.messages
    return TextJob(
        id=ticket.job_id,
        model=request.model,
        timeout_s=timeout_s,
        stream=request.stream,
        seed=seed_or_fresh(request.seed),
        prompt=request.prompt,
        messages=None
        if messages is None
        else tuple(Message(role=m.role, content=m.content) for m in messages),
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=tuple(request.stop or ()),
    )


async def answer_text(job: TextJob, runner: RunnerClient, ticket: Ticket) -> Response:
    """JSON, or server-sent events when the job streams. Raises `JobError` before any is sent."""
    headers = {"X-Seed": str(job.seed)}
    events = runner.run(job)
    if job.stream:
        content = _stream(rejoin(await peek(events), events), ticket)
        return ClosingStream(content, EVENT_STREAM, headers)
    done = await last_event(events)
    text = result_of(done, TextResult).text
    return JSONResponse({"id": ticket.request_id, "text": text, **_ending(done)}, headers=headers)


async def _stream(events: AsyncGenerator[Event, None], ticket: Ticket) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    yield sse({"id": ticket.request_id, "delta": event.text})
                elif isinstance(event, Done):
                    yield sse({"id": ticket.request_id, "delta": "", **_ending(event)})
                    yield sse("[DONE]")
    except JobError as error:
        yield sse_error(error)


def _ending(done: Done) -> dict[str, Any]:
    result = result_of(done, TextResult)
    return {
        "model": result.model,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
        },
        "timings": timings(done),
    }
