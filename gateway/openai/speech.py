"""/v1/audio/speech."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from gateway.answers import result_of
from gateway.doors import Call, Door, Wire, like, native
from gateway.errors import error_body
from gateway.explain import invalid
from gateway.schemas import EncodedFile, SampleRate, Seed, SpeechRequest
from gateway.speech import answer_speech, speech_job
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse
from jobs import AudioChunk, Done, Event, JobError, SpeechResult

_MADE = {"type": "string", "enum": ["mp3", "opus", "flac", "wav", "pcm"]}
Format = Annotated[Literal["mp3", "opus", "aac", "flac", "wav", "pcm"], WithJsonSchema(_MADE)]
"""OpenAI's; aac is refused in words of its own."""
PCM_RATE = 24_000
"""OpenAI's, which its clients play raw samples at."""


class VoiceId(Wire):
    """A voice by its name."""

    id: str = like(SpeechRequest, "voice", annotation=str)


class SpeakRequest(Wire):
    """A text to say."""

    file_fields: ClassVar[frozenset[str]] = frozenset({"voice_file"})

    input: str = like(SpeechRequest, "text")
    model: str | None = like(SpeechRequest, "model")
    voice: str | VoiceId | None = Field(
        None, description="A voice's name, or one of OpenAI's that stands for it.", examples=["alloy"]
    )
    response_format: Format | None = Field(None, description="Encoding of the sound; mp3 when left out.")
    speed: float | None = Field(None, ge=1, le=1, description="Voices have one speed.")
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="The sound itself, as it is made, or server-sent events with pieces of it."
    )
    language: str | None = like(SpeechRequest, "language")
    voice_file: EncodedFile = Field(
        None,
        description="A Bark preset of your own: .npz or .safetensors in base64, 4 MiB. It is taken before "
        "`voice`, without which OpenAI's clients send nothing.",
    )
    temperature: float | None = like(SpeechRequest, "temperature", default=None)
    seed: Seed = None
    sample_rate: SampleRate = Field(
        None, description="In Hz; left out, the model's own, and 24000 for pcm as OpenAI's is."
    )


async def speak(request: SpeakRequest, call: Call) -> Response:
    events = request.stream_format == "sse"
    form = _format(request)
    fields: dict[str, Any] = {
        "text": request.input,
        "model": call.model_name(request.model, "speech"),
        "language": request.language,
        "voice": None if request.voice_file else _voice(request, call),
        "voice_file": request.voice_file,
        "temperature": request.temperature,
        "seed": request.seed,
        "response_format": form,
        "sample_rate": request.sample_rate or (PCM_RATE if form == "pcm" else None),
        "stream": events or request.stream_format == "audio",
    }
    asked = native(SpeechRequest, fields, {"text": "input"})
    job = speech_job(asked, call.ticket, call.options.timeout_s)
    runner = call.runners["speech"]
    try:
        if not events:
            return await answer_speech(job, runner)
        sound = runner.run(job)
        content = _events(rejoin(await peek(sound), sound))
    except JobError as error:
        if error.param == "text":
            error.param = "input"
        raise
    return ClosingStream(content, EVENT_STREAM, {"X-Seed": str(job.seed)})


def _voice(request: SpeakRequest, call: Call) -> str | None:
    name = request.voice.id if isinstance(request.voice, VoiceId) else request.voice
    model = call.model(request.model or call.options.default_model("speech"), "speech")
    return model.voices.get(name, name) if model and name else name


def _format(request: SpeakRequest) -> str:
    name = request.response_format or "mp3"
    if name == "aac":
        message = "`response_format` aac is not made here; there are mp3, opus, flac, wav and pcm."
        raise invalid(message, "unknown_choice", "response_format")
    return name


async def _events(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, AudioChunk):
                    yield _piece(event.data)
                elif isinstance(event, Done):
                    if rest := result_of(event, SpeechResult).data:
                        yield _piece(rest)
                    yield sse({"type": "speech.audio.done"})
    except JobError as error:
        yield sse(error_body(error))


def _piece(data: bytes) -> bytes:
    return sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode("ascii")})


DOORS = (
    Door(
        method="POST",
        path="/v1/audio/speech",
        summary="OpenAI: says a text.",
        request=SpeakRequest,
        answer=speak,
        media=("audio/mpeg", "audio/ogg", "audio/flac", "audio/wav", "audio/pcm", EVENT_STREAM),
    ),
)
