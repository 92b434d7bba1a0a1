"""The UNet: latents and caption states to v, on 16x16 latents.

Text encoder and autoencoder are frozen here, so both their outputs are kept in a pool that is renewed bit by
bit while the UNet trains. v-prediction, because the picture is nearly decided by its caption: at high noise,
where the caption is all there is, v is the picture itself, and its error counts in full.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from models.training import common, scenes
from models.training.image_text import sample_caption, tokenize
from models.training.image_vae import LATENT_CHANNELS, to_tensor

DROP_SHARE = 0.1
"""Share of captions replaced by the empty one, for guidance."""
WEIGHT_CAP = 6.0
OBJECT_WEIGHT = 4.0
"""Weight of a cell that an object reaches into, against 1 elsewhere: a small one fills 16 of 256 cells."""
POOL_START, POOL_SIZE, POOL_NEW = 768, 16384, 4


@dataclass
class Parts:
    """The frozen parts beside the UNet."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: Any


def build_unet() -> Any:
    """The untrained UNet, about 6M parameters, most of them where the picture is 8x8 and 4x4."""
    # Any, here and below: the types that diffusers declares are not those that it takes and gives.
    make: Any = UNet2DConditionModel
    unet = make(
        sample_size=scenes.SIDE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    with torch.no_grad():
        # Every branch starts at nothing: the first steps then train a shallow network.
        for module in unet.modules():
            last: Any = None
            if isinstance(module, ResnetBlock2D):
                last = module.conv2
            elif isinstance(module, Transformer2DModel):
                last = module.proj_out
            if last is not None:
                last.weight.zero_()
                last.bias.zero_()
        unet.conv_out.weight.zero_()
    return unet


def build_scheduler() -> Any:
    """Stable Diffusion's own noise schedule, with v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
    )


@torch.no_grad()
def encode_texts(parts: Parts, texts: Sequence[str]) -> torch.Tensor:
    """States of the text encoder, (n, 77, 128)."""
    device = parts.text_encoder.device
    return parts.text_encoder(tokenize(parts.tokenizer, texts).to(device)).last_hidden_state


@torch.no_grad()
def encode_pictures(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Scaled latents, (n, 8, 16, 16)."""
    return vae.encode(pictures.to(vae.device)).latent_dist.mean * vae.config.scaling_factor


def object_weights(pictures: torch.Tensor) -> torch.Tensor:
    """How much the error of each cell counts, (n, 16, 16), 1 on average in each picture.

    No object reaches into a corner, so what is unlike the corner is an object.
    """
    unlike = (pictures != pictures[:, :, :1, :1]).any(1, keepdim=True).float()
    weights = 1 + (OBJECT_WEIGHT - 1) * functional.max_pool2d(unlike, 8)[:, 0]
    return weights / weights.mean((1, 2), keepdim=True)


class Pool:
    """Latents, caption states and cells' weights of scenes in one style, made a few at a time, the oldest
    forgotten."""

    def __init__(self, parts: Parts, rng: random.Random, size: int = POOL_SIZE, style: str = "plain") -> None:
        self.parts, self.rng, self.size, self.style = parts, rng, size, style
        self.rows: list[tuple[torch.Tensor, ...]] = []
        self.next = 0

    def grow(self, count: int) -> None:
        """Add `count` fresh scenes."""
        captions = [sample_caption(self.rng) for _ in range(count)]
        pictures = to_tensor(np.stack([scenes.draw(caption.scene, style=self.style) for caption in captions]))
        latents = encode_pictures(self.parts.vae, pictures).half()
        states = encode_texts(self.parts, [caption.text for caption in captions]).half()
        for row in zip(latents, states, object_weights(pictures).half(), strict=True):
            if len(self.rows) < self.size:
                self.rows.append(row)
            else:
                self.rows[self.next] = row
                self.next = (self.next + 1) % self.size

    def sample(self, count: int) -> tuple[torch.Tensor, ...]:
        """Latents (n, 8, 16, 16), states (n, 77, 128) and weights (n, 16, 16) of scenes drawn by lot."""
        chosen = [self.rows[self.rng.randrange(len(self.rows))] for _ in range(count)]
        return tuple(torch.stack(part).float() for part in zip(*chosen, strict=True))


def diffusion_loss(
    unet: torch.nn.Module,
    scheduler: Any,
    latents: torch.Tensor,
    states: torch.Tensor,
    cells: torch.Tensor,
) -> torch.Tensor:
    """Squared error of v at noise levels drawn with a lean to the high ones, where the caption decides.

    In terms of the picture's own error the weight of v's is 1 + signal/noise (Salimans and Ho,
    arXiv:2202.00512); it is capped, like min-SNR (arXiv:2303.09556), for the last bits of noise do not
    matter.
    """
    count, device = len(latents), latents.device
    times = (1000 * torch.rand(count, device=device) ** 0.6).long().clamp(max=999)
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, times)
    target = scheduler.get_velocity(latents, noise, times)
    made = unet(noisy, times, encoder_hidden_states=states).sample
    kept = scheduler.alphas_cumprod.to(device)[times]
    total = 1 / (1 - kept)  # 1 + signal/noise
    weight = total.clamp(max=WEIGHT_CAP) / total
    error = functional.mse_loss(made, target, reduction="none").mean(1) * cells
    return (weight * error.mean((1, 2))).mean()


def train_unet(args: argparse.Namespace, parts: Parts, device: torch.device) -> Any:
    """Train (or go on training) the UNet; its state is `unet.pt` in `args.out`.

    Returns:
        The moving average of its weights.
    """
    unet = build_unet().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    average, rng = common.Ema(unet, 0.997), random.Random(args.seed + 1)
    path, start, seconds = Path(args.out) / "unet.pt", 0, 0.0
    if args.resume and path.exists():
        state = common.load_state(path, device)
        unet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        start, seconds, rng = state["step"], state["seconds"], state["rng"]
    log, scheduler = common.LossLog(Path(args.out), "unet", resume_from=start), build_scheduler()
    rank, world = common.processes()
    if world > 1:
        rng = random.Random(args.seed + 1000 * (rank + 1) + start)
        common.set_seed(args.seed + 1000 * (rank + 1) + start)
    pool, empty = Pool(parts, rng), encode_texts(parts, [""])
    for _ in tqdm(range(POOL_START // 32), desc="first scenes", mininterval=5):
        pool.grow(32)
    began = time.monotonic() - seconds
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="unet", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 100, 0.03 + 2.5 * (1 - step / args.steps))
        pool.grow(POOL_NEW)
        latents, states, cells = (part.to(device) for part in pool.sample(args.batch))
        dropped = torch.rand(args.batch, device=device) < DROP_SHARE
        states = torch.where(dropped[:, None, None], empty, states)
        loss = diffusion_loss(unet, scheduler, latents.to(memory_format=torch.channels_last), states, cells)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            common.share_gradients(unet)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet)
        if rank > 0:
            continue
        if step % 10 == 0:
            log.add(step, unet=loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            state = {"model": unet.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            state |= {"average": average.state_dict(), "seconds": time.monotonic() - began, "rng": rng}
            common.save_state(path, state)
            log.write()
    if rank == 0:
        log.plot(title="UNet")
    average.copy_to(unet)
    return unet.eval()
