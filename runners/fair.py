"""Whose turn it is in the queue: callers share the engine evenly, whatever each has sent.

Goyal, Vin and Cheng, "Start-time fair queueing", 1996: a job's start tag is the later of now (the tag of
the job admitted last) and the end of its account's job before; jobs are admitted by tag. One account alone
is first come, first served.
"""

from __future__ import annotations

from jobs import ImageJob, Job, SpeechJob, TextJob

TOKENS = 256
"""What a text may have when its caller sets no bound: only the order depends on it."""
SIDE_PIXELS = 512


def cost(job: Job) -> float:
    """What a job takes next to others of its modality: tokens, pixel-steps, characters."""
    if isinstance(job, TextJob):
        return float(job.max_tokens or TOKENS)
    if isinstance(job, ImageJob):
        return float((job.width or SIDE_PIXELS) * (job.height or SIDE_PIXELS) * job.num_inference_steps)
    if isinstance(job, SpeechJob):
        return float(len(job.text))
    return float(sum(map(len, job.texts)))


class Turns:
    """Not thread-safe: its owner has a lock. An account is known while it has jobs in the queue."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, float] = {}
        self._queued: dict[str, int] = {}

    def enter(self, job: Job) -> float:
        """The job's start tag."""
        start = max(self._now, self._ends.get(job.account, 0.0))
        self._ends[job.account] = start + cost(job)
        self._queued[job.account] = self._queued.get(job.account, 0) + 1
        return start

    def leave(self, job: Job, tag: float, *, admitted: bool) -> None:
        """The job waits no longer, because it runs or because it has ended."""
        if admitted:
            self._now = max(self._now, tag)
        self._queued[job.account] -= 1
        if not self._queued[job.account]:
            del self._queued[job.account]
        for account in [each for each, end in self._ends.items() if end <= self._now]:
            if account not in self._queued:
                del self._ends[account]

    def may_queue(self, account: str, queue_size: int) -> bool:
        """Whether the account leaves room for others: it has its part of the queue, and one part stays free.

        Callers without a key are one crowd, bounded by the queue itself.
        """
        if not account:
            return True
        parts = len({each for each in self._queued if each} | {account}) + 1
        return self._queued.get(account, 0) < max(1, queue_size // parts)
