"""What jobs cost, in each modality's own unit: estimated before the work, counted after it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs import (
    ClassifyResult,
    EmbedResult,
    Event,
    ImageJob,
    ImageResult,
    Job,
    Progress,
    Result,
    TextDelta,
    TextJob,
    TextResult,
    WholeJob,
)

CONTEXT_TOKENS = 4096
"""What a text may have when its caller sets no bound."""
TURN_TOKENS = 16
"""What a chat template adds to a message, at most."""
SIDE_PIXELS = 512
"""A picture's own side, where the gateway is not told it."""
SECONDS_PER_CHARACTER = 0.5
LEAST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Units:
    """Of one job, or the sum of several."""

    prompt_tokens: float = 0
    completion_tokens: float = 0
    pixel_steps: float = 0
    """Width times height times steps, in pixels."""
    audio_s: float = 0

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Units) -> Units:
        return Units(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.pixel_steps + other.pixel_steps,
            self.audio_s + other.audio_s,
        )


def estimate(job: Job) -> Units:
    """An upper bound where there is one: a token has at least one byte."""
    if isinstance(job, TextJob):
        turns = [job.prompt or "", *(message.content for message in job.messages or ())]
        prompt = sum(len(turn.encode()) + TURN_TOKENS for turn in turns)
        return Units(prompt_tokens=prompt, completion_tokens=job.max_tokens or CONTEXT_TOKENS)
    if isinstance(job, ImageJob):
        return Units(pixel_steps=_pixels(job) * job.num_inference_steps)
    if isinstance(job, WholeJob):
        # What a translation comes to is not known before: about what it is of.
        read = sum(len(text.encode()) + TURN_TOKENS for text in job.texts)
        return Units(prompt_tokens=read)
    return Units(audio_s=LEAST_SECONDS + SECONDS_PER_CHARACTER * len(job.text))


def counted(job: Job, result: Result) -> Units:
    """What a finished job took."""
    if isinstance(result, TextResult):
        return Units(prompt_tokens=result.prompt_tokens, completion_tokens=result.completion_tokens)
    if isinstance(result, ImageResult):
        return Units(pixel_steps=result.pixel_steps) if result.pixel_steps else estimate(job)
    if isinstance(result, EmbedResult):
        return Units(prompt_tokens=sum(result.tokens))
    if isinstance(result, ClassifyResult):
        return Units(prompt_tokens=sum(result.tokens), completion_tokens=result.written)
    return Units(audio_s=result.duration_s)


def so_far(job: Job, event: Event, before: Units) -> Units:
    """What a job that has not ended has taken, as far as its events tell."""
    if isinstance(event, TextDelta):
        return before + Units(completion_tokens=1)
    if isinstance(event, Progress) and isinstance(job, ImageJob):
        return Units(pixel_steps=_pixels(job) * event.step)
    return before


def _pixels(job: ImageJob) -> int:
    return (job.width or SIDE_PIXELS) * (job.height or SIDE_PIXELS)
