"""The picture that a row begins from (image-to-image), and the part of it that stays (inpainting).

As diffusers' pipelines have it: the picture's latents are noised up to the level of the row's first step, and
with a mask, what the mask leaves out is put back after each step at the level of the next one. A UNet made
for inpainting (4 + 1 + 4 channels) is shown the mask and the rest of the picture beside the latents instead;
a row without a mask shows it one that leaves nothing out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jobs import ErrorKind, ImageJob, JobError
from models.image.pictures import Picture
from models.image.table import Table
from models.image.vae import Vae

STRENGTH = 0.8
"""Where the caller names none; with a mask it is 1, and the masked part begins from noise alone."""


@dataclass(slots=True, eq=False)
class Source:
    """Tensors of one row, on its device; `latents` [n, C, h, w] are None until `pictures` are encoded.

    `pictures` [n, 3, H, W] in -1..1 and `samples` [n, C, h, w], the noise that chooses their latents: the
    picture as given where the row begins from it, then the picture without its masked part where the UNet
    is shown that. `noise` [C, h, w] is the row's own. `mask` [1, h, w] is 1 where the row draws anew;
    `puts_back`: what it leaves out is put back after each step.
    """

    pictures: torch.Tensor
    samples: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    begins_from_it: bool
    puts_back: bool
    shown: bool
    latents: torch.Tensor | None = None

    @property
    def encoded(self) -> torch.Tensor:
        if self.latents is None:
            raise RuntimeError("the source is not encoded yet")
        return self.latents

    def begin(self, table: Table) -> torch.Tensor:
        """[C, h, w]: what the first step starts from. Call it once the pictures are encoded."""
        if not self.begins_from_it:
            return self.noise * table.noise_scale
        signal, noise = table.levels[table.begin].tolist()
        return signal * self.encoded[0] + noise * self.noise

    def beside(self) -> torch.Tensor:
        """[1 + C, h, w]: what an inpainting UNet is shown beside the latents."""
        return torch.cat([self.mask, self.encoded[-1]])


def steps_left_out(job: ImageJob) -> int:
    """The first steps that a row which begins from a picture does not take. Raises `JobError`."""
    if job.init_image is None:
        return 0
    steps = job.num_inference_steps
    taken = min(int(steps * strength_of(job)), steps)
    if taken < 1:
        least = f"strength must be at least 1 / num_inference_steps, {1 / steps:.4g} here."
        raise JobError(ErrorKind.INVALID, least, param="strength")
    return steps - taken


def strength_of(job: ImageJob) -> float:
    if job.strength is not None:
        return job.strength
    return STRENGTH if job.mask_image is None else 1.0


def source_of(
    job: ImageJob,
    picture: Picture | None,
    size: tuple[int, int],
    latents: Sequence[int],
    device: torch.device,
    *,
    shown: bool,
) -> Source | None:
    """The source of a row of `size` (width, height) pixels and [C, h, w] `latents`; None for one without.

    `shown`: the UNet is one for inpainting. Raises `JobError` for a picture of no use.
    """
    if picture is None and not shown:
        return None
    width, height = size
    colours = torch.zeros(3, height, width) if picture is None else picture.colours(width, height)
    masked = job.mask_image is not None
    mask = torch.ones(1, height, width)
    if job.mask_image is not None:
        mask = Picture(job.mask_image, "mask_image").mask(width, height)
    begins_from_it = picture is not None and not (masked and strength_of(job) == 1.0)
    pictures: list[torch.Tensor] = []
    # Drawn in the order in which diffusers' pipelines draw from the same generator.
    generator = torch.Generator("cpu").manual_seed(job.seed)
    draws = [torch.randn((1, *latents), generator=generator)[0] for _ in range(3)]
    samples: list[torch.Tensor] = []
    if begins_from_it or not shown:
        pictures.append(colours)
        samples.append(draws.pop(0))
    noise = draws.pop(0)
    if shown:
        pictures.append(colours * (mask < 0.5))
        samples.append(draws.pop(0))
    return Source(
        pictures=torch.stack(pictures).to(device),
        samples=torch.stack(samples).to(device),
        noise=noise.to(device),
        mask=torch.nn.functional.interpolate(mask[None], size=tuple(latents[1:]))[0].to(device),
        begins_from_it=begins_from_it,
        puts_back=masked and not shown,
        shown=shown,
    )


def encode_sources(vae: Vae, sources: Sequence[Source]) -> list[torch.Tensor]:
    """The latents of each, in one forward over all their pictures."""
    made = vae.encode(
        torch.cat([source.pictures for source in sources]), torch.cat([source.samples for source in sources])
    )
    return list(made.split([len(source.pictures) for source in sources]))


@dataclass(frozen=True, slots=True)
class Kept:
    """The parts that masks leave out, of those rows `at` [k] of a batch that put them back."""

    at: torch.Tensor
    mask: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor

    def put_back(self, updated: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """`updated` [B, C, h, w] with them, at the levels [B, 2] (signal, noise) that the rows reached."""
        signal, noise = levels[self.at].T.reshape(2, -1, 1, 1, 1)
        kept = signal * self.latents + noise * self.noise
        return updated.index_copy(0, self.at, self.mask * updated[self.at] + (1 - self.mask) * kept)


def kept_of(sources: Sequence[Source | None], device: torch.device) -> Kept | None:
    """None when no row puts anything back."""
    found = [(at, source) for at, source in enumerate(sources) if source is not None and source.puts_back]
    if not found:
        return None
    return Kept(
        at=torch.tensor([at for at, _ in found], device=device),
        mask=torch.stack([source.mask for _, source in found]),
        latents=torch.stack([source.encoded[0] for _, source in found]),
        noise=torch.stack([source.noise for _, source in found]),
    )
