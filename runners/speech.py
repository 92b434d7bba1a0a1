"""The runner of speech."""

from __future__ import annotations

import asyncio

import bentoml

from jobs import Job, SpeechJob
from models.catalog import Entry, Modality, models_served
from runners.hosting import SERVICE, Backend, Runner
from runners.placement import Placement
from settings import Settings, settings


@bentoml.service(name="SpeechRunner", **SERVICE)
class SpeechRunner(Runner):
    modality = Modality.SPEECH

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        from runners.stepping import step_engine

        return step_engine(self.modality, entries, placement, options)

    @bentoml.api
    async def voices(self) -> list[dict[str, str]]:
        """The `name`, `model` and `language` of each voice; reads folders, loads no model."""
        from models.speech.listing import list_voices

        return await asyncio.to_thread(list_voices, models_served(settings().profile, self.modality))

    def warm_up_job(self, entries: dict[str, Entry]) -> Job:  # noqa: ARG002 - any will do
        return SpeechJob(id="warm-up", timeout_s=600, seed=0, text="one", temperature=0.6)
