"""The shipped picture model and its LoRAs load with plain diffusers, offline, and draw what is asked for."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file

from jobs import Scheduler
from models.image.stable_diffusion import StableDiffusion, load
from models.protocol import ModelSpec
from models.training.score_image import Painter, sample_prompts, score_scenes, style_measure
from tests.unit.drawing import apart, draw, image_job
from tests.unit.test_stable_diffusion import SCHEDULERS, by_diffusers

EMBEDDED = Path(__file__).parents[2] / "models" / "embedded"
LORAS = sorted((EMBEDDED / "loras").glob("*.safetensors"))


@pytest.fixture(scope="module")
def painter() -> Painter:
    torch.manual_seed(0)
    return Painter(EMBEDDED / "tiny-sd")


@pytest.fixture(scope="module")
def ours() -> StableDiffusion:
    return load(ModelSpec(name="tiny-sd", folder=EMBEDDED / "tiny-sd"))


def test_the_parts_are_stable_diffusions_own(painter: Painter) -> None:
    pipe: Any = painter.pipe
    assert isinstance(pipe, StableDiffusionPipeline)
    names = {type(part).__name__ for part in (pipe.text_encoder, pipe.vae, pipe.unet)}
    assert names == {"CLIPTextModel", "AutoencoderKL", "UNet2DConditionModel"}
    parameters = sum(
        p.numel() for part in (pipe.text_encoder, pipe.vae, pipe.unet) for p in part.parameters()
    )
    assert 6e6 <= parameters <= 10e6
    assert pipe.tokenizer.model_max_length == 77
    assert pipe.safety_checker is None


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' schedulers under numpy 2
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_our_rows_draw_what_its_pipeline_draws(
    painter: Painter, ours: StableDiffusion, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 2 of 255 after 6 guided steps of each sampler, from the same noise."""
    job = image_job(scheduler=scheduler, guidance_scale=2.0, negative_prompt="a blue star")
    before = painter.pipe.scheduler
    try:
        theirs = by_diffusers(painter.pipe, job, monkeypatch)
    finally:
        painter.pipe.scheduler = before
    assert apart(draw(ours, job)[0], theirs) <= 2


def test_every_caption_word_is_one_token(painter: Painter) -> None:
    assert painter.pipe.tokenizer.tokenize("a small green star") == [
        "a</w>",
        "small</w>",
        "green</w>",
        "star</w>",
    ]
    assert painter.pipe.tokenizer.decode(
        painter.pipe.tokenizer("Zebra, 7!").input_ids, skip_special_tokens=True
    )


def test_held_out_prompts_come_out_right(painter: Painter) -> None:
    for things, least in ((1, 0.9), (2, 0.75)):
        captions = sample_prompts(random.Random(21), 12, things)
        shares = score_scenes(captions, painter.paint([caption.text for caption in captions]))
        assert min(shares[k] for k in ("colour", "shape", "position", "background")) >= least, shares


def test_a_size_that_is_not_the_trained_one_runs(painter: Painter) -> None:
    made = painter.pipe(
        "a red circle on a blue background", num_inference_steps=2, height=72, width=136
    ).images
    assert made[0].size == (136, 72)


@pytest.mark.parametrize("file", LORAS, ids=lambda file: file.stem)
def test_a_lora_changes_the_style_and_weight_0_is_off(painter: Painter, file: Path) -> None:
    prompts = [
        "a large red square on a yellow background",
        "a large blue circle on a white background",
        "a white square on the left on a purple background",
    ]
    measure = style_measure(file.stem)
    plain = painter.paint(prompts, steps=10)
    painter.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
    try:
        on = painter.paint(prompts, steps=10)
        painter.pipe.set_adapters([file.stem], [0.0])
        off = painter.paint(prompts, steps=10)
    finally:
        painter.pipe.unload_lora_weights()
    assert max(np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(off, plain, strict=True)) <= 2
    moved = np.mean([measure(a, b) - measure(b, b) for a, b in zip(on, plain, strict=True)])
    assert moved * (-1 if file.stem in ("outline", "night") else 1) > 0.1


def test_both_lora_layouts_ship() -> None:
    prefixes = {file.stem: next(iter(load_file(file))).split(".")[0] for file in LORAS}
    assert prefixes == {"night": "unet", "outline": "unet", "pastel": prefixes["pastel"], "stripes": "unet"}
    assert prefixes["pastel"].startswith("lora_unet_")
