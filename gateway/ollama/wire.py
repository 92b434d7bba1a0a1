"""What /api/generate, /api/chat and /api/show may be asked, and what every answer of /api has."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema
from pydantic_core import PydanticUndefined
from starlette.responses import Response

from gateway.doors import Call, OnlyFalse, Wire, like
from gateway.errors import ErrorResponse
from gateway.explain import invalid
from gateway.schemas import MOST_KEPT_S, NO_NUL, MaybeWhole, Seed
from gateway.text_schemas import (
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    MAX_TOOLS,
    ChatMessage,
    JsonSchema,
    StopStrings,
    TextRequest,
    ToolName,
    ToolSpec,
)
from jobs import JobError

_DURATION = re.compile(r"(-?)(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9}(?:[.][0-9]+)?)s?)?")
_DURATIONS: dict[str, Any] = {
    "type": "string",
    "pattern": "^-?([0-9]{1,6}h([0-9]{1,6}m)?([0-9]{1,9}s)?|[0-9]{1,6}m([0-9]{1,9}s)?|[0-9]{1,9}s?)$",
}


def seconds(text: str) -> float:
    """`5m`, `1h30m`, `90s`, `-1`. Raises `JobError`."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()[1:]):
        message = "`keep_alive` must be seconds or a duration like 5m or 1h30m."
        raise invalid(message, "invalid_field", "keep_alive")
    sign, hours, minutes, rest = match.groups()
    total = float(hours or 0) * 3600 + float(minutes or 0) * 60 + float(rest or 0)
    return -total if sign else total


def told(model: str, said: dict[str, Any]) -> dict[str, Any]:
    """A line of an answer."""
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"), **said}


def plain_name(name: str) -> str:
    """A tag says which build of a model is meant, and here each has one."""
    return name.removesuffix(":latest")


class OllamaError(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: str = Field(description="What is wrong and what to do; for people.")


def refuse(error: JobError) -> Response:
    """Ollama's errors are one string."""
    return ErrorResponse(error, content={"error": error.message})


def model_field(example: str) -> Any:
    return like(TextRequest, "model", annotation=str, default=PydanticUndefined, examples=[example])


class Named(Wire):
    """What every request that makes something has."""

    model: str = model_field("tiny-llama")
    keep_alive: float | Annotated[str, WithJsonSchema(_DURATIONS)] | None = Field(
        None, description="How long the model stays in memory: seconds, or 5m; below 0 for good."
    )

    def keep_alive_s(self) -> float | None:
        """As natively: -1 for good. Raises `JobError`."""
        given = seconds(self.keep_alive) if isinstance(self.keep_alive, str) else self.keep_alive
        if given is not None and given > MOST_KEPT_S:
            raise invalid("`keep_alive` must be at most 24h.", "out_of_bounds", "keep_alive")
        return given if given is None else max(given, -1.0)


class Options(Wire):
    """How tokens are chosen."""

    temperature: float | None = like(TextRequest, "temperature", default=None)
    top_k: int | None = like(TextRequest, "top_k", default=None)
    top_p: float | None = like(TextRequest, "top_p", default=None)
    min_p: float | None = like(TextRequest, "min_p", default=None)
    repeat_penalty: float | None = like(TextRequest, "repetition_penalty", default=None)
    presence_penalty: float | None = like(TextRequest, "presence_penalty", default=None)
    frequency_penalty: float | None = like(TextRequest, "frequency_penalty", default=None)
    seed: Seed = None
    stop: StopStrings | None = like(TextRequest, "stop")
    num_predict: MaybeWhole = Field(
        None, ge=-2, le=131_072, description="Most tokens to write; below 0 what the context leaves."
    )


class Asked(Named):
    """What generate and chat have in common."""

    stream: bool | None = Field(None, description="Line by line, as it is made; false for the whole at once.")
    format: Literal["", "json"] | JsonSchema | None = Field(None, description="json, or a JSON schema.")
    options: Options | None = Field(None, description="How tokens are chosen.")
    think: OnlyFalse | None = Field(None, description="Models do not think aloud.")

    def as_native(self, call: Call) -> dict[str, Any]:
        """Raises `JobError`."""
        given = self.options or Options.model_validate({})
        same = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
        return {
            **{name: getattr(given, name) for name in (*same, "seed", "stop")},
            "model": call.model_name(plain_name(self.model), "text"),
            "repetition_penalty": given.repeat_penalty,
            "stream": self.stream is not False,
            "response_format": self._form(),
        }

    def most_tokens(self) -> int | None:
        most = self.options.num_predict if self.options else None
        return None if most is None or most < 1 else most

    def _form(self) -> dict[str, Any] | None:
        if not self.format:
            return None
        if self.format == "json":
            return {"type": "json_object"}
        return {"type": "json_schema", "json_schema": self.format}


class OllamaGenerate(Asked):
    """A prompt, through the chat template unless `raw`."""

    prompt: str | None = Field(
        None,
        max_length=MAX_TEXT_CHARS,
        pattern=NO_NUL,
        description="What to answer, or with raw to continue.",
        examples=["What is a star?"],
    )
    system: str | None = Field(
        None, max_length=MAX_TEXT_CHARS, pattern=NO_NUL, description="How to answer it."
    )
    raw: bool | None = Field(None, description="Continue the prompt as it stands.")


class Function(Wire):
    name: ToolName
    arguments: JsonSchema


class Called(Wire):
    """A tool that an assistant's turn has asked for."""

    function: Function


class Turn(Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | None = like(ChatMessage, "content", default=None)
    tool_calls: list[Called] | None = Field(None, max_length=16, description="What an assistant asked for.")
    tool_name: str | None = like(ChatMessage, "name", description="The tool that answers.")

    def as_native(self) -> dict[str, Any]:
        calls = [
            {
                "id": f"call_{place}",
                "type": "function",
                "function": {"name": call.function.name, "arguments": json.dumps(call.function.arguments)},
            }
            for place, call in enumerate(self.tool_calls or ())
        ]
        return {
            "role": self.role,
            "content": self.content or "",
            "tool_calls": calls,
            "name": self.tool_name,
        }


class OllamaChat(Asked):
    """A conversation to go on with."""

    messages: list[Turn] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="The conversation so far.",
        examples=[[{"role": "user", "content": "What is a star?"}]],
    )
    tools: list[ToolSpec] | None = Field(
        None, max_length=MAX_TOOLS, description="What the model may ask for."
    )


class OllamaShow(Wire):
    """A model to tell of."""

    model: str = model_field("tiny-llama")
    verbose: bool | None = Field(None, description="There is no more to tell.")
