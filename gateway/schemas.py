"""What a caller may say: the bounds live in the types, with their units, defaults and examples.

Strict: no number in a string, no boolean as a number, no unknown field, no NUL, no NaN.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar, Literal

from bentoml import IODescriptor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from jobs import AudioFormat, ImageFormat, Scheduler, TimestepSpacing

NO_NUL = r"^[^\x00]*$"
MAX_SEED = 2**32 - 1
MAX_IMAGES = 8


def whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _base64(value: str | None) -> str | None:
    try:
        base64.b64decode(value or "", validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError("base64", "not base64") from None
    return value


def no_url(value: str | None) -> str | None:
    """What is served is chosen by name: nothing is ever fetched for a caller."""
    if value is not None and "://" in value:
        raise PydanticCustomError("url", "a URL")
    return value


Whole = Annotated[int, BeforeValidator(whole)]
MaybeWhole = Annotated[int | None, BeforeValidator(whole)]
"""Not `Whole | None`, whose bounds pydantic would apply to what is no number too, and break."""
Name = Annotated[str, AfterValidator(no_url)]
MaybeName = Annotated[str | None, AfterValidator(no_url)]
Model = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=128,
        pattern=NO_NUL,
        description="Name of the model; left out, the profile's default.",
    ),
    AfterValidator(no_url),
]
# The union is inside: BentoML writes what is annotated within a union a second time into the JSON schema.
Side = Annotated[int | None, Field(ge=64, le=2048, multiple_of=8), BeforeValidator(whole)]
SampleRate = Annotated[Literal[8000, 16000, 22050, 24000, 44100, 48000] | None, BeforeValidator(whole)]
EncodedFile = Annotated[str | None, AfterValidator(_base64)]
"""A file in base64, None without one; its bytes are bounded by the route's body."""
Seed = Annotated[
    int | None,
    Field(
        ge=0,
        le=MAX_SEED,
        description="Same seed, same answer; left out, a fresh one, which the answer tells.",
        examples=[42],
    ),
    BeforeValidator(whole),
]


MOST_KEPT_S = 86_400
KeepAlive = Annotated[
    float | None,
    Field(
        ge=-1,
        le=MOST_KEPT_S,
        description="Seconds that the model stays in memory after this: 0 not at all, -1 for good; left out, "
        "as was said last, or as the catalog says.",
    ),
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class LoraSpec(Strict):
    """An adapter and how strongly it is mixed in."""

    name: Name = Field(min_length=1, max_length=128, pattern=NO_NUL, description="Name of the LoRA.")
    weight: float = Field(1.0, ge=-2, le=2, description="Factor on the adapter's output; 0 is without it.")


class ImageRequest(Strict, IODescriptor):
    """A picture to draw."""

    file_fields: ClassVar[frozenset[str]] = frozenset({"init_image", "mask_image"})

    prompt: str = Field(
        min_length=1,
        max_length=4000,
        pattern=NO_NUL,
        description="What to draw, in characters.",
        examples=["a red circle on a blue background"],
    )
    negative_prompt: str = Field(
        "", max_length=4000, pattern=NO_NUL, description="What to keep away from, in characters."
    )
    model: Model = None
    width: Side = Field(None, description="Pixels; left out, the model's own.", examples=[128])
    height: Side = Field(None, description="Pixels; left out, the model's own.", examples=[128])
    num_inference_steps: Whole = Field(20, ge=1, le=100, description="Denoising steps.", examples=[20])
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=30,
        description="How closely to follow the prompt; 1 is without guidance, left out, the model's own.",
        examples=[4.0],
    )
    scheduler: Scheduler = Field("ddim", description="The sampler that takes the steps.")
    timestep_spacing: TimestepSpacing | None = Field(
        None,
        description="How the steps are spaced; left out, as the model's own configuration says.",
    )
    init_image: EncodedFile = Field(
        None, description="The picture to begin from: PNG, JPEG or WebP in base64, at most 2^23 pixels."
    )
    mask_image: EncodedFile = Field(
        None,
        description="What of init_image to draw anew: a picture in base64, white or transparent there.",
    )
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="How far to leave init_image: the part of the steps that is taken. Left out, 0.8; with "
        "mask_image 1.",
    )
    seed: Seed = None
    num_images: Whole = Field(
        1,
        ge=1,
        le=MAX_IMAGES,
        description="How many pictures, of the seeds from `seed` on; above 1 the answer is JSON.",
    )
    loras: list[LoraSpec] = Field([], max_length=4, description="Adapters mixed into this picture alone.")
    response_format: ImageFormat = Field("png", description="Encoding of the picture.")
    stream: bool = Field(False, description="Answer with server-sent events, the last with the picture.")
    keep_alive_s: KeepAlive = None

    @model_validator(mode="after")
    def _these_need_a_picture(self) -> ImageRequest:
        for name in ("mask_image", "strength"):
            if self.init_image is None and getattr(self, name) is not None:
                raise PydanticCustomError("needs_init_image", "{name} needs init_image", {"name": name})
        return self


