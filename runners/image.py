"""The runner of pictures."""

from __future__ import annotations

import bentoml

from jobs import ImageJob, Job
from models.catalog import Entry, Modality
from runners.hosting import SERVICE, Backend, Runner
from runners.placement import Placement
from settings import Settings


@bentoml.service(name="ImageRunner", **SERVICE)
class ImageRunner(Runner):
    modality = Modality.IMAGE

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        from runners.stepping import step_engine

        return step_engine(self.modality, entries, placement, options)

    def warm_up_job(self) -> Job:
        return ImageJob(
            id="warm-up",
            timeout_s=600,
            seed=0,
            prompt="a red circle",
            num_inference_steps=2,
            guidance_scale=4.0,
            scheduler="ddim",
        )
