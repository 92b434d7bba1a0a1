"""The entry service's class: the native endpoints, and the streamed twins of three for BentoML's own client.

The top-level service composes it with its runners:

    @bentoml.service(service_class=UntimedService)
    class Triptych(Gateway):
        text_runner = bentoml.depends(TextRunner)
        image_runner = bentoml.depends(ImageRunner)
        speech_runner = bentoml.depends(SpeechRunner)

    open_doors(Triptych)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache, partial
from itertools import count, takewhile
from typing import Any, ClassVar, cast

import bentoml
from _bentoml_sdk.io_models import IORootModel
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from gateway.doors import Doors
from gateway.edge import Edge
from gateway.errors import or_error
from gateway.health import Readiness
from gateway.image import answer_image, image_jobs
from gateway.links import RunnerApi
from gateway.office import Office
from gateway.openapi import openapi_document
from gateway.options import GatewayOptions
from gateway.remote import Remotes
from gateway.runners import RunnerClient
from gateway.schemas import ImageRequest, SpeechRequest
from gateway.speech import answer_speech, answer_speech_events, speech_job
from gateway.text import answer_text, text_jobs
from gateway.text_schemas import TextAnswer, TextRequest
from gateway.tickets import current_ticket
from gateway.whole import answer_classify, answer_embed, classify_job, embed_job
from gateway.whole_schemas import ClassifyAnswer, ClassifyRequest, EmbedAnswer, EmbedRequest
from tracing import start_tracing, stop_tracing

NO_ACCESS_LOG: Any = {"access": {"enabled": False}}
"""For `bentoml.service(logging=...)`: the edge logs each request, as JSON and without a query."""
_STREAM: dict[str, Any] = {"stream": True}


class EncodedBytes(IORootModel[bytes]):
    """Encoded picture or sound: BentoML's client hands out bytes as they are."""


class EventText(IORootModel[str]):
    """Server-sent events in ASCII: BentoML's client hands out text as it comes."""


