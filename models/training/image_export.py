"""The recipe's checkpoints as a folder in the hub's layout, and as the frozen parts of a later stage."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPTokenizer

from models.training import common, scenes
from models.training.image_text import build_text_encoder
from models.training.image_unet import Parts, build_scheduler, build_unet
from models.training.image_vae import build_vae, to_tensor

_SCALE_SCENES = 64


def load_parts(out: Path, device: torch.device) -> Parts:
    """The trained text encoder and autoencoder, frozen; the latent scale is measured on the spot.

    Raises:
        FileNotFoundError: one of the two was not trained yet.
    """
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    encoder: Any = build_text_encoder(tokenizer)
    vae = build_vae()
    text = common.load_state(out / "text.pt", device)["model"]
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in text.items() if k.startswith("encoder.")}
    )
    vae.load_state_dict(common.load_state(out / "vae.pt", device)["model"])
    for part in (encoder, vae):
        part.to(device).requires_grad_(False).eval()
    rng = random.Random(0)
    pictures = np.stack([scenes.draw(scenes.sample_scene(rng)) for _ in range(_SCALE_SCENES)])
    with torch.no_grad():
        latents = vae.encode(to_tensor(pictures).to(device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    return Parts(tokenizer, encoder, vae)


def load_pipeline(out: Path, device: torch.device, *, averaged: bool = True) -> Any:
    """The pipeline as trained so far, with the UNet's moving average or its last weights."""
    parts = load_parts(out, device)
    unet = build_unet()
    state = common.load_state(out / "unet.pt", device)
    unet.load_state_dict(state["average"]["average"] if averaged else state["model"])
    make: Any = StableDiffusionPipeline
    return make(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=unet.to(device).eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(out: Path, folder: Path) -> None:
    """Write the pipeline to `folder` as fp16 safetensors, in the hub's layout, with what its card says of
    training."""
    pipe = load_pipeline(out, torch.device("cpu"))
    pipe.unet.half()
    pipe.vae.half()
    # The text encoder stays fp32: asked for no precision, transformers takes that of the file and diffusers
    # fp32, and the two would not fit together.
    pipe.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):  # for tools that read CLIP's older tokenizer format
        shutil.copy(out / "tokenizer" / name, folder / "tokenizer" / name)
    log = common.LossLog(out, "unet", resume_from=10**9)
    log.plot(folder / "loss.png", title="UNet: error of v")
    lines: list[str] = []
    for stage, name in (("text encoder", "text"), ("autoencoder", "vae"), ("UNet", "unet")):
        state = common.load_state(out / f"{name}.pt")
        lines.append(f"- {stage}: {state['step']:,} steps in {state['seconds'] / 60:.0f} minutes")
    common.fill_card(folder / "README.md", "training", "\n".join(lines))
