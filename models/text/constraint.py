"""Text that must be JSON of a schema, match an expression, or follow a grammar: by llguidance, as in vLLM.

A grammar is compiled beside the steps, when a row is prepared; a step then asks which tokens may come.
Callers' grammars may be hostile: what compiling one may cost is bounded (`models.text.grammar_trial`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.hf
import torch
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor

from jobs import Constraint, ErrorKind, JobError
from models.text.grammar_trial import GrammarTrials

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line, as most models have read it. Left free, a model may write blanks to its last token."""

_MANY_TIMES = re.compile(r"\{(?:\d*,)?0*[1-9]\d{4,}")
"""`x{n}` of 10,000 and more: finding out which tokens may come would take as long as a step."""
_TRIALS = GrammarTrials()


class Grammars:
    """Makes matchers for one tokenizer; what takes a second is made at the first use, by one thread."""

    def __init__(self, tokenizer: Any, end_tokens: frozenset[int], vocabulary: int) -> None:
        """`vocabulary` is the width of the logits, which may be more than the tokenizer has."""
        self._tokenizer = tokenizer
        self._end_tokens = sorted(end_tokens)
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._made: llguidance.LLTokenizer | None = None

    def matcher(self, constraint: Constraint) -> Matcher:
        """Raises `JobError` for a schema, an expression or a grammar that cannot be followed."""
        grammar = checked(constraint)
        tokenizer = self._wrapped()
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise refused(constraint)
        return Matcher(matcher, tokenizer.vocab_size, frozenset(self._end_tokens), refused(constraint))

    def _wrapped(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._made is None:
                self._made = llguidance.hf.from_tokenizer(
                    self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_tokens or None
                )
            return self._made


class Matcher:
    """Where one row's text is in its grammar. `allowed` may be asked again; only `take` moves on."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        vocabulary: int,
        end_tokens: frozenset[int],
        refusal: JobError,
    ) -> None:
        self._matcher = matcher
        self._bits = allocate_token_bitmask(1, vocabulary)
        self._end_tokens = end_tokens
        self._refusal = refusal

    def allowed(self) -> Tensor:
        """Which tokens may come next, a bit each: [words of 32 tokens], int32. At the end only end tokens."""
        fill_next_token_bitmask(self._matcher, self._bits)
        return torch.from_numpy(self._bits[0])

    def take(self, token: int) -> None:
        if token not in self._end_tokens and not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    @property
    def failure(self) -> JobError | None:
        """Why it cannot go on, once it cannot: a grammar may be too large for a place within its text."""
        return self._refusal if self._matcher.is_error() else None

    @property
    def ended(self) -> bool:
        """Nothing more can come: the text is whole."""
        return self._matcher.is_stopped()


def checked(constraint: Constraint) -> str:
    """The constraint in llguidance's own form. Raises `JobError` for what cannot be followed."""
    grammar = _compiled(constraint)
    if _MANY_TIMES.search(constraint.value) or not _TRIALS.passes(grammar):
        raise refused(constraint)
    return grammar


def _compiled(constraint: Constraint) -> str:
    if constraint.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(constraint.value)
    if constraint.kind == "grammar":
        return llguidance.LLMatcher.grammar_from_lark(constraint.value)
    return llguidance.LLMatcher.grammar_from_json_schema(bounded_schema(constraint))


def bounded_schema(constraint: Constraint) -> str:
    """The JSON schema with `SPACING` in it, where llguidance looks for it."""
    try:
        schema = json.loads(constraint.value)
    except ValueError:
        raise refused(constraint) from None
    if not isinstance(schema, dict):
        raise refused(constraint)
    return json.dumps(schema | {"x-guidance": SPACING})


def refused(constraint: Constraint) -> JobError:
    what = {
        "json_schema": "JSON schema",
        "regex": "regular expression",
        "grammar": "schema of a tool's parameters",
    }[constraint.kind]
    return JobError(
        ErrorKind.INVALID,
        f"This {what} cannot be followed: it is not valid, too large, or uses what is not supported.",
        param="tools" if constraint.kind == "grammar" else "response_format",
        code="bad_constraint",
    )


def forbid(logits: Tensor, allowed: Sequence[tuple[int, Tensor]]) -> Tensor:
    """`logits` [rows, vocabulary] with -infinity where a row's bits (`Matcher.allowed`) say no."""
    if not allowed:
        return logits
    masked = logits.clone()
    places = torch.arange(32, dtype=torch.int32)
    for row, bits in allowed:
        open_tokens = ((bits[:, None] >> places) & 1).flatten()[: logits.shape[-1]].bool()
        closed = torch.ones(logits.shape[-1], dtype=torch.bool)
        closed[: open_tokens.shape[0]] = ~open_tokens
        masked[row].masked_fill_(closed.to(logits.device), float("-inf"))
    return masked