class Gateway:
    """Turns requests into jobs for three runners, and their events into answers."""

    # Set by the subclass to what `bentoml.depends` returns, a descriptor that gives a `RunnerApi`; further
    # processes of a runner are `text_runner_2` and so on.
    text_runner: Any
    image_runner: Any
    speech_runner: Any
    options: ClassVar[GatewayOptions] = GatewayOptions()
    readiness: ClassVar[Readiness]
    doors: ClassVar[Doors]
    office: ClassVar[Office]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.readiness = Readiness()
        cls.doors = Doors()
        cls.office = Office()

    def __init__(self) -> None:
        options = self.options
        self.office.open(options)
        books = self.office.books
        self._text = RunnerClient("text", self._apis("text"), options, books)
        self._image = RunnerClient("image", self._apis("image"), options, books)
        self._speech = RunnerClient("speech", self._apis("speech"), options, books)
        self._clients = {client.name: client for client in (self._text, self._image, self._speech)}
        self.readiness.watch(self._clients, options.required)
        self.doors.open(self._clients, self.office.errands)

    def _apis(self, modality: str) -> Sequence[RunnerApi] | Remotes:
        name = f"{modality}_runner"
        first = getattr(self, name)
        if isinstance(first, Remotes):
            return first
        further = takewhile(partial(hasattr, self), (f"{name}_{number}" for number in count(2)))
        return [first, *(getattr(self, each) for each in further)]

    @bentoml.on_startup
    async def begin(self) -> None:
        start_tracing()
        await self.office.begin()

    @bentoml.on_shutdown
    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        await self.office.close()
        await asyncio.to_thread(stop_tracing)

    @bentoml.api(input_spec=TextRequest, output_spec=TextAnswer)
    async def text(self, **params: Any) -> Response:
        """Completes a prompt as it stands, or answers messages."""
        return await self._answer_text(TextRequest.model_construct(**params))

    @bentoml.api(input_spec=TextRequest, output_spec=EventText)
    async def text_stream(self, **params: Any) -> Response:
        """The text endpoint with `stream: true`, for clients that cannot switch."""
        return await self._answer_text(TextRequest.model_construct(**params | _STREAM))

    @bentoml.api(input_spec=ImageRequest, output_spec=EncodedBytes)
    async def image(self, **params: Any) -> Response:
        """Draws a picture."""
        return await self._answer_image(ImageRequest.model_construct(**params))

    @bentoml.api(input_spec=ImageRequest, output_spec=EventText)
    async def image_stream(self, **params: Any) -> Response:
        """The image endpoint with `stream: true`, for clients that cannot switch."""
        return await self._answer_image(ImageRequest.model_construct(**params | _STREAM))

    @bentoml.api(input_spec=SpeechRequest, output_spec=EncodedBytes)
    async def speech(self, **params: Any) -> Response:
        """Says a text."""
        return await self._answer_speech(SpeechRequest.model_construct(**params))

    @bentoml.api(input_spec=SpeechRequest, output_spec=EncodedBytes)
    async def speech_stream(self, **params: Any) -> Response:
        """The speech endpoint with `stream: true`, for clients that cannot switch."""
        return await self._answer_speech(SpeechRequest.model_construct(**params | _STREAM))

    @bentoml.api(input_spec=EmbedRequest, output_spec=EmbedAnswer)
    async def embed(self, **params: Any) -> Response:
        """Makes a vector of each text."""
        ticket = current_ticket()
        job = embed_job(EmbedRequest.model_construct(**params), ticket, self.options.timeout_s)
        return await or_error(answer_embed(job, self._text, ticket))

    @bentoml.api(input_spec=ClassifyRequest, output_spec=ClassifyAnswer)
    async def classify(self, **params: Any) -> Response:
        """Labels texts, finds entities in them, or translates them, as the model does."""
        ticket = current_ticket()
        job = classify_job(ClassifyRequest.model_construct(**params), ticket, self.options.timeout_s)
        return await or_error(answer_classify(job, self._text, ticket))

    async def _answer_text(self, request: TextRequest) -> Response:
        ticket = current_ticket()
        jobs = text_jobs(request, ticket, self.options.timeout_s)
        return await or_error(answer_text(jobs, self._text, ticket))

    async def _answer_image(self, request: ImageRequest) -> Response:
        ticket = current_ticket()
        jobs = image_jobs(request, ticket, self.options.timeout_s)
        return await or_error(answer_image(jobs, self._image, ticket))

    async def _answer_speech(self, request: SpeechRequest) -> Response:
        ticket = current_ticket()
        job = speech_job(request, ticket, self.options.timeout_s)
        if request.stream and request.stream_format == "sse":
            return await or_error(answer_speech_events(job, self._speech, ticket))
        return await or_error(answer_speech(job, self._speech))


for _method in (Gateway.text_stream, Gateway.image_stream, Gateway.speech_stream):
    # BentoML takes an API for a streaming one when it is a generator function. These are coroutines that
    # answer with a streaming response, so that they too can fail with a proper status and carry headers.
    _method.is_stream = True


def open_doors(service: bentoml.Service[Any]) -> None:
    """Puts the edge in front of a service made of `Gateway`; call it once, beside its definition."""
    gateway = service.inner
    methods = service.apis.values()

    @cache
    def document() -> dict[str, Any]:
        endpoints = {method.name: (method.input_spec, method.doc or "") for method in methods}
        return openapi_document(service.name, endpoints, gateway.doors.all)

    if gateway.options.cors_origins:  # first is outermost: a browser asks before it sends a key
        service.add_asgi_middleware(
            cast(Any, CORSMiddleware),
            allow_origins=list(gateway.options.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "X-Request-Id",
                "X-Seed",
                "X-Queue-Ms",
                "X-Total-Ms",
                "X-Sample-Rate",
                "Retry-After",
            ],
        )
    edge: Any = Edge  # BentoML's protocol for it describes a function
    service.add_asgi_middleware(
        edge,
        schemas={method.route: method.input_spec for method in methods},
        document=document,
        readiness=gateway.readiness,
        doors=gateway.doors,
        office=gateway.office,
        options=gateway.options,
    )