class SpeechRequest(Strict, IODescriptor):
    """A text to say."""

    # `oneOf` is for BentoML: its description of a service knows no `not`, and its client takes other
    # combinations for the whole of a request.
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"not": {"required": ["voice", "voice_file"]}}]})
    file_fields: ClassVar[frozenset[str]] = frozenset({"voice_file"})

    text: str = Field(
        min_length=1,
        max_length=4096,
        pattern=NO_NUL,
        description="What to say, in characters; it is said sentence by sentence.",
        examples=["Four, two, seven."],
    )
    model: Model = None
    language: str | None = Field(
        None,
        min_length=2,
        max_length=2,
        pattern=NO_NUL,
        description="ISO 639-1; left out, the voice's, and without a voice what the text looks like.",
        examples=["en"],
    )
    voice: MaybeName = Field(
        None,
        min_length=1,
        max_length=64,
        pattern=NO_NUL,
        description="Name of the voice, as GET /voices lists them; left out, the model's default.",
    )
    voice_file: EncodedFile = Field(
        None,
        description="A Bark preset of your own, never with `voice`: .npz or .safetensors in base64, 4 MiB.",
    )
    temperature: float = Field(0.6, ge=0, le=1.5, description="How freely the voice varies.")
    seed: Seed = None
    response_format: AudioFormat = Field(
        "wav", description="Encoding of the sound; pcm is 16 bit little endian, mono."
    )
    sample_rate: SampleRate = Field(None, description="In Hz; left out, the model's own.")
    stream: bool = Field(False, description="Send the encoded sound piece by piece, as it is made.")
    stream_format: Literal["audio", "sse"] = Field(
        "audio", description="With `stream`: the sound itself, or server-sent events with it and progress."
    )
    keep_alive_s: KeepAlive = None

    @model_validator(mode="after")
    def _one_voice(self) -> SpeechRequest:
        if self.voice is not None and self.voice_file is not None:
            raise PydanticCustomError("one_voice", "give a voice or a voice_file")
        return self


class Timings(BaseModel):
    queue_ms: float = Field(description="Milliseconds from arrival to the first step.")
    total_ms: float = Field(description="Milliseconds from arrival to the end.")


class OneImage(BaseModel):
    b64_json: str = Field(description="The encoded picture in base64.")
    seed: int = Field(description="The seed that gives this picture again, asked for alone.")
    flagged: bool | None = Field(
        None, description="The safety checker withheld it and it is black; null where no checker looked."
    )


class ImagesAnswer(BaseModel):
    """The pictures of a request with `num_images` above 1, in the order of their seeds."""

    id: str = Field(description="The request's id, as in the header X-Request-Id.")
    model: str
    media_type: str = Field(description="The encoding of the pictures.", examples=["image/png"])
    images: list[OneImage]
    timings: Timings
