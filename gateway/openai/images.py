"""/v1/images/generations and /v1/images/edits."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from openai.types import Image, ImagesResponse
from pydantic import Field, WithJsonSchema
from pydantic_core import PydanticUndefined
from starlette.responses import Response

from gateway.answers import result_of
from gateway.doors import Call, Door, Wire, like, native
from gateway.errors import error_body
from gateway.explain import invalid
from gateway.image import image_jobs, verdict
from gateway.openai.wire import JsonAnswer
from gateway.schemas import ImageRequest, LoraSpec, MaybeWhole, Seed
from gateway.several import all_done, merged
from gateway.streams import EVENT_STREAM, ClosingStream, peek, rejoin, sse
from jobs import Done, Event, ImageFormat, ImageResult, JobError, Preview, Scheduler

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)
_NAMES = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "init_image": "image",
    "mask_image": "mask",
}
STEPS = {"low": 10, "medium": 20, "standard": 20, "high": 40, "hd": 40}
"""What a picture's quality means to a diffusion model; `num_inference_steps` says it exactly."""
_INLINE = {"type": "string", "enum": ["b64_json"]}
Delivery = Annotated[Literal["b64_json", "url"], WithJsonSchema(_INLINE)]
"""OpenAI's; url is refused in words of its own."""
Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
WHITE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4CAAAAK0lEQVR42u3MMREAAAgEoNf+nTWEmwcBqMlNRyAQCA"
    "QCgUAgEAgEAsHzYAFQLQF/OJ8+2wAAAABJRU5ErkJggg=="
)
"""The example of a picture to change: a white PNG of 64 x 64."""
NO_URLS = "Pictures are not kept to be fetched from a URL: leave `response_format` out or ask for b64_json."


class GenerateRequest(Wire):
    """A picture to draw."""

    prompt: str = like(ImageRequest, "prompt")
    model: str | None = like(ImageRequest, "model")
    n: int | None = like(ImageRequest, "num_images", default=None)
    size: str | None = Field(
        None,
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="Pixels as WIDTHxHEIGHT; auto, or left out, the model's own.",
        examples=["128x128"],
    )
    quality: Quality | None = Field(None, description="How many steps: low 10, medium 20, high 40.")
    response_format: Delivery | None = Field(None, description="Only b64_json is answered.")
    output_format: ImageFormat | None = Field(None, description="Encoding of the picture; png if left out.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Pictures are opaque.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: MaybeWhole = Field(
        None, ge=0, le=3, description="The most previews that a stream shows of each picture."
    )
    user: str | None = Field(None, max_length=256, description="Taken for the clients' sake, and not kept.")
    negative_prompt: str | None = like(ImageRequest, "negative_prompt", default=None)
    num_inference_steps: int | None = like(ImageRequest, "num_inference_steps", default=None)
    guidance_scale: float | None = like(ImageRequest, "guidance_scale", default=None)
    scheduler: Scheduler | None = like(ImageRequest, "scheduler", default=None)
    seed: Seed = None
    loras: list[LoraSpec] | None = like(ImageRequest, "loras", default=None)


class EditRequest(GenerateRequest):
    """A picture to change, with `mask` only where that is transparent."""

    file_fields: ClassVar[frozenset[str]] = frozenset({"image", "mask"})

    image: str = like(ImageRequest, "init_image", annotation=str, default=PydanticUndefined, examples=[WHITE])
    mask: str | None = like(ImageRequest, "mask_image")
    strength: float | None = like(ImageRequest, "strength")


def native_image(request: GenerateRequest, call: Call) -> ImageRequest:
    """Raises `JobError`."""
    if request.response_format == "url":
        raise invalid(NO_URLS, "url_not_supported", "response_format")
    size = _SIZE.fullmatch(request.size or "")
    same = ("prompt", "negative_prompt", "guidance_scale", "scheduler", "seed")
    fields: dict[str, Any] = {
        **{name: getattr(request, name) for name in same},
        "model": call.model_name(request.model, "image"),
        "num_images": request.n,
        "width": int(size[1]) if size else None,
        "height": int(size[2]) if size else None,
        "num_inference_steps": request.num_inference_steps or STEPS.get(request.quality or "auto"),
        "loras": request.loras,
        "response_format": request.output_format,
        "stream": bool(request.stream),
    }
    if isinstance(request, EditRequest):
        fields |= {
            "init_image": request.image,
            "mask_image": request.mask,
            "strength": request.strength,
        }
    return native(ImageRequest, fields, _NAMES)


async def generate(request: GenerateRequest, call: Call) -> Response:
    jobs = image_jobs(native_image(request, call), call.ticket, call.options.timeout_s)
    runner = call.runners["image"]
    headers = {"X-Seed": str(jobs[0].seed)}
    if request.stream:
        events = merged(jobs, runner)
        content = _stream(rejoin(await peek(events), events), request)
        return ClosingStream(content, EVENT_STREAM, headers)
    results = [result_of(done, ImageResult) for done in await all_done(jobs, runner)]
    pictures = [Image.model_validate({"b64_json": _base64(each.data), **_flagged(each)}) for each in results]
    form = request.output_format or "png"
    answer = ImagesResponse(created=int(time.time()), data=pictures, output_format=form)
    return JsonAnswer(answer, headers | verdict(results))


def _flagged(result: ImageResult) -> dict[str, bool]:
    """A field of ours, which OpenAI's has no words for; nothing where no safety checker looked."""
    return {} if result.flagged is None else {"flagged": result.flagged}


async def _stream(
    events: AsyncGenerator[tuple[int, Event], None], request: GenerateRequest
) -> AsyncGenerator[bytes, None]:
    most = request.partial_images or 0
    shown: dict[int, int] = {}
    try:
        async with aclosing(events):
            async for index, event in events:
                if isinstance(event, Preview) and shown.get(index, 0) < most:
                    place = shown[index] = shown.get(index, 0) + 1
                    yield _event("partial_image", event.data, request, partial_image_index=place - 1)
                elif isinstance(event, Done):
                    result = result_of(event, ImageResult)
                    yield _event("completed", result.data, request, **_flagged(result))
    except JobError as error:
        yield sse(error_body(error), "error")


def _event(kind: str, data: bytes, request: GenerateRequest, **more: int) -> bytes:
    name = f"image_{'edit' if isinstance(request, EditRequest) else 'generation'}.{kind}"
    told = {
        "type": name,
        "b64_json": _base64(data),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": request.output_format or "png",
        "quality": request.quality or "auto",
        "size": request.size or "auto",
        **more,
    }
    return sse(told, name)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


DOORS = (
    Door(
        method="POST",
        path="/v1/images/generations",
        summary="OpenAI: draws pictures.",
        request=GenerateRequest,
        answer=generate,
        answers=ImagesResponse,
        media=("application/json", EVENT_STREAM),
    ),
    Door(
        method="POST",
        path="/v1/images/edits",
        summary="OpenAI: changes a picture; JSON with base64, or multipart/form-data.",
        request=EditRequest,
        answer=generate,
        answers=ImagesResponse,
        media=("application/json", EVENT_STREAM),
    ),
)
