"""Stable Diffusion 1.x and 2.x: pictures as rows that go through the lanes encode, denoise and vae."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPTextModel

from jobs import ErrorKind, Event, ImageJob, ImageResult, JobError, Preview, Progress
from models.image.checkpoint import TextEncoders, load_parts
from models.image.denoise import Batch, Stepped, bucket_of, build_batch, denoise, initial_noise
from models.image.encode import MEDIA_TYPES, encode_image, parameters_of
from models.image.lora_names import layer_names
from models.image.memory import memory_errors
from models.image.parts import Parts
from models.image.pictures import Picture
from models.image.preview import PREVIEW_MEDIA_TYPE, encode_preview, fit_latent_to_rgb
from models.image.prompts import Prompts
from models.image.row import Row
from models.image.samplers import Samplers
from models.image.source import encode_sources, source_of, steps_left_out
from models.image.watermark import mark
from models.lora.bank import MOST_LORAS_A_ROW, LoraBank
from models.lora.files import LoraReader, layers_of
from models.lora.folder import LoraFolder
from models.protocol import Lane, ModelSpec

TEXT_ENCODERS: TextEncoders = {"text_encoder": ("tokenizer", CLIPTextModel, "last")}
PREVIEWS_A_PICTURE = 5
_WARM_ON_CPU = 8


class StableDiffusion:
    """`models.protocol.Model` of `ImageJob` and `Row`."""

    def __init__(self, spec: ModelSpec, parts: Parts) -> None:
        self.name = spec.name
        self._spec = spec
        self._parts = parts
        self._max_rows = spec.max_rows
        self._in_flight = 0
        self._samplers = Samplers(parts.scheduler_config)
        reader = LoraReader(layers_of(parts.adaptable), layer_names(parts.adaptable), parts.dtype)
        self._loras = LoraFolder(spec.loras, reader)
        self._bank = LoraBank(parts.adaptable, parts.device, parts.dtype, spec.lora_memory_bytes)
        self._prompts = Prompts(parts.text_encoders, self._bank, parts.device, zero_empty=parts.zero_empty)
        self._batch: Batch | None = None
        self._latent_to_rgb = fit_latent_to_rgb(parts.vae.decode, parts.latent_channels)

    # --- prepare, reserve, release --------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare(self, job: ImageJob) -> Row:
        parts = self._parts
        picture = None if job.init_image is None else Picture(job.init_image, "init_image")
        size = parts.sides(job.width, job.height, None if picture is None else picture.size)
        steps = (job.num_inference_steps, job.timestep_spacing)
        table = self._samplers.table(job.scheduler, *steps, begin=steps_left_out(job))
        if len(job.loras) > MOST_LORAS_A_ROW:
            message = f"loras must name at most {MOST_LORAS_A_ROW} LoRAs."
            raise JobError(ErrorKind.INVALID, message, param="loras")
        scale = self._spec.guidance_scale if job.guidance_scale is None else job.guidance_scale
        # A guidance-distilled UNet is told its guidance.
        guided = scale > 1.0 and parts.guidance_width is None
        prompt, negative_prompt = self._prompts.chunks(job, guided=guided)
        shape = (parts.latent_channels, size[1] // parts.vae.factor, size[0] // parts.vae.factor)
        return Row(
            job=job,
            width=size[0],
            height=size[1],
            guidance_scale=scale,
            table=table,
            prompt=prompt,
            negative_prompt=negative_prompt,
            adapters=self._loras.load(job.loras),
            latents=(initial_noise(job.seed, shape) * table.noise_scale).to(parts.device),
            index=table.begin,
            source=source_of(job, picture, size, shape, parts.device, shown=parts.is_for_inpainting),
        )

    @torch.inference_mode()
    def reserve(self, row: Row) -> bool:
        """A place among `max_rows`, and its adapters': more would only share the steps and all end later."""
        if self._in_flight >= self._max_rows:
            return False
        if not self._bank.acquire([adapter for adapter, _ in row.adapters]):
            return False
        row.holds_place = True
        self._in_flight += 1
        self._prompts.recall(row)
        return True

    def release(self, row: Row) -> None:
        if row.holds_place:
            self._bank.release([adapter for adapter, _ in row.adapters])
            row.holds_place = False
            self._in_flight -= 1
        if self._batch is not None and row in self._batch.rows:
            self._batch = None

    # --- lanes ----------------------------------------------------------------------------------------------

    def lane(self, row: Row) -> Lane | None:
        size = tuple(row.latents.shape[1:])
        if row.cond is None:
            return Lane(self.name, "encode")
        if row.source is not None and row.source.latents is None:
            return Lane(self.name, "source", (*size, len(row.source.pictures)))
        if row.index < len(row.table):
            return Lane(self.name, "denoise", (*size, len(row.prompt)))
        if row.pixels is None:
            return Lane(self.name, "vae", size)
        return None

    def cost(self, row: Row) -> float:
        if row.cond is None:
            return float(len(row.prompt) * len(row.prompts))
        if row.source is not None and row.source.latents is None:
            return float(len(row.source.pictures))
        if row.index < len(row.table):
            return float(row.forward_rows)
        return 1.0

    def budget(self, lane: Lane) -> float:
        if lane.stage in ("source", "vae"):
            height, width = lane.shape[:2]
            return float(min(self._max_rows, self._parts.vae.most_rows(height, width)))
        return float(self._max_rows)

    @torch.inference_mode()
    def step(self, lane: Lane, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        stages: dict[str, Callable[[Sequence[Row]], Sequence[Sequence[Event]]]] = {
            "encode": self._encode,
            "source": self._source,
            "denoise": self._denoise,
            "vae": self._vae,
        }
        with memory_errors():
            return stages[lane.stage](rows)

    def _encode(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        self._prompts.encode(rows)
        return [()] * len(rows)

    def _source(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        sources = [row.source for row in rows if row.source is not None]
        made = encode_sources(self._parts.vae, sources)
        for row, source, latents in zip(rows, sources, made, strict=True):
            source.latents = latents
            row.latents = source.begin(row.table)
        return [()] * len(rows)

    def _denoise(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        parts = self._parts
        if self._batch is None or self._batch.rows != tuple(rows):
            told_sizes = parts.is_told_sizes
            self._batch = build_batch(rows, self._bank, parts.guidance_width, told_sizes=told_sizes)
        with self._bank.applied(self._batch.selection):
            stepped = denoise(self._unet(self._batch), self._batch, parts.dtype)
        events = [self._told(row, made) for row, made in zip(rows, stepped, strict=True)]
        for row, made in zip(rows, stepped, strict=True):
            row.latents, row.history, row.index = made.latents, made.history, row.index + 1
        return events

    def _unet(self, batch: Batch) -> Callable[..., Any]:
        """The compiled UNet for what `warm_up` compiled, the plain one for the rest."""
        parts, row = self._parts, batch.rows[0]
        if parts.compiled_unet is None or batch.selection:
            return parts.unet
        own_size = (row.width, row.height) == (parts.width, parts.height)
        return parts.compiled_unet if own_size and len(row.prompt) == 1 else parts.unet

    def _told(self, row: Row, made: Stepped) -> list[Event]:
        begin = row.table.begin
        told: list[Event] = [Progress(step=row.index + 1 - begin, total=len(row.table) - begin)]
        if self._wants_preview(row):
            data = encode_preview(made.x0, self._latent_to_rgb, self._parts.vae.factor)
            told.append(Preview(data=data, media_type=PREVIEW_MEDIA_TYPE))
        return told

    def _wants_preview(self, row: Row) -> bool:
        """None where a safety checker looks: what it may withhold at the end must not be shown on the way."""
        step, total = row.index + 1 - row.table.begin, len(row.table) - row.table.begin
        every = max(1, round(total / PREVIEWS_A_PICTURE))
        return self._parts.safety is None and row.job.stream and step % every == 0 and step < total

    def _vae(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        parts = self._parts
        pictures = parts.vae.decode(torch.stack([row.latents for row in rows]))
        levels = ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        flags = [None] * len(rows) if parts.safety is None else parts.safety.flags(list(pixels))
        for row, picture, flagged in zip(rows, pixels, flags, strict=True):
            row.flagged = flagged
            row.pixels = np.zeros_like(picture) if flagged else picture
        return [()] * len(rows)

    # --- results --------------------------------------------------------------------------------------------

    def finish(self, row: Row) -> ImageResult:
        job = row.job
        if row.pixels is None:
            raise JobError(ErrorKind.INTERNAL, "The picture is not decoded yet.")
        told = parameters_of(job, self.name, row.width, row.height, row.guidance_scale)
        pixels = mark(row.pixels) if self._spec.watermark and not row.flagged else row.pixels
        return ImageResult(
            model=self.name,
            seed=job.seed,
            data=encode_image(pixels, job.response_format, told if self._spec.metadata else None),
            media_type=MEDIA_TYPES[job.response_format],
            pixel_steps=row.width * row.height * (len(row.table) - row.table.begin),
            flagged=row.flagged,
        )

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Every bucket of the model's own size and one VAE decode; on a CPU up to 8 rows."""
        job = ImageJob(
            id="warm-up",
            timeout_s=0,
            seed=0,
            prompt="",
            num_inference_steps=20,
            guidance_scale=1.0,
            scheduler="ddim",
        )
        most = self._max_rows if self._parts.device.type == "cuda" else min(self._max_rows, _WARM_ON_CPU)
        rows = [self.prepare(job) for _ in range(max(most, 2))]
        self._encode(rows)
        for bucket in sorted({bucket_of(2**n, self._parts.device) for n in range(most.bit_length())}):
            self._denoise(rows[:bucket])
        self._vae(rows[:1])


def load(spec: ModelSpec) -> StableDiffusion:
    """Loads the checkpoint in `spec.folder`. Raises `ValueError` for a configuration that is not built."""
    parts = load_parts(spec, TEXT_ENCODERS)
    # StableDiffusionPipeline does so too: an offset of 0 is taken for an outdated config.
    parts.scheduler_config["steps_offset"] = 1
    return StableDiffusion(spec, parts)
