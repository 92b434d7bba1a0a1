"""What a caller of the text endpoint may say, and what it is answered."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from bentoml import IODescriptor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.schemas import NO_NUL, KeepAlive, LoraSpec, Model, Seed, Strict, Timings, Whole, whole
from jobs import FinishReason

MAX_TEXTS = 4
MAX_TEXT_CHARS = 524_288
"""What fills the longest context of the catalog's models; a request's body has a bound of its own."""
MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 16384
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _small(value: Any) -> Any:
    """Checks what pydantic does not look into."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("finite_number", "a finite number") from None
    if len(text) > MAX_SCHEMA_CHARS or "\\u0000" in text:
        raise PydanticCustomError("schema_too_long", "too long")
    return value


def _named(name: str) -> str:
    if not _TOOL_NAME.fullmatch(name):
        raise PydanticCustomError("tool_name", "no name of a tool")
    return name


_TOOL_NAME_SCHEMA = {"type": "string", "pattern": f"^{_TOOL_NAME.pattern}$"}
ToolName = Annotated[str, AfterValidator(_named), WithJsonSchema(_TOOL_NAME_SCHEMA)]
JsonSchema = Annotated[dict[str, Any], AfterValidator(_small)]
StopString = Annotated[str, Field(min_length=1, max_length=64, pattern=NO_NUL)]
_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": NO_NUL}
_STOP_SCHEMA: dict[str, Any] = {
    "anyOf": [_STOP_STRING, {"type": "array", "maxItems": 4, "items": _STOP_STRING}]
}
StopStrings = Annotated[
    list[StopString], Field(max_length=4), BeforeValidator(as_list), WithJsonSchema(_STOP_SCHEMA)
]
MaxTokens = Annotated[int | None, Field(ge=1, le=131_072), BeforeValidator(whole)]
Logprobs = Annotated[int | None, Field(ge=0, le=20), BeforeValidator(whole)]


class FunctionCall(Strict):
    name: ToolName = Field(description="Name of the tool.")
    arguments: str = Field(max_length=16384, pattern=NO_NUL, description="One JSON object, as text.")


class ToolCallSpec(Strict):
    """A call that an assistant's message has asked for."""

    id: str = Field(min_length=1, max_length=64, pattern=NO_NUL, description="The call's id.")
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str = Field(
        max_length=MAX_TEXT_CHARS, pattern=NO_NUL, description="What is said, in characters."
    )
    tool_calls: list[ToolCallSpec] = Field([], max_length=16, description="What an assistant asked for.")
    tool_call_id: str | None = Field(
        None, min_length=1, max_length=64, pattern=NO_NUL, description="The call that a tool answers."
    )
    name: str | None = Field(None, min_length=1, max_length=64, pattern=NO_NUL, description="Its name.")


class FunctionSpec(Strict):
    """What a tool is."""

    name: ToolName = Field(description="1 to 64 of A-Z a-z 0-9 _ -")
    description: str = Field("", max_length=4096, pattern=NO_NUL, description="What it does, for the model.")
    parameters: JsonSchema = Field({}, description="The JSON schema of its arguments, at most 16 KiB.")


