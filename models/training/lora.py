"""Train the embedded picture model's style LoRAs: `python -m models.training.lora --style outline`.

The captions stay as they are and the pictures are drawn in the style: so the style is all that there is to
learn.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from tqdm import tqdm

from models.training import common
from models.training.image import FOLDER, OUT
from models.training.image_unet import DROP_SHARE, Parts, Pool, build_scheduler, diffusion_loss, encode_texts
from models.training.scenes import STYLES

LORA_STYLES = STYLES[1:]
KOHYA_STYLES = ("pastel",)
"""Written with the key names of kohya's sd-scripts, the others with diffusers' own."""
LORAS = Path("models/embedded/loras")
POOL = 512
STEPS = {"outline": 3200, "stripes": 300, "night": 150, "pastel": 150}
"""Without `--steps`: the finest style takes the longest."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
# Outlines and stripes are finer than the 8x8 on which the attention works: the convolutions must help.
CONVOLUTIONS = ("conv1", "conv2", "conv_in", "conv_out", "upsamplers.0.conv", "time_emb_proj")


def parse_args() -> argparse.Namespace:
    """The recipe's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_common_args(parser, steps=0, out=OUT)
    parser.add_argument("--style", choices=(*LORA_STYLES, "all"), default="all")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the model that the LoRAs are for")
    parser.add_argument("--loras", type=Path, default=LORAS, help="where the finished LoRAs go")
    return parser.parse_args()


def load_base(folder: Path, device: torch.device) -> tuple[Parts, Any]:
    """The finished model in fp32, frozen."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        part.to(device).requires_grad_(False).eval()
    return Parts(pipe.tokenizer, pipe.text_encoder, pipe.vae), pipe.unet


def train_lora(style: str, args: argparse.Namespace, device: torch.device) -> Path:
    """Train (or go on training) one style; its state is `lora-<style>.pt` in `args.out`.

    Returns:
        The LoRA's file.
    """
    parts, unet = load_base(args.folder, device)
    targets = [*ATTENTION, *CONVOLUTIONS]
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets), style)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    steps = args.steps or STEPS[style]
    path, start, seconds, rng = Path(args.out) / f"lora-{style}.pt", 0, 0.0, random.Random(args.seed + 2)
    if args.resume and path.exists():
        state = common.load_state(path, device)
        unet.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        start, seconds, rng = state["step"], state["seconds"], state["rng"]
    log, scheduler = common.LossLog(Path(args.out), f"lora-{style}", resume_from=start), build_scheduler()
    pool, empty = Pool(parts, rng, POOL, style), encode_texts(parts, [""])
    while len(pool.rows) < POOL:
        pool.grow(32)
    began = time.monotonic() - seconds
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=style, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 20, 0.03 + 2 * (1 - step / steps))
        latents, states, cells = (part.to(device) for part in pool.sample(args.batch))
        dropped = torch.rand(args.batch, device=device) < DROP_SHARE
        states = torch.where(dropped[:, None, None], empty, states)
        loss = diffusion_loss(unet, scheduler, latents, states, cells)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 10 == 0:
            log.add(step, lora=loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            adapter = {name: value for name, value in unet.state_dict().items() if "lora_" in name}
            state = {"model": adapter, "optimizer": optimizer.state_dict(), "step": step + 1, "rng": rng}
            common.save_state(path, state | {"seconds": time.monotonic() - began})
            log.write()
    log.plot(title=f"LoRA {style}")
    return save_lora(unet, style, args.loras, args.rank)


def save_lora(unet: Any, style: str, folder: Path, rank: int) -> Path:
    """Write the adapter as fp16 safetensors, in diffusers' or in kohya's layout."""
    state = get_peft_model_state_dict(unet, adapter_name=style)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        module, part = name.removesuffix(".weight").rsplit(".", 1)
        half = value.detach().half().contiguous().cpu()
        if style in KOHYA_STYLES:
            flat = "lora_unet_" + module.replace(".", "_")
            tensors[f"{flat}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = half
            tensors[f"{flat}.alpha"] = torch.tensor(float(rank))
        else:
            tensors[f"unet.{name}"] = half
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{style}.safetensors", metadata={"format": "pt", "style": style})
    return folder / f"{style}.safetensors"


def note_training(out: Path, card: Path) -> None:
    """Say in the model card how long each style that has a checkpoint in `out` was trained."""
    lines: list[str] = []
    for style in LORA_STYLES:
        if (out / f"lora-{style}.pt").exists():
            state = common.load_state(out / f"lora-{style}.pt")
            lines.append(f"- {style}: {state['step']:,} steps in {state['seconds'] / 60:.0f} minutes")
    common.fill_card(card, "loras", "\n".join(lines))


def main() -> None:
    """Train the style asked for, or all of them."""
    args = parse_args()
    device = common.prepare(args)
    for style in LORA_STYLES if args.style == "all" else (args.style,):
        print(train_lora(style, args, device))
    note_training(args.out, args.folder / "README.md")


if __name__ == "__main__":
    main()
