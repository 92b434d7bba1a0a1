"""/api/generate and /api/chat: newline-delimited JSON, streamed unless told not to."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from gateway.answers import last_event, result_of
from gateway.doors import Call, Door, native
from gateway.ollama.models import known
from gateway.ollama.wire import Asked, OllamaChat, OllamaError, OllamaGenerate, refuse, told
from gateway.streams import ClosingStream, peek, rejoin
from gateway.text import text_jobs
from gateway.text_schemas import TextRequest
from gateway.whole import embed_job
from gateway.whole_schemas import EmbedRequest
from jobs import Done, Event, JobError, TextDelta, TextResult

NDJSON = "application/x-ndjson"
Say = Callable[[str, TextResult | None], dict[str, Any]]
"""A piece of text in the answer's own words; the result comes with the last."""


async def generate(request: OllamaGenerate, call: Call) -> Response:
    prompt = request.prompt or ""
    if not prompt:
        reason = await _only_moved(request, call)
        return JSONResponse(told(request.model, {"response": "", "done": True, "done_reason": reason}))
    fields = request.as_native(call)
    if request.raw:
        fields["prompt"] = prompt
    else:
        system = [{"role": "system", "content": request.system}] if request.system else []
        fields["messages"] = [*system, {"role": "user", "content": prompt}]
    return await _answer(request, fields, call, lambda text, _: {"response": text})


async def _only_moved(request: OllamaGenerate, call: Call) -> str:
    """As Ollama's own commands ask: the model comes into memory, stays for another while, or leaves it.

    A runner moves a model by a job for it, so the smallest there is goes there. Raises `JobError`.
    """
    model, keep_alive_s, runner = known(request.model, call), request.keep_alive_s(), call.runners["text"]
    is_here = model.name in {each["name"] for each in await runner.resident()}
    if is_here if keep_alive_s == 0 else not is_here or keep_alive_s is not None:
        same = {"model": model.name, "keep_alive_s": keep_alive_s}
        if model.kind == "embed":
            asked = native(EmbedRequest, {**same, "texts": ["."]}, {})
            job = embed_job(asked, call.ticket, call.options.timeout_s)
        else:
            least = native(TextRequest, {**same, "prompt": ".", "max_tokens": 1, "seed": 0}, {})
            (job,) = text_jobs(least, call.ticket, call.options.timeout_s)
        await last_event(runner.run(job))
    return "unload" if keep_alive_s == 0 else "load"


async def chat(request: OllamaChat, call: Call) -> Response:
    fields = {
        **request.as_native(call),
        "messages": [turn.as_native() for turn in request.messages],
        "tools": [tool.model_dump() for tool in request.tools or ()],
    }
    return await _answer(request, fields, call, _message)


def _message(text: str, result: TextResult | None) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": text}
    if result is not None and result.tool_calls:
        said["tool_calls"] = [
            {"function": {"name": each.name, "arguments": json.loads(each.arguments)}}
            for each in result.tool_calls
        ]
    return {"message": said}


async def _answer(request: Asked, fields: dict[str, Any], call: Call, say: Say) -> Response:
    asked = native(TextRequest, fields, {"repetition_penalty": "options.repeat_penalty"})
    asked.max_tokens = request.most_tokens()
    (job,) = text_jobs(asked, call.ticket, call.options.timeout_s)
    job = replace(job, keep_alive_s=request.keep_alive_s())
    events = call.runners["text"].run(job)
    headers = {"X-Seed": str(job.seed)}
    if not job.stream:
        done = await last_event(events)
        result = result_of(done, TextResult)
        return JSONResponse(
            told(request.model, {**say(result.text, result), **_ending(done)}), headers=headers
        )
    content = _lines(request, rejoin(await peek(events), events), say)
    return ClosingStream(content, NDJSON, headers)


async def _lines(
    request: Asked, events: AsyncGenerator[Event, None], say: Say
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    yield _line(told(request.model, {**say(event.text, None), "done": False}))
                elif isinstance(event, Done):
                    result = result_of(event, TextResult)
                    yield _line(told(request.model, {**say("", result), **_ending(event)}))
    except JobError as error:
        yield _line({"error": error.message})


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode("ascii") + b"\n"


def _ending(done: Done) -> dict[str, Any]:
    """Times in nanoseconds. Reading the prompt and writing are not told apart: `eval_duration` is of both."""
    result = result_of(done, TextResult)
    return {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": round(done.total_ms * 1e6),
        "load_duration": round(done.queue_ms * 1e6),
        "prompt_eval_count": result.prompt_tokens,
        "eval_count": result.completion_tokens,
        "eval_duration": round((done.total_ms - done.queue_ms) * 1e6),
    }


DOORS = (
    Door(
        method="POST",
        path="/api/generate",
        summary="Ollama: answers a prompt.",
        request=OllamaGenerate,
        answer=generate,
        media=(NDJSON, "application/json"),
        refuse=refuse,
        error=OllamaError,
    ),
    Door(
        method="POST",
        path="/api/chat",
        summary="Ollama: goes on with a conversation.",
        request=OllamaChat,
        answer=chat,
        media=(NDJSON, "application/json"),
        refuse=refuse,
        error=OllamaError,
    ),
)
