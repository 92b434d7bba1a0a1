"""What a runner takes and what it gives back: all that the gateway and the runners share.

A gateway sends a job, a runner answers with a stream of events that ends in exactly one `Done` or `Failed`.
Both travel as ASCII JSON, one object a line, so that a stream may be cut anywhere and joined again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

JOB_VERSION = 4
"""Raised when an old runner could not read a new job; a runner refuses versions it does not know."""

Scheduler = Literal["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"]
TimestepSpacing = Literal["leading", "trailing", "linspace", "karras"]
ImageFormat = Literal["png", "jpeg", "webp"]
AudioFormat = Literal["wav", "flac", "ogg", "opus", "mp3", "pcm"]
FinishReason = Literal["stop", "length", "tool_calls"]
ToolChoice = Literal["auto", "none", "required"]

_WIRE = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class ErrorKind(StrEnum):
    """Why a job ended without a result; the gateway maps each kind to one HTTP status."""

    INVALID = "invalid_request_error"
    NOT_FOUND = "not_found_error"
    OVERLOADED = "overloaded_error"
    UNAVAILABLE = "unavailable_error"
    TIMEOUT = "timeout_error"
    CANCELLED = "cancelled_error"
    INTERNAL = "internal_error"


class JobError(Exception):
    """The one error a model or a runner raises on purpose; its message tells the caller what to do."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


# --- jobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class ToolCall:
    """A function that the model asks its caller to run; `arguments` is one JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Message:
    """One turn. An assistant's may ask for tools; a tool's answers the call named by `tool_call_id`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Tool:
    """A function the model may ask for; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Constraint:
    """What the whole text must be; `value`: a JSON schema as JSON, a regular expression, a Lark grammar."""

    kind: Literal["json_schema", "regex", "grammar"]
    value: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class LoraChoice:
    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class TextJob:
    """Exactly one of `prompt` (completed as it stands) and `messages` (through the chat template) is set.

    Of a request with `n` texts each is a job of its own, its seed one more than the last one's.
    """

    kind: Literal["text"] = "text"
    version: int = JOB_VERSION
    id: str
    model: str | None = None
    timeout_s: float
    account: str = ""
    """Whose job it is: accounts share the engine evenly."""
    trace: str = ""
    """The span that the job is part of, as a W3C traceparent; empty where nobody traces."""
    stream: bool = False
    seed: int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    max_tokens: int | None
    """None: whatever the context leaves."""
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    """Tokens less likely than this part of the likeliest are left out."""
    ignore_eos: bool = False
    """Go on past the end that the model sees."""
    repetition_penalty: float = 1.0
    """Divides (or, below zero, multiplies) the logit of each token that is in the prompt or the text."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that is in the text."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for each time that it is in the text."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """Tell each token's log probability, and those of this many likeliest; None tells none."""
    constraint: Constraint | None = None
    loras: tuple[LoraChoice, ...] = ()
    """At most one."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    """`required`: the text must be calls of `tools`; to ask for a certain one, give only that one."""
    cache_salt: str | None = None
    """Cached prefixes are shared only among jobs of one salt; the gateway makes it from the caller's key."""
    keep_alive_s: float | None = None
    """How long the model stays in memory after this job: 0 goes at once, below 0 stays, None as set."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class ImageJob:
    """One picture. `width`, `height` in pixels; they and `guidance_scale` None for the model's own.

    It begins from `init_image`, an encoded picture, if there is one: `strength` of the way back to noise.
    With a `mask_image` only its white part is drawn anew.
    """

    kind: Literal["image"] = "image"
    version: int = JOB_VERSION
    id: str
    model: str | None = None
    timeout_s: float
    account: str = ""
    trace: str = ""
    stream: bool = False
    seed: int
    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_inference_steps: int
    guidance_scale: float | None = None
    scheduler: Scheduler
    timestep_spacing: TimestepSpacing | None = None
    init_image: bytes | None = None
    mask_image: bytes | None = None
    strength: float | None = None
    loras: tuple[LoraChoice, ...] = ()
    response_format: ImageFormat = "png"
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class SpeechJob:
    kind: Literal["speech"] = "speech"
    version: int = JOB_VERSION
    id: str
    model: str | None = None
    timeout_s: float
    account: str = ""
    trace: str = ""
    stream: bool = False
    seed: int
    text: str
    language: str | None = None
    """ISO 639-1; None is the voice's, and without a voice what the text looks like."""
    voice: str | None = None
    voice_file: bytes | None = None
    """A preset of the caller's own in place of a voice: an .npz or a .safetensors file."""
    temperature: float
    response_format: AudioFormat = "wav"
    keep_alive_s: float | None = None
    sample_rate: int | None = None
    """In Hz; None is the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class EmbedJob:
    """Texts to make vectors of, in one call."""

    kind: Literal["embed"] = "embed"
    version: int = JOB_VERSION
    id: str
    model: str | None = None
    timeout_s: float
    account: str = ""
    trace: str = ""
    texts: tuple[str, ...]
    prompt_name: str | None = None
    """What the texts are for (`query`), for models that want to be told by words before each text."""
    truncate: bool = False
    """Cut a text that is longer than the model reads, instead of refusing it."""
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class ClassifyJob:
    """Texts to put labels on, find entities in, or translate, in one call: the model says which."""

    kind: Literal["classify"] = "classify"
    version: int = JOB_VERSION
    id: str
    model: str | None = None
    timeout_s: float
    account: str = ""
    trace: str = ""
    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """Labels of the caller's own (zero-shot), for a model that knows what follows from what."""
    multi_label: bool = False
    """Each of `labels` by itself, instead of one out of them."""
    top_k: int | None = None
    """The most labels of a text, the likeliest first; None is all."""
    source_language: str | None = None
    target_language: str | None = None
    """As the model names its languages, for one that translates more than one pair."""
    truncate: bool = False
    keep_alive_s: float | None = None


