"""A job's prompt: text as it stands or messages through the chat template, as tokens that fit the context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from jobs import Constraint, ErrorKind, JobError, Message, TextJob
from models.text.detokenize import Decode
from models.text.tools import CallFinder, ToolFormat, call_grammar, described, tool_format


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a job comes to, for one model."""

    ids: list[int]
    max_tokens: int
    constraint: Constraint | None
    tools: ToolFormat | None
    """How tool calls look in the text, when there may be any."""

    before: Sequence[int]
    """Tokens that the text follows on directly; none where the prompt has an encoder of its own."""
    special_shown: bool
    """Special tokens are part of the text, because they mark tool calls."""

    def calls(self) -> CallFinder | None:
        return None if self.tools is None else CallFinder(self.tools)


class Prompter:
    """Makes prompts for one model; safe to call from several threads."""

    def __init__(self, tokenizer: Any, *, model: str, context: int, apart: bool = False) -> None:
        """`apart`: prompt and text have `context` tokens each, as in an encoder and a decoder.

        Raises `ValueError` for a tokenizer without a `tokenizer.json`."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{model}: its tokenizer has no tokenizer.json, which this engine needs")
        self.context = context
        self._apart = apart
        self._model = model
        self._tokenizer = tokenizer
        # The tokenizer proper is used below transformers, which sets truncation on the shared object at each
        # call: not safe between threads. Nothing is ever truncated here, whatever tokenizer.json says.
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()

    def prompt(self, job: TextJob) -> Prompt:
        """Raises `JobError` for a job that this model cannot take."""
        form = self._tool_format(job)
        if job.messages is not None:
            field = "messages"
            ids = self._ids(self._templated(job, tools=form is not None), special=False)
        elif job.prompt is not None:
            field = "prompt"
            ids = self._ids(job.prompt, special=True)
        else:
            raise _invalid("Give a prompt or messages.", param="prompt")
        if not ids:
            raise _invalid("The prompt is empty.", param=field)
        self._check_length(len(ids), field)
        return Prompt(
            ids=ids,
            max_tokens=self._max_tokens(len(ids), job.max_tokens),
            constraint=self._constraint(job, form),
            tools=form,
            before=() if self._apart else ids,
            special_shown=form is not None and form.begin in self._special(),
        )

    def decoder(self, prompt: Prompt) -> Decode:
        """Token ids to text, spaces as they are, special tokens left out unless they mark tool calls."""

        def decode(ids: Sequence[int]) -> str:
            return str(self._backend.decode(ids, skip_special_tokens=not prompt.special_shown))

        return decode

    def token_text(self, token: int) -> str:
        """One token as text, special ones too; bytes that are no whole character become U+FFFD."""
        return str(self._backend.decode([token], skip_special_tokens=False))

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # Of its ways this one lets other threads run meanwhile: a long text takes half a second.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=special)[0].ids)

    def _special(self) -> dict[str, int]:
        decoder = self._tokenizer.added_tokens_decoder
        return {str(token.content): int(number) for number, token in decoder.items() if token.special}

    # --- messages and tools ---------------------------------------------------------------------------------

    def _templated(self, job: TextJob, *, tools: bool) -> str:
        if not self._tokenizer.chat_template:
            message = f"{self._model} has no chat template, so it takes a prompt, not messages."
            raise _invalid(message, param="messages", code="no_chat_template")
        try:
            text = self._tokenizer.apply_chat_template(
                [_as_template_reads(message) for message in job.messages or ()],
                tools=[described(tool) for tool in job.tools] if tools else None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (jinja2.TemplateError, TypeError, RecursionError) as error:
            message = (
                f"The chat template of {self._model} does not take these messages (their roles or order)."
            )
            raise _invalid(message, param="messages", code="chat_template_refused") from error
        return str(text)

    def _tool_format(self, job: TextJob) -> ToolFormat | None:
        if not job.tools or job.tool_choice == "none":
            return None
        if job.messages is None:
            raise _invalid("Tools go with messages, not with a prompt.", param="tools")
        template = self._tokenizer.chat_template or ""
        form = tool_format(template if isinstance(template, str) else json.dumps(template))
        if form is None:
            message = f"The chat template of {self._model} has no place for tools."
            raise _invalid(message, param="tools", code="no_tools")
        return form

    def _constraint(self, job: TextJob, form: ToolFormat | None) -> Constraint | None:
        if form is None or job.tool_choice != "required":
            return job.constraint
        if job.constraint is not None:
            message = "A text that must be a tool call cannot have a response_format too."
            raise _invalid(message, param="response_format")
        return Constraint(kind="grammar", value=call_grammar(form, job.tools, self._special()))

    # --- the context ----------------------------------------------------------------------------------------

    def _check_length(self, prompt: int, field: str) -> None:
        if prompt > self.context - (not self._apart):
            most = f"reads {self.context}" if self._apart else f"holds {self.context} with the answer"
            message = f"The prompt has {prompt} tokens, and {self._model} {most}."
            raise _invalid(message, param=field, code="context_length_exceeded")

    def _max_tokens(self, prompt: int, wanted: int | None) -> int:
        left = self.context if self._apart else self.context - prompt
        if wanted is None:
            return left
        if wanted < 1:
            raise _invalid("max_tokens must be at least 1.", param="max_tokens")
        if wanted > left:
            message = f"max_tokens is {wanted}, and {self._model} writes up to {left}."
            if not self._apart:
                message = (
                    f"The prompt has {prompt} tokens and max_tokens is {wanted}: "
                    f"together {prompt + wanted}, but {self._model} holds {self.context}."
                )
            raise _invalid(message, param="max_tokens", code="context_length_exceeded")
        return wanted


def end_tokens(generation: Mapping[str, Any], tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: the checkpoint's generation settings name them, or else its tokenizer."""
    ids = generation.get("eos_token_id")
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _as_template_reads(message: Message) -> dict[str, Any]:
    """Only what is there: templates ask whether a field exists. Arguments go in as an object."""
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    for name in ("tool_call_id", "name"):
        if getattr(message, name) is not None:
            said[name] = getattr(message, name)
    return said


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        message = "The arguments of a tool call must be JSON."
        raise _invalid(message, param="messages", code="bad_arguments") from None


def _invalid(message: str, *, param: str, code: str | None = None) -> JobError:
    return JobError(ErrorKind.INVALID, message, param=param, code=code)
