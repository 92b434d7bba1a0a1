"""A job's prompt: what is told of one that does not fit, and that reading it holds nobody up."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from jobs import ErrorKind, JobError, Message
from models.text.chat import Prompter
from tests.unit.decoding import job
from tests.unit.tiny_text import TEMPLATE, byte_level

CONTEXT = 100
LETTERS = "x" * CONTEXT
"""A token each, and one for the beginning."""


def prompter(*, apart: bool = False) -> Prompter:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    tokenizer.chat_template = TEMPLATE
    return Prompter(tokenizer, model="tiny", context=CONTEXT, apart=apart)


@pytest.mark.parametrize(
    ("apart", "fields", "param", "told"),
    [
        (False, {"prompt": LETTERS, "max_tokens": 1}, "prompt", "101 tokens, and tiny holds 100"),
        (False, {"prompt": LETTERS[:-1], "max_tokens": None}, "prompt", "100 tokens"),
        (False, {"messages": (Message(role="user", content=LETTERS),)}, "messages", "tiny holds 100"),
        (False, {"prompt": LETTERS[:-2], "max_tokens": 2}, "max_tokens", "together 101"),
        (True, {"prompt": LETTERS, "max_tokens": 1}, "prompt", "101 tokens, and tiny reads 100"),
        (True, {"prompt": "x", "max_tokens": 101}, "max_tokens", "tiny writes up to 100"),
    ],
)
def test_what_is_too_long_is_told_by_its_field(
    apart: bool, fields: dict[str, Any], param: str, told: str
) -> None:
    with pytest.raises(JobError, match=told) as refused:
        prompter(apart=apart).prompt(job(**fields))
    error = refused.value
    assert (error.kind, error.param, error.code) == (ErrorKind.INVALID, param, "context_length_exceeded")


def test_what_fits_to_the_last_token_is_taken() -> None:
    assert prompter().prompt(job(LETTERS[:-2], max_tokens=1)).max_tokens == 1
    assert prompter().prompt(job("x", max_tokens=None)).max_tokens == CONTEXT - 2
    assert prompter(apart=True).prompt(job(LETTERS[:-1], max_tokens=100)).max_tokens == 100


def test_other_threads_run_while_a_long_text_is_read() -> None:
    reads = prompter(apart=True)

    def read() -> None:
        with pytest.raises(JobError):
            reads.prompt(job("ab" * 1_000_000))

    reading = threading.Thread(target=read)
    reading.start()
    began = last = time.monotonic()
    longest = 0.0
    while reading.is_alive():
        reading.join(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < (last - began) / 2
