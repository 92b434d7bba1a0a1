"""The runner of pictures."""

from __future__ import annotations

import bentoml

from jobs import ImageJob, Job
from models.catalog import Entry, Modality
from runners.hosting import SERVICE, Backend, Runner
from runners.placement import Placement
from settings import Settings


def chosen(entries: dict[str, Entry], options: Settings) -> dict[str, Entry]:
    """The entries with what the settings turn off for all of them turned off."""
    return {
        name: entry.model_copy(
            update={
                "safety_checker": entry.safety_checker and options.safety_checker,
                "watermark": entry.watermark and options.watermark,
                "metadata": entry.metadata and options.picture_metadata,
            }
        )
        for name, entry in entries.items()
    }


@bentoml.service(name="ImageRunner", **SERVICE)
class ImageRunner(Runner):
    modality = Modality.IMAGE

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        from runners.stepping import step_engine

        return step_engine(self.modality, chosen(entries, options), placement, options)

    def warm_up_job(self, entries: dict[str, Entry]) -> Job:  # noqa: ARG002 - any will do
        return ImageJob(
            id="warm-up",
            timeout_s=600,
            seed=0,
            prompt="a red circle",
            num_inference_steps=2,
            scheduler="ddim",
        )
