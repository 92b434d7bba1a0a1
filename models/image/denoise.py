"""One denoising step of many rows in one UNet forward, each with its sampler, step, guidance and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.image.row import Row
from models.image.source import Kept, kept_of
from models.image.table import Column
from models.image.text_encoder import Embedding
from models.lora.bank import LoraBank, Selection


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step made of one row: nothing is written to the row itself, so a step may be repeated."""

    latents: torch.Tensor
    history: torch.Tensor | None
    x0: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What stays the same while the same rows step together.

    `gather` [F] names the row that each forward row belongs to: every row once with its prompt, then the
    guided ones again with their negative prompt, then row 0 as padding. `added` is what SDXL's UNet is told
    beside the prompts, `beside` [F, 1 + C, h, w] what an inpainting one sees beside the latents.
    """

    rows: tuple[Row, ...]
    gather: torch.Tensor
    embeddings: torch.Tensor
    guided: torch.Tensor
    guidance: torch.Tensor
    timestep_cond: torch.Tensor | None
    added: dict[str, torch.Tensor] | None
    beside: torch.Tensor | None
    kept: Kept | None
    selection: Selection


def bucket_of(rows: int, device: torch.device) -> int:
    """How many forward rows a step of `rows` is padded to.

    On a GPU 2, 4, 8, 16, 32 ..., so that few shapes are compiled. A CPU compiles none and its time goes with
    the rows, so it pads nothing: a lone row's forward differs from a fuller one's in the last bits, which is
    at most 1 of 255 in a picture (measured over 30 steps of each sampler; docs/decisions/0006).
    """
    return rows if device.type == "cpu" else max(2, 1 << (rows - 1).bit_length())


def build_batch(
    rows: Sequence[Row], bank: LoraBank, guidance_width: int | None, *, told_sizes: bool = False
) -> Batch:
    """`guidance_width`: the width of the guidance embedding a distilled UNet takes instead of two halves.

    `told_sizes`: the UNet is told the picture's size and the pooled prompt (SDXL, arXiv 2307.01952, 2.2).
    """
    device = rows[0].latents.device
    guided = [i for i, row in enumerate(rows) if row.uncond is not None]
    gather = [*range(len(rows)), *guided]
    gather += [0] * (bucket_of(len(gather), device) - len(gather))
    embeddings = [row.cond for row in rows] + [rows[i].uncond for i in guided]
    embeddings += [rows[0].cond] * (len(gather) - len(embeddings))
    encoded = [embedding for embedding in embeddings if embedding is not None]
    scales = torch.tensor([row.guidance_scale for row in rows], dtype=torch.float32)
    timestep_cond = None
    if guidance_width is not None:
        timestep_cond = guidance_embedding(scales, guidance_width)[gather].to(device)
    sources = [row.source for row in rows]
    shown = [source.beside() for source in sources if source is not None and source.shown]
    return Batch(
        rows=tuple(rows),
        gather=torch.tensor(gather, device=device),
        embeddings=torch.stack([embedding.hidden for embedding in encoded]),
        guided=torch.tensor(guided, dtype=torch.int64, device=device),
        guidance=scales[guided].reshape(-1, 1, 1, 1).to(device),
        timestep_cond=timestep_cond,
        added=_sizes_told(encoded, rows[0]) if told_sizes else None,
        beside=torch.stack(shown)[gather] if shown else None,
        kept=kept_of(sources, device),
        selection=bank.select("unet", [rows[i].adapters for i in gather]),
    )


def _sizes_told(encoded: Sequence[Embedding], row: Row) -> dict[str, torch.Tensor]:
    """Rows of one batch have one size: drawn at it, cropped nowhere, meant for it."""
    pooled = torch.stack([embedding.pooled for embedding in encoded if embedding.pooled is not None])
    sizes = torch.tensor([row.height, row.width, 0, 0, row.height, row.width]).to(pooled)
    return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


def denoise(unet: Any, batch: Batch, dtype: torch.dtype) -> list[Stepped]:
    """Advances every row of `batch` by one step of its own table; the update is made in float32.

    The adapters of `batch.selection` are not applied here: the caller wraps this in `LoraBank.applied`.
    """
    rows = batch.rows
    latents = torch.stack([row.latents for row in rows])
    table = np.stack([row.table.steps[row.index] for row in rows])
    steps = torch.from_numpy(table).to(latents.device)
    column = steps.T.reshape(len(Column), -1, 1, 1, 1)
    seen = (latents * column[Column.SCALE])[batch.gather]
    if batch.beside is not None:
        seen = torch.cat([seen, batch.beside], dim=1)
    predicted = unet(
        seen.to(dtype),
        steps[batch.gather, Column.TIMESTEP],
        encoder_hidden_states=batch.embeddings,
        timestep_cond=batch.timestep_cond,
        added_cond_kwargs=batch.added,
        return_dict=False,
    )[0].float()
    model = predicted[: len(rows)]
    if len(batch.guided):
        uncond = predicted[len(rows) : len(rows) + len(batch.guided)]
        model = model.index_copy(0, batch.guided, uncond + batch.guidance * (model[batch.guided] - uncond))
    x0 = column[Column.P] * latents + column[Column.Q] * model
    updated = column[Column.A] * latents + column[Column.B] * model
    if table[:, Column.C].any():
        past = [torch.zeros_like(row.latents) if row.history is None else row.history for row in rows]
        updated = updated + column[Column.C] * torch.stack(past)
    if table[:, Column.D].any():
        updated = updated + column[Column.D] * _noises(rows, table[:, Column.D]).to(latents.device)
    if batch.kept is not None:
        reached = torch.from_numpy(np.stack([row.table.levels[row.index + 1] for row in rows]))
        updated = batch.kept.put_back(updated, reached.to(latents.device))
    return [
        Stepped(latents=updated[i], history=x0[i] if row.table.uses_history else None, x0=x0[i])
        for i, row in enumerate(rows)
    ]


def _noises(rows: Sequence[Row], amounts: NDArray[np.float32]) -> torch.Tensor:
    """[B, C, h, w], drawn only for the rows whose step adds any."""
    noises = torch.zeros((len(rows), *rows[0].latents.shape))
    for i, (row, amount) in enumerate(zip(rows, amounts, strict=True)):
        if amount:
            noises[i] = step_noise(row.job.seed, row.index, row.latents.shape)
    return noises


def initial_noise(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """The noise a picture starts from, [C, h, w] float32 on the CPU: what diffusers draws for that seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]


def step_noise(seed: int, index: int, shape: Sequence[int]) -> torch.Tensor:
    """The noise a step adds: a function of seed and step alone, so a repeated step is the same step."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def guidance_embedding(scales: torch.Tensor, width: int) -> torch.Tensor:
    """[n, width] for scales [n], as diffusers' `get_guidance_scale_embedding` (arXiv 2210.03142)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(np.log(10000.0) / (half - 1)))
    angles = (scales - 1)[:, None] * 1000.0 * frequencies[None, :]
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
