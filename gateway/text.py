"""The text endpoint: its jobs, its JSON answer, its stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import TypeAdapter
from starlette.responses import JSONResponse, Response

from gateway.answers import result_of, timings
from gateway.runners import RunnerClient
from gateway.several import all_done, merged, numbered
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse, sse_error
from gateway.text_schemas import ChatMessage, TextFormat, TextRequest
from gateway.tickets import Ticket, seed_or_fresh
from jobs import (
    Constraint,
    Done,
    Event,
    JobError,
    LoraChoice,
    Message,
    TextDelta,
    TextJob,
    TextResult,
    TokenLogprob,
    Tool,
    ToolCall,
)

_LOGPROBS: TypeAdapter[tuple[TokenLogprob, ...]] = TypeAdapter(tuple[TokenLogprob, ...])


def text_jobs(request: TextRequest, ticket: Ticket, timeout_s: float) -> list[TextJob]:
    """A job a text, so that each is the text of its own seed; after the largest seed comes 0."""
    each = numbered(ticket.job_id, seed_or_fresh(request.seed), request.n)
    return [_job(request, ticket, id, seed, timeout_s) for id, seed in each]


def _job(request: TextRequest, ticket: Ticket, id: str, seed: int, timeout_s: float) -> TextJob:
    return TextJob(
        id=id,
        model=request.model,
        timeout_s=timeout_s,
        stream=request.stream,
        seed=seed,
        prompt=request.prompt,
        messages=None if request.messages is None else tuple(map(_message, request.messages)),
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        ignore_eos=request.ignore_eos,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        stop=tuple(request.stop or ()),
        logprobs=request.logprobs,
        constraint=_constraint(request.response_format),
        loras=tuple(LoraChoice(name=lora.name, weight=lora.weight) for lora in request.loras),
        tools=tuple(Tool(**tool.function.model_dump()) for tool in request.tools),
        tool_choice=request.tool_choice,
        keep_alive_s=request.keep_alive_s,
        cache_salt=ticket.key_id or None,
    )


def _message(said: ChatMessage) -> Message:
    calls = (ToolCall(id=call.id, **call.function.model_dump()) for call in said.tool_calls)
    return Message(
        role=said.role,
        content=said.content,
        tool_calls=tuple(calls),
        tool_call_id=said.tool_call_id,
        name=said.name,
    )


def _constraint(form: TextFormat | None) -> Constraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "regex":
        return Constraint(kind="regex", value=form.pattern or "")
    schema = {"type": "object"} if form.type == "json_object" else form.json_schema
    return Constraint(kind="json_schema", value=json.dumps(schema))


async def answer_text(jobs: Sequence[TextJob], runner: RunnerClient, ticket: Ticket) -> Response:
    """JSON, or server-sent events when the jobs stream. Raises `JobError` before any is sent.

    When one job of several fails the others are cancelled.
    """
    headers = {"X-Seed": str(jobs[0].seed)}
    if jobs[0].stream:
        events = merged(jobs, runner)
        content = _stream(rejoin(await peek(events), events), ticket, several=len(jobs))
        return ClosingStream(content, EVENT_STREAM, headers)
    ends = await all_done(jobs, runner)
    results = [result_of(done, TextResult) for done in ends]
    answer = {"id": ticket.request_id, "model": results[0].model, **_choice(results[0])}
    if len(results) > 1:
        answer["choices"] = [{"index": index, **_choice(result)} for index, result in enumerate(results)]
    last = max(ends, key=lambda done: done.total_ms)
    answer |= {"usage": usage(results), "timings": timings(last)}
    return JSONResponse(answer, headers=headers)


async def _stream(
    events: AsyncGenerator[tuple[int, Event], None], ticket: Ticket, *, several: int
) -> AsyncGenerator[bytes, None]:
    """With several texts each event tells its text's `index`, and the last one's usage is that of all."""
    results: list[TextResult] = []
    try:
        async with aclosing(events):
            async for index, event in events:
                named: dict[str, Any] = {"index": index} if several > 1 else {}
                if isinstance(event, TextDelta):
                    logprobs = {"logprobs": told(event.logprobs)} if event.logprobs else {}
                    yield sse({"id": ticket.request_id, **named, "delta": event.text, **logprobs})
                elif isinstance(event, Done):
                    results.append(result_of(event, TextResult))
                    ending = _ending(event, results if len(results) == several else results[-1:])
                    yield sse({"id": ticket.request_id, **named, "delta": "", **ending})
            yield sse("[DONE]")
    except JobError as error:
        yield sse_error(error)


def _ending(done: Done, counted: Sequence[TextResult]) -> dict[str, Any]:
    result = result_of(done, TextResult)
    said = _choice(result)
    del said["text"]
    said.pop("logprobs", None)
    return {"model": result.model, **said, "usage": usage(counted), "timings": timings(done)}


def _choice(result: TextResult) -> dict[str, Any]:
    said: dict[str, Any] = {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
    }
    if result.logprobs is not None:
        said["logprobs"] = told(result.logprobs)
    if result.tool_calls:
        said["tool_calls"] = [called(call) for call in result.tool_calls]
    return said


def told(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Each token with its log probability and the likeliest in its place."""
    return _LOGPROBS.dump_python(tuple(logprobs))


def called(call: ToolCall) -> dict[str, Any]:
    """A tool call in the field's usual form."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def usage(results: Sequence[TextResult]) -> dict[str, int]:
    """Tokens of the prompt, counted once, and of all the texts."""
    prompt = results[0].prompt_tokens
    completion = sum(result.completion_tokens for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