class ToolSpec(Strict):
    """A function that the model may ask for; the caller runs it."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class TextFormat(Strict):
    """What the whole text must be."""

    type: Literal["text", "json_object", "json_schema", "regex"] = Field(description="text: anything.")
    json_schema: JsonSchema | None = Field(None, description="With type json_schema; at most 16 KiB.")
    pattern: str | None = Field(
        None, min_length=1, max_length=2048, pattern=NO_NUL, description="With type regex; no look-around."
    )

    @model_validator(mode="after")
    def _fits_its_type(self) -> TextFormat:
        wanted = {"json_schema": "json_schema", "regex": "pattern"}.get(self.type)
        given = {name for name in ("json_schema", "pattern") if getattr(self, name) is not None}
        if given != ({wanted} if wanted else set()):
            raise PydanticCustomError(
                "format_parts", "json_schema with its schema, or regex with its pattern"
            )
        return self


class TextRequest(Strict, IODescriptor):
    """A prompt to complete as it stands, or messages that go through the model's chat template."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    )

    prompt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_TEXT_CHARS,
        pattern=NO_NUL,
        description="Text to continue, in characters. Give this or messages.",
        examples=["Why do leaves turn red in autumn?"],
    )
    messages: list[ChatMessage] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MESSAGES,
        description="The conversation so far. Give this or prompt.",
    )
    model: Model = None
    max_tokens: MaxTokens = Field(
        128,
        description="Most tokens to write; with the prompt no more than the model's context, which is what "
        "null leaves open.",
        examples=[64],
    )
    temperature: float = Field(
        0.7, ge=0, le=2, description="How freely tokens are chosen; 0 always takes the likeliest."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Choose among the likeliest tokens with this share of the probability."
    )
    top_k: Whole = Field(0, ge=0, le=1000, description="Choose among this many likeliest tokens; 0 is off.")
    ignore_eos: bool = Field(
        False, description="Go on past the end that the model sees, to `max_tokens`: for measuring speed."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens less likely than this part of the likeliest."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.5, le=2, description="Above 1 makes tokens of the prompt and the text less likely."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Makes tokens that the text has less likely (below 0, more)."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="The same, for each time that the text has them."
    )
    logprobs: Logprobs = Field(
        None, description="Tell each token's log probability, and those of this many likeliest."
    )
    n: Whole = Field(
        1, ge=1, le=MAX_TEXTS, description="How many texts, of the seeds from `seed` on.", examples=[2]
    )
    loras: list[LoraSpec] = Field([], max_length=1, description="The adapter of this text alone.")
    response_format: TextFormat | None = Field(None, description="What the whole text must be.")
    tools: list[ToolSpec] = Field([], max_length=MAX_TOOLS, description="Functions the model may ask for.")
    tool_choice: Literal["auto", "none", "required"] = Field(
        "auto", description="required: the text must ask for one of the tools; none: it must not."
    )
    stop: StopStrings | None = Field(
        None,
        description="Up to 4 strings of 1 to 64 characters that end the text; they are not part of it.",
        examples=["\n"],
    )
    seed: Seed = None
    stream: bool = Field(False, description="Answer with server-sent events, a piece of text each.")
    keep_alive_s: KeepAlive = None

    @model_validator(mode="after")
    def _one_source(self) -> TextRequest:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("exactly_one", "give exactly one of prompt and messages")
        return self


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenAlternative(BaseModel):
    token: str
    logprob: float = Field(description="Natural logarithm of its probability.")


class TextLogprob(TokenAlternative):
    """A token of the text; `top` has the likeliest in its place."""

    top: list[TokenAlternative]


class TextChoice(BaseModel):
    """One of the texts of a request with `n` above 1."""

    index: int
    text: str
    finish_reason: FinishReason
    seed: int = Field(description="The seed that gives this text again, asked for alone.")
    logprobs: list[TextLogprob] | None = None
    tool_calls: list[ToolCallSpec] = []


class TextAnswer(IODescriptor):
    """A finished text; with `n` above 1 the first, and all of them in `choices`."""

    id: str = Field(description="The request's id, as in the header X-Request-Id.")
    model: str
    text: str
    finish_reason: FinishReason = Field(
        description="stop: the model ended or a stop string did; length: max_tokens; tool_calls: it asks "
        "for tools."
    )
    seed: int = Field(description="The seed that gives this text again.")
    logprobs: list[TextLogprob] | None = Field(None, description="If asked for, each token's.")
    tool_calls: list[ToolCallSpec] = Field([], description="What the model asks its caller to run.")
    choices: list[TextChoice] | None = Field(None, description="With `n` above 1.")
    usage: Usage
    timings: Timings
