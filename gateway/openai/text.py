"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from openai.types import Completion
from openai.types.chat import ChatCompletion
from starlette.responses import Response

from gateway.answers import result_of, timing_headers
from gateway.doors import Call, Door, native
from gateway.errors import error_body
from gateway.openai.text_wire import ChatRequest, CompletionRequest, Sampled
from gateway.openai.wire import JsonAnswer
from gateway.openai.words import ChatWords, CompletionWords, Words
from gateway.several import all_done, merged
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse
from gateway.text import text_jobs
from gateway.text_schemas import TextRequest
from jobs import Done, Event, JobError, TextDelta, TextResult


async def chat(request: ChatRequest, call: Call) -> Response:
    limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    names = {"max_tokens": limit, "logprobs": "top_logprobs"}
    return await _answer(native(TextRequest, request.as_native(call), names), request, call, ChatWords)


async def complete(request: CompletionRequest, call: Call) -> Response:
    return await _answer(native(TextRequest, request.as_native(call)), request, call, CompletionWords)


async def _answer(asked: TextRequest, request: Sampled, call: Call, words: type[Words]) -> Response:
    jobs = text_jobs(asked, call.ticket, call.options.timeout_s)
    runner = call.runners["text"]
    headers = {"X-Seed": str(jobs[0].seed)}
    name = asked.model or call.options.default_model("text")
    said = words(call.ticket.request_id, name, wants_usage=request.wants_usage)
    if asked.stream:
        events = merged(jobs, runner)
        content = _stream(rejoin(await peek(events), events), said)
        return ClosingStream(content, EVENT_STREAM, headers)
    ends = await all_done(jobs, runner)
    headers |= timing_headers(max(ends, key=lambda done: done.total_ms))
    return JsonAnswer(said.whole([result_of(done, TextResult) for done in ends]), headers)


async def _stream(
    events: AsyncGenerator[tuple[int, Event], None], said: Words
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()
    results: list[TextResult] = []
    try:
        async with aclosing(events):
            async for index, event in events:
                if index not in begun:
                    begun.add(index)
                    for opening in said.opening(index):
                        yield opening
                if isinstance(event, TextDelta):
                    yield said.delta(index, event)
                elif isinstance(event, Done):
                    results.append(result_of(event, TextResult))
                    for ending in said.ending(index, results[-1]):
                        yield ending
            for closing in said.closing(results):
                yield closing
    except JobError as error:
        yield sse(error_body(error))


DOORS = (
    Door(
        method="POST",
        path="/v1/chat/completions",
        summary="OpenAI: goes on with a conversation.",
        request=ChatRequest,
        answer=chat,
        answers=ChatCompletion,
        media=("application/json", EVENT_STREAM),
    ),
    Door(
        method="POST",
        path="/v1/completions",
        summary="OpenAI: goes on with a text.",
        request=CompletionRequest,
        answer=complete,
        answers=Completion,
        media=("application/json", EVENT_STREAM),
    ),
)