SteppedJob = TextJob | ImageJob | SpeechJob
"""Many forwards, which an engine batches step by step."""
WholeJob = EmbedJob | ClassifyJob
"""One stateless call, which is batched whole."""
Job = SteppedJob | WholeJob

# --- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Queued:
    """Waits; `position` jobs will be admitted before it, in about `wait_s` seconds."""

    kind: Literal["queued"] = "queued"
    position: int
    wait_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Progress:
    kind: Literal["progress"] = "progress"
    step: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Alternative:
    """A token that might have been chosen, as text, and the logarithm of its probability."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class TokenLogprob:
    """A token of the text, the logarithm of its probability, and the likeliest ones in its place."""

    token: str
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class TextDelta:
    """The next piece of the text; with `logprobs` asked for, those of the tokens since the last piece."""

    kind: Literal["delta"] = "delta"
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Preview:
    """A rough picture of what is being drawn, encoded as `media_type`."""

    kind: Literal["preview"] = "preview"
    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class AudioChunk:
    """A piece of the encoded sound; all pieces in order are the whole file."""

    kind: Literal["audio"] = "audio"
    data: bytes
    media_type: str
    sample_rate: int


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class TextResult:
    """`tool_calls` were taken out of `text`; `logprobs` is None unless asked for."""

    kind: Literal["text"] = "text"
    model: str
    seed: int
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class ImageResult:
    """`flagged`: the safety checker withheld the picture, which is black; None where none looked."""

    kind: Literal["image"] = "image"
    model: str
    seed: int
    data: bytes
    media_type: str
    flagged: bool | None = None
    pixel_steps: int = 0
    """Width times height times the steps taken."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class SpeechResult:
    """`data` is the whole encoded file, empty when its `AudioChunk`s have been sent already."""

    kind: Literal["speech"] = "speech"
    model: str
    seed: int
    data: bytes
    media_type: str
    sample_rate: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class EmbedResult:
    """Of each text its vector, and its tokens."""

    kind: Literal["embed"] = "embed"
    model: str
    vectors: tuple[tuple[float, ...], ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Label:
    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Entity:
    """What `text[start:end]` is."""

    label: str
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Finding:
    """About one text: that of these which its model finds."""

    labels: tuple[Label, ...] | None = None
    entities: tuple[Entity, ...] | None = None
    translation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class ClassifyResult:
    """Of each text what was found, and its tokens; `written` counts those of all translations."""

    kind: Literal["classify"] = "classify"
    model: str
    findings: tuple[Finding, ...]
    tokens: tuple[int, ...]
    written: int = 0


Result = TextResult | ImageResult | SpeechResult | EmbedResult | ClassifyResult


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Done:
    """The job's result; `queue_ms` from arrival to its first step, `total_ms` from arrival to its end."""

    kind: Literal["done"] = "done"
    result: Annotated[Result, Field(discriminator="kind")]
    queue_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, config=_WIRE)
class Failed:
    kind: Literal["failed"] = "failed"
    error: ErrorKind
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: JobError) -> Failed:
        return cls(
            error=error.kind,
            message=error.message,
            param=error.param,
            code=error.code,
            retry_after_s=error.retry_after_s,
        )

    def as_error(self) -> JobError:
        return JobError(
            self.error,
            self.message,
            param=self.param,
            code=self.code,
            retry_after_s=self.retry_after_s,
        )


Event = Queued | Progress | TextDelta | Preview | AudioChunk | Done | Failed

_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def encode_job(job: Job) -> str:
    return _JOB.dump_json(job, ensure_ascii=True).decode("ascii")


def decode_job(line: str | bytes) -> Job:
    """Raises `pydantic.ValidationError` on anything that is not a job this version knows."""
    return _JOB.validate_json(line)


def encode_event(event: Event) -> str:
    """One line of ASCII JSON, its newline included."""
    return _EVENT.dump_json(event, ensure_ascii=True).decode("ascii") + "\n"


def decode_event(line: str | bytes) -> Event:
    return _EVENT.validate_json(line)
