"""/jobs: what `Prefer: respond-async` has started, its state, its events and its result."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from gateway.doors import Call, Door
from gateway.errands import Errands
from gateway.kept import Name
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse


class JobProgress(BaseModel):
    step: int
    total: int


class JobResult(BaseModel):
    """How the job's request was answered; `url` gives that answer."""

    status: int = Field(description="HTTP status.")
    media_type: str | None
    bytes: int
    url: str


class JobAnswer(BaseModel):
    """Where a job stands."""

    id: str = Field(description="The X-Request-Id of the request that started it.")
    status: Literal["queued", "running", "done", "failed", "cancelled", "lost", "deleted"] = Field(
        description="lost: the service was restarted while it ran."
    )
    route: str = Field(description="What was asked.")
    created_at: float = Field(description="Seconds since 1970.")
    position: int | None = Field(description="While queued: how many are before it.")
    predicted_wait_s: float | None = Field(description="While queued: seconds until it starts, about.")
    progress: JobProgress | None = Field(description="Steps of a picture.")
    result: JobResult | None


def job_doors(errands: Errands) -> tuple[Door, ...]:
    def name_of(call: Call) -> Name:
        return Name(call.ticket.key_id, "job", call.path["id"])

    async def state(_: Any, call: Call) -> Response:
        return JSONResponse(await errands.told(name_of(call)))

    async def cancel(_: Any, call: Call) -> Response:
        return JSONResponse(await errands.cancel(name_of(call)))

    async def result(_: Any, call: Call) -> Response:
        told = await errands.told(name_of(call))
        answer = None if told["result"] is None else (await errands.ended(name_of(call))).answer
        return JSONResponse(told, 202) if answer is None else answer.response()

    async def events(_: Any, call: Call) -> Response:
        states = errands.watch(name_of(call))
        return ClosingStream(_stream(rejoin(await peek(states), states)), EVENT_STREAM, {})

    return (
        Door(method="GET", path="/jobs/{id}", summary="Where a job stands.", answer=state, answers=JobAnswer),
        Door(
            method="DELETE",
            path="/jobs/{id}",
            summary="Cancels a job; forgets one that has ended.",
            answer=cancel,
            answers=JobAnswer,
        ),
        Door(
            method="GET",
            path="/jobs/{id}/result",
            summary="The answer to the job's request, as it would have been; 202 until there is one.",
            answer=result,
            media=("*/*",),
        ),
        Door(
            method="GET",
            path="/jobs/{id}/events",
            summary="The job's states as server-sent events, until it has ended.",
            answer=events,
            media=(EVENT_STREAM,),
        ),
    )


async def _stream(states: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(states):
        async for state in states:
            yield sse(state, state["status"])
