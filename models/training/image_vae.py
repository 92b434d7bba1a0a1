"""The autoencoder: 128x128 pictures to 16x16x4 latents and back, with crisp edges.

Two things make it quick on a CPU. It sees 64x64 crops, each around an edge. And its first three latent
channels are at first pulled towards the colours of the 8x8 cells, so that the latents are laid out as a small
picture: easier for the UNet to draw, and the fourth channel is free for what a mean colour does not tell.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from models.training import common, scenes

LATENT_CHANNELS = 8
"""With the usual four a small star looks like a small triangle: three channels hold the mean colours."""
CROPS = (48, 64)
"""Sides of the crops: two steps in three see the smaller ones, in which a small object just fits."""
_STEADY, _FAINT = 6.0, 0.1
LATENT_NOISE, DECODER_NOISE = 0.04, 0.2
"""Standard deviation of the noise on the latents (about 0.7 themselves) while the encoder learns, and the
highest after: it makes the decoder forgiving of what the UNet gets slightly wrong."""
STYLE_WEIGHTS = (6, 4, 3, 1, 1)
"""How often the autoencoder sees each of `scenes.STYLES`: the LoRAs need it to know them all."""


def build_vae() -> Any:
    """The untrained autoencoder, about 0.8M parameters.

    One group in all norms: with a few channels a group, a norm takes the colour out of a flat picture.
    """
    # Any, here and below: the types that diffusers declares are not those that it takes and gives.
    make: Any = AutoencoderKL
    vae = make(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 24, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=scenes.SIDE,
        mid_block_add_attention=False,
    )
    start_as_thumbnail(vae)
    return vae


@torch.no_grad()
def start_as_thumbnail(vae: Any) -> None:
    """Set the weights so that the latents are the picture shrunk to cells of 8x8 and decoding is bilinear.

    What is left to learn are the details, in the residual branches, which start at nothing. Colours go
    through the network as channels +c and -c: silu(c) - silu(-c) = c, so the last activation does them no
    harm, and a large constant in two channels keeps the last norm from changing their scale.
    """
    for name, module in vae.named_modules():
        if isinstance(module, ResnetBlock2D):
            last: Any = module.conv2
            last.weight.zero_()
            last.bias.zero_()
            if isinstance(module.conv_shortcut, torch.nn.Conv2d):
                _pass_on(module.conv_shortcut, kernel=torch.ones(1, 1))
        elif isinstance(module, torch.nn.Conv2d) and "upsamplers" in name:
            _pass_on(module, kernel=_outer(torch.tensor([0.25, 0.5, 0.25])))
        elif isinstance(module, torch.nn.Conv2d) and "downsamplers" in name:
            _pass_on(module, kernel=_outer(torch.tensor([0.5, 0.5, 0.0])))
    middle = _outer(torch.tensor([0.0, 1.0, 0.0]))
    signs = torch.tensor([[1.0], [-1.0]])
    both = (signs[:, :, None] * torch.eye(3)).reshape(6, 3)  # +r, +g, +b, -r, -g, -b
    for conv, norm in (
        (vae.encoder.conv_in, vae.encoder.conv_norm_out),
        (vae.decoder.conv_in, vae.decoder.conv_norm_out),
    ):
        conv.weight.mul_(_FAINT)
        conv.bias.zero_()
        conv.weight[:8] = 0
        conv.bias[:8] = torch.tensor([0.0] * 6 + [_STEADY, -_STEADY])
        conv.weight[:6, :3] = both[:, :, None, None] * middle
        width = norm.num_channels
        norm.weight.fill_(_STEADY * math.sqrt(2 / width))
    vae.encoder.conv_out.weight[:3] = 0
    # The free channels must be louder than the noise to be found useful.
    vae.encoder.conv_out.weight[3:LATENT_CHANNELS] *= 5
    vae.encoder.conv_out.weight[:3, :6] = both.T[:, :, None, None] * middle
    vae.decoder.conv_out.weight.zero_()
    vae.decoder.conv_out.weight[:, :6] = both.T[:, :, None, None] * middle
    for conv in (vae.encoder.conv_out, vae.decoder.conv_out, vae.quant_conv, vae.post_quant_conv):
        conv.bias.zero_()
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENT_CHANNELS)[:, :, None, None])
    vae.post_quant_conv.weight.copy_(torch.eye(LATENT_CHANNELS)[:, :, None, None])
    # The posterior's spread is fixed: the decoder is trained with noise of LATENT_NOISE, and no more is
    # learnt.
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias[LATENT_CHANNELS:] = 2 * math.log(LATENT_NOISE)


def _outer(line: torch.Tensor) -> torch.Tensor:
    return line[:, None] * line[None, :]


def _pass_on(conv: Any, kernel: torch.Tensor) -> None:
    """Make the first eight channels go through `kernel` unmixed; the others stay random and become faint."""
    conv.weight.mul_(_FAINT)
    conv.weight[:8] = 0
    conv.bias.zero_()
    for channel in range(8):
        conv.weight[channel, channel] = kernel


def to_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(n, h, w, 3) bytes to (n, 3, h, w) floats in -1 to 1."""
    # The permuted view is channels_last already, in which the convolutions are quickest.
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def sample_crops(rng: random.Random, count: int, crop: int) -> torch.Tensor:
    """Crops of freshly drawn scenes, each around an object: (count, 3, crop, crop)."""
    crops: list[NDArray[np.uint8]] = []
    for _ in range(count):
        scene = scenes.sample_scene(rng)
        picture = scenes.draw(scene, style=rng.choices(scenes.STYLES, STYLE_WEIGHTS)[0])
        thing = rng.choice(scene.things)
        corner = [
            # Multiples of 8 keep the stripes where they lie on the latent grid of a whole picture.
            min(max(int(c * scenes.SIDE + rng.uniform(-0.7, -0.3) * crop) // 8 * 8, 0), scenes.SIDE - crop)
            for c in (thing.x, thing.y)
        ]
        crops.append(picture[corner[1] : corner[1] + crop, corner[0] : corner[0] + crop])
    return to_tensor(np.stack(crops))


def sample_batch(rng: random.Random, step: int, done: float, batch: int) -> torch.Tensor:
    """The pictures of one step of about the same cost each; `done` is the share of the training behind it."""
    if done > 0.9:
        # Whole pictures at the end, because group norm's statistics are those of the whole picture.
        return sample_crops(rng, max(2, batch // 5), scenes.SIDE)
    if step % 3 == 0:
        return sample_crops(rng, max(2, batch * 3 // 5), CROPS[1])
    return sample_crops(rng, batch, CROPS[0])


def likely_errors(latents: torch.Tensor) -> torch.Tensor:
    """Noise like the UNet's own errors: as strong as it happens, and half of it in spots of a few cells."""
    strength = DECODER_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    spots = functional.avg_pool2d(torch.randn_like(latents), 3, stride=1, padding=1) * 3
    return strength * 0.7 * (torch.randn_like(latents) + spots)


@torch.no_grad()
def level_channels(vae: Any, pictures: torch.Tensor) -> None:
    """Give all latent channels one spread, so that noise drowns none first; decoding stays the same."""
    spread = vae.encode(pictures).latent_dist.mean.std((0, 2, 3))
    scale = spread[:3].mean() / spread
    vae.quant_conv.weight[:LATENT_CHANNELS] *= scale[:, None, None, None]
    vae.quant_conv.bias[:LATENT_CHANNELS] *= scale
    vae.post_quant_conv.weight.div_(scale[None, :, None, None])


def contrast_weights(true: torch.Tensor) -> torch.Tensor:
    """Factors, (n, 1, 1, 1), that make a pale star on white count as much as a black one."""
    spread = true.var((2, 3)).mean(1).sqrt()
    return (0.35 / (spread + 0.03)).clamp(0.6, 5.0)[:, None, None, None]


def reconstruction_loss(made: torch.Tensor, true: torch.Tensor, edges: float) -> torch.Tensor:
    """L1 and squared error of the pixels, and `edges` times the L1 of their differences to the neighbours.

    The differences, at two scales, are what makes edges crisp. They come in late: as long as edges are
    misplaced, a flat grey picture has fewer wrong differences than a rough one.
    """
    loss = functional.l1_loss(made, true) + functional.mse_loss(made, true)
    for scale in (1, 2):
        a, b = (functional.avg_pool2d(x, scale) if scale > 1 else x for x in (made, true))
        for dim in (-1, -2):
            loss = loss + 0.5 * edges * functional.l1_loss(a.diff(dim=dim), b.diff(dim=dim))
    return loss


def train_vae(args: argparse.Namespace, device: torch.device) -> Any:
    """Train (or go on training) the autoencoder; its state is `vae.pt` in `args.out`."""
    vae = build_vae().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), args.vae_lr, betas=(0.9, 0.98), weight_decay=1e-4)
    path, start, seconds = Path(args.out) / "vae.pt", 0, 0.0
    rng = random.Random(args.seed)
    if args.resume and path.exists():
        state = common.load_state(path, device)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds, rng = state["step"], state["seconds"], state["rng"]
    log = common.LossLog(Path(args.out), "vae", resume_from=start)
    began = time.monotonic() - seconds
    bar = tqdm(range(start, args.vae_steps), initial=start, total=args.vae_steps, desc="vae", mininterval=5)
    for step in bar:
        done = step / args.vae_steps
        rate = args.vae_lr * min(1.0, (step + 1) / 50) * (1 - done) + 2e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step == args.vae_encoder_steps:
            level_channels(vae, sample_crops(random.Random(args.seed), 64, scenes.SIDE).to(device))
        learns = step < args.vae_encoder_steps
        # From there on only the decoder learns: the latents are final, the UNet can start.
        vae.encoder.requires_grad_(learns)
        vae.quant_conv.requires_grad_(learns)
        true = sample_batch(rng, step, done, args.vae_batch).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encode(true).latent_dist.mean.float()
            noise = LATENT_NOISE * torch.randn_like(mean) if learns else likely_errors(mean)
            made = vae.decode(mean + noise).sample.float()
        layout = functional.mse_loss(mean[:, :3], functional.avg_pool2d(true, 8))
        weights = contrast_weights(true)
        rebuilt = reconstruction_loss(made * weights, true * weights, edges=min(1.0, 0.2 + 2 * done))
        # The layout loss after the encoder's last step is a constant: it does no harm.
        loss = rebuilt + 0.03 * layout
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            log.add(step, autoencoder=rebuilt.item(), layout=layout.item())
            bar.set_postfix(loss=f"{rebuilt.item():.4f}", layout=f"{layout.item():.4f}")
        if (step + 1) % 100 == 0 or step + 1 == args.vae_steps:
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            common.save_state(path, state | {"seconds": time.monotonic() - began, "rng": rng})
            log.write()
    log.plot(title="autoencoder")
    return vae.eval()
