"""What can be set about the gateway; the settings room fills it in."""

from __future__ import annotations

from dataclasses import dataclass

MODALITIES = ("text", "image", "speech")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """All times in seconds, all sizes in bytes."""

    timeout_s: float = 300.0
    """A job's whole time, from its arrival at the runner to its last event."""
    grace_s: float = 0.5
    """How much later the gateway ends a job itself, when its runner has not."""
    max_body_bytes: int = 1 << 20
    """A body's most where only words go in."""
    max_media_body_bytes: int = 12 << 20
    """A body's most where pictures or voices go in."""
    body_timeout_s: float = 10.0
    """How long a caller may take to send its body."""
    max_in_flight: int = 80
    """Jobs at one runner at once. BentoML's client holds 100 connections to a runner: the rest stay free
    for cancels and health questions, which would otherwise wait behind the jobs."""
    health_timeout_s: float = 0.5
    """How long a runner may take to say how it is, and a new one to be noticed."""
    silence_s: float = 15.0
    """A runner that has not said for this long that it lives is gone; a killed one is noticed at once."""
    restart_retry_after_s: float = 5.0
    """What a caller is told to wait when a runner is gone and comes back by itself."""
    required: frozenset[str] = frozenset(MODALITIES)
    """The runners without which the service is not ready."""
