"""What /v1/chat/completions and /v1/completions may be asked, and the native request that it stands for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gateway.doors import Call, OnlyFalse, OnlyTrue, Wire, like
from gateway.explain import invalid
from gateway.schemas import NO_NUL, LoraSpec, MaybeWhole, Model, Seed
from gateway.text_schemas import (
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    MAX_TOOLS,
    ChatMessage,
    FunctionSpec,
    JsonSchema,
    StopStrings,
    TextFormat,
    TextRequest,
    ToolCallSpec,
    ToolName,
)

DEFAULT_TOKENS = 16
"""What OpenAI's completions write when not told how much."""
EXAMPLE = [{"role": "user", "content": "What is a star?"}]
_SAME = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "stop", "seed", "n", "ignore_eos", "loras"),
)


class TextPart(Wire):
    """A piece of a message's text."""

    type: Literal["text"] = Field(description="Only text goes in.")
    text: str = Field(max_length=MAX_TEXT_CHARS, pattern=NO_NUL, description="What is said, in characters.")


class ChatTurn(Wire):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | list[TextPart] | None = Field(None, description="What is said, whole or in pieces.")
    name: str | None = like(ChatMessage, "name")
    tool_calls: list[ToolCallSpec] | None = like(ChatMessage, "tool_calls", default=None)
    tool_call_id: str | None = like(ChatMessage, "tool_call_id")
    refusal: None = Field(None, description="As an assistant's turn comes back from OpenAI's client.")

    def as_native(self) -> dict[str, Any]:
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
            "name": self.name,
            "tool_calls": self.tool_calls or [],
            "tool_call_id": self.tool_call_id,
        }


class StreamOptions(Wire):
    """What a stream tells besides the text."""

    include_usage: bool = Field(False, description="Send one more event, with the usage, at the end.")


class SchemaFormat(Wire):
    """A JSON schema with its name."""

    name: str = Field(max_length=64, pattern=NO_NUL, description="Its name; models are not told.")
    description: str | None = Field(None, max_length=4096, description="Models are not told.")
    schema_: JsonSchema = Field(alias="schema", description="The schema, at most 16 KiB.")
    strict: bool | None = Field(None, description="It always is.")


class AnswerFormat(Wire):
    """What the whole text must be."""

    type: Literal["text", "json_object", "json_schema", "regex"] = Field(description="text: anything.")
    json_schema: SchemaFormat | None = Field(None, description="With type json_schema.")
    pattern: str | None = like(TextFormat, "pattern")

    def as_native(self) -> dict[str, Any]:
        schema = None if self.json_schema is None else self.json_schema.schema_
        return {"type": self.type, "json_schema": schema, "pattern": self.pattern}


class ToolFunction(FunctionSpec):
    """What a tool is."""

    strict: bool | None = Field(None, description="Arguments always fit the schema.")


class ToolOffer(Wire):
    """A function that the model may ask for; the caller runs it."""

    type: Literal["function"] = "function"
    function: ToolFunction

    def as_native(self) -> dict[str, Any]:
        return {"type": self.type, "function": self.function.model_dump(exclude={"strict"})}


class NamedFunction(Wire):
    name: ToolName


class NamedTool(Wire):
    """The one tool that must be asked for."""

    type: Literal["function"] = "function"
    function: NamedFunction


class Sampled(Wire):
    """What both ways to ask for text have in common."""

    model: Model = None
    temperature: float | None = like(TextRequest, "temperature", default=None)
    top_p: float | None = like(TextRequest, "top_p", default=None)
    top_k: int | None = like(TextRequest, "top_k", default=None)
    min_p: float | None = like(TextRequest, "min_p", default=None)
    ignore_eos: bool | None = like(TextRequest, "ignore_eos", annotation=bool | None, default=None)
    loras: list[LoraSpec] | None = like(TextRequest, "loras", default=None)
    presence_penalty: float | None = like(TextRequest, "presence_penalty", default=None)
    frequency_penalty: float | None = like(TextRequest, "frequency_penalty", default=None)
    repetition_penalty: float | None = like(TextRequest, "repetition_penalty", default=None)
    max_tokens: int | None = like(TextRequest, "max_tokens", default=None)
    n: int | None = like(TextRequest, "n", default=None, examples=None)
    stop: StopStrings | None = like(TextRequest, "stop")
    seed: Seed = None
    stream: bool | None = Field(None, description="Answer with server-sent events, a piece of text each.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    user: str | None = Field(None, max_length=256, description="Taken for the clients' sake, and not kept.")

    def sampling(self, call: Call) -> dict[str, Any]:
        return {
            "model": call.model_name(self.model, "text"),
            **{name: getattr(self, name) for name in _SAME},
            "stream": bool(self.stream),
        }

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampled):
    """A conversation to go on with, through the model's chat template."""

    messages: list[ChatTurn] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far.", examples=[EXAMPLE]
    )
    max_completion_tokens: int | None = like(TextRequest, "max_tokens", default=None, examples=None)
    logprobs: bool | None = Field(None, description="Tell each token's log probability.")
    top_logprobs: MaybeWhole = Field(
        None, ge=0, le=20, description="With logprobs: tell those of this many likeliest."
    )
    response_format: AnswerFormat | None = Field(None, description="What the whole text must be.")
    tools: list[ToolOffer] | None = Field(
        None, max_length=MAX_TOOLS, description="What the model may ask for."
    )
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = Field(
        None, description="Whether, or which, tool must be asked for."
    )
    parallel_tool_calls: OnlyTrue | None = Field(None, description="Several calls may be asked for.")

    def as_native(self, call: Call) -> dict[str, Any]:
        tools, choice = self._chosen()
        return {
            **self.sampling(call),
            "messages": [turn.as_native() for turn in self.messages],
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "logprobs": self.top_logprobs or 0 if self.logprobs else None,
            "response_format": None if self.response_format is None else self.response_format.as_native(),
            "tools": [tool.as_native() for tool in tools],
            "tool_choice": choice,
        }

    def _chosen(self) -> tuple[list[ToolOffer], str | None]:
        """A certain tool is asked for by offering no other. Raises `JobError`."""
        tools = self.tools or []
        if not isinstance(self.tool_choice, NamedTool):
            return tools, self.tool_choice
        name = self.tool_choice.function.name
        named = [tool for tool in tools if tool.function.name == name]
        if not named:
            raise invalid("`tool_choice` must name one of `tools`.", "unknown_choice", "tool_choice")
        return named, "required"


class CompletionRequest(Sampled):
    """A text to go on with, as it stands."""

    prompt: str = like(TextRequest, "prompt", annotation=str, description="Text to continue, in characters.")
    logprobs: int | None = like(TextRequest, "logprobs", default=None)
    echo: OnlyFalse | None = Field(None, description="The prompt is not said again.")

    def as_native(self, call: Call) -> dict[str, Any]:
        return {
            **self.sampling(call),
            "prompt": self.prompt,
            "max_tokens": self.max_tokens or DEFAULT_TOKENS,
            "logprobs": self.logprobs,
        }
