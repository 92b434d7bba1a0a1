"""The entry service: puts the gateway and its runners together. Importing it loads no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import bentoml

from gateway.greeting import greet
from gateway.options import GatewayOptions, ServedModel
from gateway.remote import Remotes
from gateway.service import NO_ACCESS_LOG, Gateway, open_doors
from models.catalog import WHOLE_CALLS, Modality, models_served
from runners.hosting import replica_of
from runners.image import ImageRunner
from runners.speech import SpeechRunner
from runners.text import TextRunner
from settings import settings
from untimed import UntimedService

given = settings()


def _runner(service: bentoml.Service[Any], urls: str | None) -> Any:
    """Started beside the gateway, or reached where it is served."""
    if urls is None:
        return bentoml.depends(service)
    return Remotes([url.strip() for url in urls.split(",") if url.strip()], given.runner_token)


def _with_replicas(gateway: type[Gateway]) -> type[Gateway]:
    """Further processes of the runners that are here, each a service that BentoML starts by itself."""
    for service in (TextRunner, ImageRunner, SpeechRunner):
        modality = service.inner.modality
        for number in range(1, given.processes(modality)):
            setattr(gateway, f"{modality}_runner_{number + 1}", bentoml.depends(replica_of(service, number)))
    return gateway


def _models() -> Iterator[ServedModel]:
    for modality in Modality:
        for name, entry in models_served(given.profile, modality).items():
            yield ServedModel(
                name=name,
                modality=modality.value,
                kind=WHOLE_CALLS.get(entry.family, ""),
                family=entry.family,
                precision=entry.precision,
                licence=entry.licence,
                aliases=entry.aliases,
                voices=entry.voice_aliases,
            )


@bentoml.service(name="triptych", workers=1, service_class=UntimedService, logging=NO_ACCESS_LOG)
@_with_replicas
class Triptych(Gateway):
    """Text, images and speech from open models."""

    text_runner: Any = _runner(TextRunner, given.text_runner_url)
    image_runner: Any = _runner(ImageRunner, given.image_runner_url)
    speech_runner: Any = _runner(SpeechRunner, given.speech_runner_url)
    options = GatewayOptions(
        timeout_s=given.timeout_s,
        stall_s=given.stall_s,
        max_body_bytes=given.max_body_bytes,
        max_media_body_bytes=given.max_media_body_bytes,
        store_url=given.store,
        secret=given.secret,
        state_dir=given.state_dir,
        access_log=given.access_log,
        cors_origins=given.cors_origins,
        drain_s=given.drain_s,
        max_kept_bytes=given.results_max_bytes,
        max_kept_age_s=given.results_max_age_s,
        vanished=given.vanished_clients,
        models=tuple(_models()),
        required=frozenset(each.value for each in Modality if models_served(given.profile, each)),
    )

    @bentoml.on_startup
    async def greet(self) -> None:
        self._greeting = asyncio.create_task(greet(self.readiness, given.url))


open_doors(Triptych)
