"""One text request on its way through our engine: what it is, how its next token is chosen and taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from jobs import Event, FinishReason, TextDelta, TextJob, TextResult, TokenLogprob, ToolCall
from models.lora.slots import Chosen as Loras
from models.text.chat import Prompt, Prompter
from models.text.constraint import Grammars, Matcher, forbid
from models.text.detokenize import Detokenizer, StopFinder
from models.text.logprobs import logprob_of
from models.text.penalties import Past, penalise
from models.text.sampling import Sampling, choose
from models.text.tools import CallFinder


@dataclass(eq=False, slots=True, kw_only=True)
class Row:
    job: TextJob
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    past: Past
    text: Detokenizer
    stops: StopFinder
    matcher: Matcher | None = None
    """Where its text is in the grammar that it must follow."""
    calls: CallFinder | None = None
    """Looks for tool calls, when there are tools."""
    loras: Loras = ()
    """Its LoRA, if it has one."""
    slot: int | None = None
    written: int = 0
    """Tokens whose keys and values are in the cache."""
    tokens: list[int] = field(default_factory=list[int])
    """Chosen so far, an end-of-sequence token included."""
    shown: list[str] = field(default_factory=list[str])
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    told: int = 0
    """Of `logprobs`, those that have gone out with a delta."""
    finish_reason: FinishReason | None = None
    tainted: bool = False
    """Its numbers were not finite: its slot must be wiped."""

    @property
    def to_prefill(self) -> int:
        return len(self.prompt) - 1 - self.written

    @property
    def newest(self) -> int:
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row's next token, before it is taken: a step that fails after the choice has changed nothing."""

    token: int
    logprob: TokenLogprob | None


def make_row(job: TextJob, prompt: Prompt, prompter: Prompter, grammars: Grammars) -> Row:
    """Raises `JobError` for a constraint that cannot be followed."""
    decode = prompter.decoder(prompt)
    return Row(
        job=job,
        prompt=prompt.ids,
        max_tokens=prompt.max_tokens,
        sampling=Sampling(
            seed=job.seed, temperature=job.temperature, top_p=job.top_p, top_k=job.top_k, min_p=job.min_p
        ),
        past=Past(
            repetition=job.repetition_penalty,
            presence=job.presence_penalty,
            frequency=job.frequency_penalty,
            prompt=frozenset(prompt.ids),
        ),
        text=Detokenizer(decode, prompt.before),
        stops=StopFinder(job.stop),
        matcher=None if prompt.constraint is None else grammars.matcher(prompt.constraint),
        calls=prompt.calls(),
    )


def choose_next(logits: Tensor, rows: Sequence[Row], token_text: Callable[[int], str]) -> list[Chosen]:
    """Each row's next token by its own grammar, penalties and sampling; `logits` [rows, vocabulary].

    Log probabilities are those of the model within the grammar, before penalties and temperature, as in vLLM.
    """
    logits = forbid(logits, [(i, row.matcher.allowed()) for i, row in enumerate(rows) if row.matcher])
    tokens = choose(
        penalise(logits, [row.past for row in rows]),
        [row.sampling for row in rows],
        [len(row.tokens) for row in rows],
    )
    return [
        Chosen(token, logprob_of(logits[i], token, row.job.logprobs, token_text))
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
    ]


def take(row: Row, chosen: Chosen, end_tokens: frozenset[int]) -> Sequence[Event]:
    """Commits one token of a row: its text, its end, and what of it may be shown."""
    token = chosen.token
    row.tokens.append(token)
    row.past.text[token] += 1
    if row.matcher is not None:
        row.matcher.take(token)
        if row.matcher.failure:  # raised by `text_result`: here it would take its neighbours' events along
            row.finish_reason = "stop"
            return ()
    fresh = ""
    if token in end_tokens and not row.job.ignore_eos:
        row.finish_reason = "stop"
    else:
        if chosen.logprob is not None:
            row.logprobs.append(chosen.logprob)
        fresh = row.stops.push(row.text.push(token))
        if row.stops.found or (row.matcher is not None and row.matcher.ended):
            row.finish_reason = "stop"
        elif len(row.tokens) >= row.max_tokens:
            row.finish_reason = "length"
    if row.ended and not row.stops.found:
        fresh += row.stops.push(row.text.flush()) + row.stops.flush()
    return _shown(row, fresh)


def _shown(row: Row, fresh: str) -> Sequence[Event]:
    if row.calls is not None:
        fresh = row.calls.push(fresh)
        if row.ended:
            rest, row.tool_calls = row.calls.finish()
            fresh += rest
    if fresh:
        row.shown.append(fresh)
    news = tuple(row.logprobs[row.told :]) if fresh or row.ended else ()
    if not row.job.stream or not (fresh or news):
        return ()
    row.told = len(row.logprobs)
    return (TextDelta(text=fresh, logprobs=news),)


def text_result(model: str, row: Row) -> TextResult:
    """Raises `JobError` for a text that could not go on in its grammar."""
    if row.matcher is not None and row.matcher.failure:
        raise row.matcher.failure
    reason = row.finish_reason or "length"
    return TextResult(
        model=model,
        seed=row.job.seed,
        text="".join(row.shown),
        finish_reason="tool_calls" if row.tool_calls and reason == "stop" else reason,
        prompt_tokens=len(row.prompt),
        completion_tokens=len(row.tokens),
        logprobs=None if row.job.logprobs is None else tuple(row.logprobs),
        tool_calls=row.tool_calls,
    )
