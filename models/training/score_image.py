"""Score the embedded picture model on held-out prompts: `python -m models.training.score_image`.

Every prompt's combination of colour, shape and background was kept from training; the prompts are drawn with
a fresh seed. The judge (`judge_image`) reads the pixels and has learnt nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.training import judge_image, scenes
from models.training.common import fill_card
from models.training.image_captions import Caption, full_caption
from models.training.judge_image import Picture
from models.training.scenes import sample_scene

EMBEDDED = Path(__file__).parents[1] / "embedded" / "tiny-sd"
LORAS = Path(__file__).parents[1] / "embedded" / "loras"
STEPS, GUIDANCE = 20, 2.0
WEIGHTS = (0.0, 0.5, 1.0)
ATTRIBUTES = ("colour", "shape", "size", "position")
Shares = dict[str, float]


class Painter:
    """The shipped model, loaded as anyone would load it."""

    def __init__(self, folder: Path) -> None:
        # Any: the stubs of diffusers give a pipeline's call many types at once.
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self.pipe.set_progress_bar_config(disable=True)

    def paint(self, prompts: Sequence[str], *, steps: int = STEPS, batch: int = 20) -> list[Picture]:
        """One picture a prompt, (128, 128, 3); the seed is the prompt's place in the list."""
        pictures: list[Picture] = []
        for start in range(0, len(prompts), batch):
            some = list(prompts[start : start + batch])
            seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
            made: NDArray[np.float32] = self.pipe(
                some, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=seeds, output_type="np"
            ).images
            pictures += list((made * 255).round().astype(np.uint8))
        return pictures


def sample_prompts(rng: random.Random, count: int, things: int, *, small: bool = True) -> list[Caption]:
    """Held-out captions of scenes with so many objects; `small` lets small objects in."""
    captions: list[Caption] = []
    while len(captions) < count:
        scene = sample_scene(rng, things=things, held_out=True)
        if small or all(thing.size != "small" for thing in scene.things):
            captions.append(full_caption(rng, scene))
    return captions


def score_scenes(captions: Sequence[Caption], pictures: Sequence[Picture], style: str = "plain") -> Shares:
    """Shares of objects with each attribute right; of pictures with the background and with everything
    right."""
    right = dict.fromkeys((*ATTRIBUTES, "background", "all objects", "picture"), 0)
    objects = 0
    for caption, picture in zip(captions, pictures, strict=True):
        verdict = judge_image.look(picture, style)
        ground = verdict.background == caption.scene.background
        # As many objects as asked for, and on each of them everything right.
        whole = len(verdict.things) == len(caption.scene.things)
        for thing, seen in zip(caption.scene.things, judge_image.match(caption.scene, verdict), strict=True):
            objects += 1
            for attribute in ATTRIBUTES:
                good = seen is not None and getattr(seen, attribute) == getattr(thing, attribute)
                right[attribute] += good
                whole &= good
        right["background"] += ground
        right["all objects"] += whole
        right["picture"] += whole and ground
    return {name: n / (objects if name in ATTRIBUTES else len(pictures)) for name, n in right.items()}


def style_measure(style: str) -> Callable[[Picture, Picture], float]:
    """The plain measurement that tells a style; it takes the picture and the same one without the LoRA."""

    def filled(picture: Picture, plain: Picture) -> float:
        return _mean([judge_image.filled_share(picture, mask) for mask in judge_image.pieces(plain)])

    def striped(picture: Picture, plain: Picture) -> float:
        return _mean([judge_image.stripedness(picture, mask) for mask in judge_image.pieces(plain)])

    def light(picture: Picture, _plain: Picture) -> float:
        return judge_image.brightness(picture)

    return {"outline": filled, "stripes": striped}.get(style, light)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def is_on(style: str, on: float, off: float) -> bool:
    """Whether two measurements of one prompt and seed, with the LoRA and without, are told apart.

    The thresholds stand in the middle of what drawn scenes of the two styles measure: outlines fill less than
    0.8 of what is filled without, stripes have 0.2 more at their period, night has less than 0.7 of the
    light, pastel less than 0.75 of the darkness.
    """
    if style == "outline":
        return on < 0.8 * off
    if style == "stripes":
        return on > off + 0.2
    if style == "night":
        return on < 0.7 * off
    return 255 - on < 0.75 * (255 - off)


