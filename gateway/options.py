"""What can be set about the gateway; the settings room fills it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MODALITIES = ("text", "image", "speech")
JOB_KINDS = (*MODALITIES, "embed", "classify")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What callers are told about a model, and other names by which they may ask for it and its voices."""

    name: str
    modality: str
    kind: str = ""
    """Of the jobs it takes, where that is not its modality: `embed`, `classify`."""
    family: str = ""
    precision: str = ""
    licence: str = ""
    aliases: tuple[str, ...] = ()
    voices: Mapping[str, str] = field(default_factory=dict[str, str])
    """Other names of its voices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """All times in seconds, all sizes in bytes."""

    timeout_s: float = 300.0
    """A job's whole time, from its arrival at the runner to its last event."""
    stall_s: float = 120.0
    """The most between two events of a job at work; what waits in a queue is silent for longer."""
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
    store_url: str = "sqlite://"
    """The database, as SQLAlchemy names it; this one lives in memory."""
    secret: str | None = None
    """What keys are hashed with; None: what is in `state_dir`/secret, which is made when it is missing."""
    state_dir: str = "var"
    """The folder of what is kept on this machine."""
    access_log: bool = True
    """Whether each request is a line of JSON on stdout."""
    drain_s: float = 20.0
    """How long what is at work gets to end when the service stops."""
    max_kept_bytes: int = 256 << 20
    """Of all answers that are kept for jobs and Idempotency-Keys."""
    max_kept_answer_bytes: int = 64 << 20
    max_kept_age_s: float = 86_400.0
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may ask from a browser."""
    vanished: Literal["cancel", "finish"] = "cancel"
    """What becomes of the work of a caller who has gone."""
    models: tuple[ServedModel, ...] = ()
    """The models of all runners, of each modality its default first."""

    def model(self, name: str, modality: str) -> ServedModel | None:
        """The model of this name or alias."""
        return next(
            (
                each
                for each in self.models
                if each.modality == modality and (name == each.name or name in each.aliases)
            ),
            None,
        )

    def default_model(self, kind: str) -> str:
        """That takes such jobs: of `text`, `image`, `speech`, `embed` or `classify`."""
        takes = (each.name for each in self.models if (each.kind or each.modality) == kind)
        return next(takes, "default")
