"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import Field
from starlette.responses import Response

from gateway.answers import last_event, result_of
from gateway.doors import Call, Door, Wire, like, native
from gateway.errors import error_body
from gateway.openai.wire import JsonAnswer
from gateway.openai.words import ChatWords, CompletionWords, Words
from gateway.schemas import NO_NUL, Model, Seed, StopStrings, TextRequest, Whole
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse
from gateway.text import text_job
from jobs import Done, Event, JobError, TextDelta, TextResult

DEFAULT_TOKENS = 16
"""What OpenAI's completions write when not told how much."""
EXAMPLE = [{"role": "user", "content": "What is a star?"}]


class TextPart(Wire):
    """A piece of a message's text."""

    type: Literal["text"] = Field(description="Only text goes in.")
    text: str = Field(max_length=32768, pattern=NO_NUL, description="What is said, in characters.")


class ChatTurn(Wire):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says it.")
    content: str | list[TextPart] = Field(description="What is said, whole or in pieces.")
    name: str | None = Field(None, max_length=64, description="The speaker's name; models are not told.")

    def as_native(self) -> dict[str, str]:
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Wire):
    """What a stream tells besides the text."""

    include_usage: bool = Field(False, description="Send one more event, with the usage, at the end.")


class Sampled(Wire):
    """What both ways to ask for text have in common."""

    model: Model = None
    temperature: float | None = like(TextRequest, "temperature", default=None)
    top_p: float | None = like(TextRequest, "top_p", default=None)
    top_k: Whole | None = like(TextRequest, "top_k", default=None)
    stop: StopStrings | None = like(TextRequest, "stop")
    seed: Seed = None
    stream: bool | None = Field(None, description="Answer with server-sent events, a piece of text each.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    user: str | None = Field(None, max_length=256, description="Taken for the clients' sake, and not kept.")

    def sampling(self, call: Call) -> dict[str, Any]:
        return {
            "model": call.model_name(self.model, "text"),
            **{name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "stop", "seed")},
            "stream": bool(self.stream),
        }

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampled):
    """A conversation to go on with, through the model's chat template."""

    messages: list[ChatTurn] = Field(
        min_length=1, max_length=64, description="The conversation so far.", examples=[EXAMPLE]
    )
    max_tokens: Whole | None = like(TextRequest, "max_tokens", default=None)
    max_completion_tokens: Whole | None = like(TextRequest, "max_tokens", default=None, examples=None)
    n: Literal[1] | None = Field(None, description="How many answers.")


class CompletionRequest(Sampled):
    """A text to go on with, as it stands."""

    prompt: str = like(TextRequest, "prompt", annotation=str, description="Text to continue, in characters.")
    max_tokens: Whole | None = like(TextRequest, "max_tokens", default=None)
    n: Literal[1] | None = Field(None, description="How many texts.")


async def chat(request: ChatRequest, call: Call) -> Response:
    fields = {
        "messages": [turn.as_native() for turn in request.messages],
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        **request.sampling(call),
    }
    limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    return await _answer(native(TextRequest, fields, {"max_tokens": limit}), request, call, ChatWords)


async def complete(request: CompletionRequest, call: Call) -> Response:
    fields = {
        "prompt": request.prompt,
        "max_tokens": request.max_tokens or DEFAULT_TOKENS,
        **request.sampling(call),
    }
    return await _answer(native(TextRequest, fields), request, call, CompletionWords)


async def _answer(asked: TextRequest, request: Sampled, call: Call, words: type[Words]) -> Response:
    job = text_job(asked, call.ticket, call.options.timeout_s)
    events = call.runners["text"].run(job)
    headers = {"X-Seed": str(job.seed)}
    name = job.model or call.options.default_model("text")
    said = words(call.ticket.request_id, name, wants_usage=request.wants_usage)
    if job.stream:
        return ClosingStream(_stream(rejoin(await peek(events), events), said), EVENT_STREAM, headers)
    return JsonAnswer(said.whole(result_of(await last_event(events), TextResult)), headers)


async def _stream(events: AsyncGenerator[Event, None], said: Words) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            for opening in said.opening():
                yield opening
            async for event in events:
                if isinstance(event, TextDelta):
                    yield said.delta(event.text)
                elif isinstance(event, Done):
                    for ending in said.ending(result_of(event, TextResult)):
                        yield ending
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
