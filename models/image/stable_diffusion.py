"""Stable Diffusion 1.x and 2.x: pictures as rows that go through the lanes encode, denoise and vae."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs import ErrorKind, Event, ImageJob, ImageResult, JobError, Preview, Progress
from models.image.denoise import Batch, Stepped, bucket_of, build_batch, denoise, initial_noise
from models.image.encode import MEDIA_TYPES, encode_image, parameters_of
from models.image.lora import MOST_LORAS_A_ROW, Chosen, LoraBank
from models.image.lora_files import LoraReader
from models.image.lora_folder import LoraFolder
from models.image.memory import memory_errors
from models.image.parts import Parts, load_parts
from models.image.preview import PREVIEW_MEDIA_TYPE, encode_preview, fit_latent_to_rgb
from models.image.row import Row
from models.image.samplers import Samplers
from models.image.text_encoder import Chunks, EmbeddingCache, PromptTokenizer, encode_chunks
from models.protocol import Lane, ModelSpec

PREVIEWS_A_PICTURE = 5
_LARGEST_DECODE = 8 * 512 * 512
"""Pixels decoded in one VAE forward: its activations, not its arithmetic, are what fills memory."""
_WARM_ON_CPU = 8


class StableDiffusion:
    """`models.protocol.Model` of `ImageJob` and `Row`."""

    def __init__(self, spec: ModelSpec, parts: Parts) -> None:
        self.name = spec.name
        self._parts = parts
        self._max_rows = spec.max_rows
        self._samplers = Samplers(parts.scheduler_config)
        self._tokenizer = PromptTokenizer(parts.tokenizer, parts.window)
        self._embeddings = EmbeddingCache()
        adaptable = {"unet": parts.unet, "text_encoder": parts.text_encoder}
        self._loras = LoraFolder(spec.loras, LoraReader(adaptable, parts.dtype))
        self._bank = LoraBank(adaptable, parts.device, parts.dtype)
        self._batch: Batch | None = None
        self._latent_to_rgb = fit_latent_to_rgb(self._decode, parts.latent_channels)

    # --- prepare, reserve, release --------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare(self, job: ImageJob) -> Row:
        parts = self._parts
        width = parts.side(job.width, "width")
        height = parts.side(job.height, "height")
        table = self._samplers.table(job.scheduler, job.num_inference_steps)
        if len(job.loras) > MOST_LORAS_A_ROW:
            message = f"loras must name at most {MOST_LORAS_A_ROW} LoRAs."
            raise JobError(ErrorKind.INVALID, message, param="loras")
        prompt, negative_prompt = self._chunks(job)
        shape = (parts.latent_channels, height // parts.factor, width // parts.factor)
        return Row(
            job=job,
            width=width,
            height=height,
            table=table,
            prompt=prompt,
            negative_prompt=negative_prompt,
            adapters=self._loras.load(job.loras),
            latents=(initial_noise(job.seed, shape) * table.noise_scale).to(parts.device),
        )

    def _chunks(self, job: ImageJob) -> tuple[Chunks, Chunks | None]:
        """Both prompts in as many chunks as the longer one; one where there is no unconditional half."""
        prompt = self._tokenizer.chunks(job.prompt)
        # A guidance-distilled UNet is told its guidance.
        if job.guidance_scale <= 1.0 or self._parts.guidance_width is not None:
            return prompt, None
        negative_prompt = self._tokenizer.chunks(job.negative_prompt, at_least=len(prompt.ids))
        return self._tokenizer.chunks(job.prompt, at_least=len(negative_prompt.ids)), negative_prompt

    @torch.inference_mode()
    def reserve(self, row: Row) -> bool:
        if not self._bank.acquire([adapter for adapter, _ in row.adapters]):
            return False
        row.holds_adapters = True
        self._recall(row)
        return True

    def release(self, row: Row) -> None:
        if row.holds_adapters:
            self._bank.release([adapter for adapter, _ in row.adapters])
            row.holds_adapters = False
        if self._batch is not None and row in self._batch.rows:
            self._batch = None

    # --- lanes ----------------------------------------------------------------------------------------------

    def lane(self, row: Row) -> Lane | None:
        size = tuple(row.latents.shape[1:])
        if row.cond is None:
            return Lane(self.name, "encode")
        if row.index < len(row.table):
            return Lane(self.name, "denoise", (*size, len(row.prompt.ids)))
        if row.pixels is None:
            return Lane(self.name, "vae", size)
        return None

    def cost(self, row: Row) -> float:
        if row.cond is None:
            return float(len(row.prompt.ids) * len(row.prompts))
        if row.index < len(row.table):
            return float(row.forward_rows)
        return 1.0

    def budget(self, lane: Lane) -> float:
        if lane.stage == "vae":
            height, width = lane.shape
            pixels = height * width * self._parts.factor**2
            return float(max(1, min(self._max_rows, _LARGEST_DECODE // pixels)))
        return float(self._max_rows)

    @torch.inference_mode()
    def step(self, lane: Lane, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        stages: dict[str, Callable[[Sequence[Row]], Sequence[Sequence[Event]]]] = {
            "encode": self._encode,
            "denoise": self._denoise,
            "vae": self._vae,
        }
        with memory_errors():
            return stages[lane.stage](rows)

    def _encode(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        """Encodes the prompts that are not remembered, each once however many rows ask for it."""
        wanted: dict[Hashable, tuple[Chunks, Chosen]] = {}
        for row in rows:
            for prompt in row.prompts:
                key = _embedding_key(prompt, row.adapters)
                if self._embeddings.get(key) is None:
                    wanted[key] = (prompt, row.adapters)
        if wanted:
            prompts = [prompt for prompt, _ in wanted.values()]
            # A forward row here is a chunk, and each has its prompt's adapters.
            chosen = [adapters for prompt, adapters in wanted.values() for _ in prompt.ids]
            with self._bank.applied(self._bank.select("text_encoder", chosen)):
                made = encode_chunks(self._parts.text_encoder, prompts, self._parts.device)
            for key, embedding in zip(wanted, made, strict=True):
                self._embeddings.put(key, embedding)
        for row in rows:
            self._recall(row)
        return [()] * len(rows)

    def _recall(self, row: Row) -> None:
        """Gives the row its embeddings when all of them are remembered."""
        found = [self._embeddings.get(_embedding_key(prompt, row.adapters)) for prompt in row.prompts]
        if all(embedding is not None for embedding in found):
            row.cond, row.uncond = found[0], found[1] if len(found) > 1 else None

    def _denoise(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        parts = self._parts
        if self._batch is None or self._batch.rows != tuple(rows):
            self._batch = build_batch(rows, self._bank, parts.guidance_width)
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
        return parts.compiled_unet if own_size and len(row.prompt.ids) == 1 else parts.unet

    def _told(self, row: Row, made: Stepped) -> list[Event]:
        told: list[Event] = [Progress(step=row.index + 1, total=len(row.table))]
        if self._wants_preview(row):
            data = encode_preview(made.x0, self._latent_to_rgb, self._parts.factor)
            told.append(Preview(data=data, media_type=PREVIEW_MEDIA_TYPE))
        return told

    @staticmethod
    def _wants_preview(row: Row) -> bool:
        step, total = row.index + 1, len(row.table)
        every = max(1, round(total / PREVIEWS_A_PICTURE))
        return row.job.stream and step % every == 0 and step < total

    def _vae(self, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        pictures = self._decode(torch.stack([row.latents for row in rows]))
        levels = ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        for row, picture in zip(rows, pixels, strict=True):
            row.pixels = picture
        return [()] * len(rows)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [n, C, h, w] to pictures [n, 3, H, W] in -1..1."""
        vae = self._parts.vae
        scaled = (latents / vae.config.scaling_factor).to(self._parts.device, self._parts.dtype)
        return vae.decode(scaled, return_dict=False)[0]

    # --- results --------------------------------------------------------------------------------------------

    def finish(self, row: Row) -> ImageResult:
        job = row.job
        if row.pixels is None:
            raise JobError(ErrorKind.INTERNAL, "The picture is not decoded yet.")
        parameters = parameters_of(job, self.name, row.width, row.height)
        data = encode_image(row.pixels, job.response_format, parameters)
        media_type = MEDIA_TYPES[job.response_format]
        return ImageResult(model=self.name, seed=job.seed, data=data, media_type=media_type)

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


def _embedding_key(prompt: Chunks, adapters: Chosen) -> Hashable:
    """Only adapters with a text encoder part change an embedding."""
    touching = [(adapter.key, weight) for adapter, weight in adapters if adapter.touches("text_encoder")]
    return (prompt, tuple(touching))


def load(spec: ModelSpec) -> StableDiffusion:
    """Loads the checkpoint in `spec.folder`. Raises `ValueError` for a configuration that is not built."""
    return StableDiffusion(spec, load_parts(spec))
