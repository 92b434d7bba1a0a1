"""Train the embedded picture model: `python -m models.training.image`.

Four stages, each resumable and each with its own checkpoint in `--out`: text encoder, autoencoder, UNet,
export.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.training import common
from models.training.image_export import export, load_parts
from models.training.image_text import train_text
from models.training.image_unet import train_unet
from models.training.image_vae import train_vae

FOLDER = Path("models/embedded/tiny-sd")
OUT = "var/train/image"


def parse_args() -> argparse.Namespace:
    """The recipe's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_common_args(parser, steps=12400, out=OUT)
    parser.add_argument("--stage", choices=("all", "text", "vae", "unet", "export"), default="all")
    parser.add_argument("--batch", type=int, default=32, help="rows of a UNet step")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="the UNet's highest learning rate")
    parser.add_argument("--text-steps", type=int, default=1400)
    parser.add_argument("--text-batch", type=int, default=32)
    parser.add_argument("--text-lr", type=float, default=1.5e-3)
    parser.add_argument("--vae-steps", type=int, default=9000)
    parser.add_argument(
        "--vae-encoder-steps", type=int, default=6000, help="the encoder is final after these"
    )
    parser.add_argument("--vae-batch", type=int, default=10)
    parser.add_argument("--vae-lr", type=float, default=1.3e-3)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the finished model goes")
    return parser.parse_args()


def main() -> None:
    """Run the stages asked for."""
    args = parse_args()
    device = common.prepare(args)
    if args.stage in ("all", "text"):
        train_text(args, device)
    if args.stage in ("all", "vae"):
        train_vae(args, device)
    if args.stage in ("all", "unet"):
        train_unet(args, load_parts(args.out, device), device)
    if args.stage in ("all", "export"):
        export(args.out, args.folder)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
