"""A job's prompt: text as it stands or messages through the chat template, as tokens that fit the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from jobs import ErrorKind, JobError, TextJob


class Prompter:
    """Makes prompts for one model; safe to call from several threads."""

    def __init__(self, tokenizer: Any, *, model: str, context: int) -> None:
        """Raises `ValueError` for a tokenizer without a `tokenizer.json`."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{model}: its tokenizer has no tokenizer.json, which this engine needs")
        self.context = context
        self._model = model
        self._tokenizer = tokenizer
        # The tokenizer proper is used below transformers, which sets truncation on the shared object at each
        # call: not safe between threads. Nothing is ever truncated here, whatever tokenizer.json says.
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()

    def tokens(self, job: TextJob) -> list[int]:
        """The prompt's token ids. Raises `JobError` for a prompt this model cannot take."""
        if job.messages is not None:
            ids = self._ids(self._templated(job), special=False)
        elif job.prompt is not None:
            ids = self._ids(job.prompt, special=True)
        else:
            raise _invalid("Give a prompt or messages.", param="prompt")
        if not ids:
            raise _invalid("The prompt is empty.", param="messages" if job.messages is not None else "prompt")
        self._check_length(len(ids), job.max_tokens)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text, special tokens left out and spaces as they are."""
        return str(self._backend.decode(ids, skip_special_tokens=True))

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def _templated(self, job: TextJob) -> str:
        if not self._tokenizer.chat_template:
            message = f"{self._model} has no chat template, so it takes a prompt, not messages."
            raise _invalid(message, param="messages", code="no_chat_template")
        messages = [{"role": m.role, "content": m.content} for m in job.messages or ()]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            message = (
                f"The chat template of {self._model} does not take these messages (their roles or order)."
            )
            raise _invalid(message, param="messages", code="chat_template_refused") from error
        return str(text)

    def _check_length(self, prompt: int, max_tokens: int) -> None:
        if max_tokens < 1:
            raise _invalid("max_tokens must be at least 1.", param="max_tokens")
        if prompt + max_tokens > self.context:
            message = (
                f"The prompt has {prompt} tokens and max_tokens is {max_tokens}: "
                f"together {prompt + max_tokens}, but {self._model} holds {self.context}."
            )
            raise _invalid(message, param="max_tokens", code="context_length_exceeded")


def _invalid(message: str, *, param: str, code: str | None = None) -> JobError:
    return JobError(ErrorKind.INVALID, message, param=param, code=code)