def score_lora(
    painter: Painter, file: Path, captions: Sequence[Caption], plain: Sequence[Picture]
) -> dict[str, Any]:
    """A LoRA's mean measure at each of `WEIGHTS`, how often on and off are told apart, and the colours with
    it on; `plain` are the captions' pictures without it."""
    style, prompts = file.stem, [caption.text for caption in captions]
    painter.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=style)
    measure, row, pictures = style_measure(style), dict[str, Any](style=style), list(plain)
    values: list[list[float]] = []
    for weight in WEIGHTS:
        painter.pipe.set_adapters([style], [weight])
        pictures = painter.paint(prompts)
        values.append([measure(*pair) for pair in zip(pictures, plain, strict=True)])
        row[f"at {weight:g}"] = _mean(values[-1])
    painter.pipe.unload_lora_weights()
    apart = [is_on(style, on, off) for off, on in zip(values[0], values[-1], strict=True)]
    shares = score_scenes(captions, pictures, style)
    return row | {
        "told apart": _mean([float(x) for x in apart]),
        **{k: shares[k] for k in ("colour", "position")},
    }


def speed(painter: Painter) -> float:
    """Seconds for one picture of 20 guided steps, warm: the best of three."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        painter.paint(["a red circle on a blue background"])
        times.append(time.perf_counter() - start)
    return min(times)


def markdown(result: dict[str, Any]) -> str:
    """The result as the model card's tables."""
    heads = ("colour", "shape", "size", "position", "background", "all objects", "picture")
    lines = ["| prompts | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, shares in result["scenes"].items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * shares[head]:.1f} %" for head in heads) + " |")
    lines += [
        "",
        "| LoRA | measure at 0 | at 0.5 | at 1 | on told from off | colour | position |",
        "|---" * 7 + "|",
    ]
    for row in result["loras"]:
        values = " | ".join(f"{row[f'at {weight:g}']:.2f}" for weight in WEIGHTS)
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("told apart", "colour", "position"))
        lines.append(f"| {row['style']} | {values} | {shares} |")
    lines += [
        "",
        f"Seed {result['seed']}; {STEPS} DDIM steps at guidance {GUIDANCE:g}, "
        f"{result['seconds']:.2f} s for one picture.",
    ]
    return "\n".join(lines)


def show(result: dict[str, Any]) -> None:
    """Print the result as tables."""
    console = Console()
    names = list(next(iter(result["scenes"].values())))
    table = Table("prompts", *names, title="tiny-sd on held-out prompts")
    for name, shares in result["scenes"].items():
        table.add_row(name, *(f"{share:.3f}" for share in shares.values()))
    console.print(table)
    if result["loras"]:
        table = Table(*result["loras"][0], title="LoRAs")
        for row in result["loras"]:
            table.add_row(*(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()))
        console.print(table)
    console.print(f"seed {result['seed']}, {result['seconds']:.2f} s a picture of {STEPS} guided steps")


def main() -> None:
    """Score, print, and write the table into the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="left out: a fresh one")
    parser.add_argument(
        "--cases", type=int, default=100, help="prompts with one object, and as many with two"
    )
    parser.add_argument("--lora-cases", type=int, default=40, help="prompts for each LoRA")
    parser.add_argument("--folder", type=Path, default=EMBEDDED)
    parser.add_argument("--loras", type=Path, default=LORAS)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--no-card", action="store_true", help="leave the model card as it is")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    rng, painter = random.Random(seed), Painter(args.folder)
    result: dict[str, Any] = {"seed": seed, "scenes": {}, "loras": []}
    for name, things in (("one object", 1), ("two objects", 2)):
        captions = sample_prompts(rng, args.cases, things)
        pictures = painter.paint([caption.text for caption in captions])
        result["scenes"][name] = score_scenes(captions, pictures)
    # Small rings and stars are all outline: even drawn ones cannot be told apart.
    styled = sample_prompts(rng, args.lora_cases, 1, small=False)
    plain = painter.paint([caption.text for caption in styled])
    for file in sorted(args.loras.glob("*.safetensors")):
        if file.stem in scenes.STYLES:
            result["loras"].append(score_lora(painter, file, styled, plain))
    result["seconds"] = speed(painter)
    if not args.no_card:
        fill_card(args.folder / "README.md", "score", markdown(result))
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
