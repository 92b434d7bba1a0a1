"""What a job and its events are in vLLM's words."""

# vLLM is not part of the environment that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from jobs import (
    Alternative,
    Constraint,
    ErrorKind,
    FinishReason,
    JobError,
    TextDelta,
    TextJob,
    TextResult,
    TokenLogprob,
    ToolCall,
)
from models.text.chat import Prompt, Prompter
from models.text.constraint import bounded_schema, refused
from models.text.logprobs import LEAST


def sampling_params(job: TextJob, prompt: Prompt) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=job.temperature,
        top_p=job.top_p,
        top_k=job.top_k,
        min_p=job.min_p,
        ignore_eos=job.ignore_eos,
        repetition_penalty=job.repetition_penalty,
        presence_penalty=job.presence_penalty,
        frequency_penalty=job.frequency_penalty,
        seed=job.seed,
        max_tokens=prompt.max_tokens,
        stop=list(job.stop),
        logprobs=job.logprobs,
        structured_outputs=_structure(prompt.constraint),
        skip_special_tokens=not prompt.special_shown,
        output_kind=RequestOutputKind.DELTA if job.stream else RequestOutputKind.FINAL_ONLY,
    )


def _structure(constraint: Constraint | None) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if constraint is None:
        return None
    if constraint.kind == "json_schema":
        return StructuredOutputsParams(json=bounded_schema(constraint))
    return StructuredOutputsParams(**{constraint.kind: constraint.value})


class Told:
    """What of a job's text has come from vLLM, and what of it its reader may see."""

    def __init__(self, job: TextJob, prompt: Prompt, prompter: Prompter, end_tokens: frozenset[int]) -> None:
        self._job = job
        self._prompt = prompt
        self._token_text = prompter.token_text
        self._end_tokens = end_tokens
        self._calls = prompt.calls()
        self._shown: list[str] = []
        self._pending: list[TokenLogprob] = []
        self._logprobs: list[TokenLogprob] = []
        self._completion = 0
        self._reason: str | None = None
        self._found: tuple[ToolCall, ...] = ()

    def take(self, output: Any) -> TextDelta | None:
        """One of vLLM's outputs for the job; the delta that a reader is told. Raises `JobError`."""
        self._completion += len(output.token_ids)
        self._reason = output.finish_reason
        if self._reason not in (None, "stop", "length"):
            raise self._given_up()
        if output.logprobs:
            self._pending += self._read(output.token_ids, output.logprobs)
        fresh = str(output.text)
        if self._calls is not None:
            fresh = self._calls.push(fresh)
            if self._reason is not None:
                rest, self._found = self._calls.finish()
                fresh += rest
        if fresh:
            self._shown.append(fresh)
        if not fresh and not (self._reason is not None and self._pending):
            return None
        news, self._pending = tuple(self._pending), []
        self._logprobs += news
        return TextDelta(text=fresh, logprobs=news)

    def result(self, model: str) -> TextResult:
        reason: FinishReason = "length" if self._reason == "length" else "stop"
        return TextResult(
            model=model,
            seed=self._job.seed,
            text="".join(self._shown),
            finish_reason="tool_calls" if self._found and reason == "stop" else reason,
            prompt_tokens=len(self._prompt.ids),
            completion_tokens=self._completion,
            logprobs=None if self._job.logprobs is None else tuple(self._logprobs),
            tool_calls=self._found,
        )

    def _given_up(self) -> JobError:
        """vLLM ends a text by itself when it has outgrown its grammar."""
        if self._prompt.constraint is not None:
            return refused(self._prompt.constraint)
        return JobError(ErrorKind.INTERNAL, "vLLM gave this request up; others are not affected.")

    def _read(self, tokens: Any, each: Any) -> list[TokenLogprob]:
        """vLLM tells the chosen token and the likeliest as one mapping; `rank` is 1 for the likeliest."""
        told: list[TokenLogprob] = []
        for token, likely in zip(tokens, each, strict=True):
            if token in self._end_tokens:
                continue
            best = sorted(likely.items(), key=lambda item: item[1].rank)[: self._job.logprobs]
            told.append(
                TokenLogprob(
                    token=self._token_text(token),
                    logprob=max(LEAST, likely[token].logprob),
                    top=tuple(
                        Alternative(token=self._token_text(other), logprob=max(LEAST, at.logprob))
                        for other, at in best
                    ),
                )
            )
        return told
