"""Stable Diffusion XL rows against diffusers' pipeline, alone and in company, and LoRAs for all its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from safetensors.torch import save_file

from jobs import LoraChoice, Scheduler
from models.image.stable_diffusion import StableDiffusion
from models.image.stable_diffusion_xl import load
from models.protocol import ModelSpec
from tests.unit.drawing import apart, draw, image_job
from tests.unit.single_file import write_single_file
from tests.unit.test_image_source import MASK, job_from_picture, mask, picture
from tests.unit.test_image_source import by_diffusers as from_picture_by_diffusers
from tests.unit.test_stable_diffusion import LONG_PROMPT, by_diffusers, with_our_noise
from tests.unit.tiny_checkpoint import SIDE, write_checkpoint
from tests.unit.tiny_xl import write_xl

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' own, numpy 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def model(checkpoint: Path, loras: Path) -> StableDiffusion:
    return load(ModelSpec(name="tiny-xl", folder=checkpoint, loras=loras))


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    loader: Any = StableDiffusionXLPipeline
    pipe = loader.from_pretrained(checkpoint, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("scheduler", "guidance_scale", "negative_prompt"),
    [("euler", 4.0, "blue"), ("euler", 4.0, ""), ("ddim", 1.0, ""), ("dpmpp_2m", 4.0, "green")],
)
def test_the_whole_picture_is_the_pipelines_within_2(
    model: StableDiffusion,
    pipeline: Any,
    scheduler: Scheduler,
    guidance_scale: float,
    negative_prompt: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = image_job(
        num_inference_steps=3,
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        height=96,
    )
    (ours,) = draw(model, job)
    assert ours.shape == (96, 128, 3)
    assert apart(ours, by_diffusers(pipeline, job, monkeypatch)) <= 2


def test_a_picture_is_the_same_alone_and_in_mixed_company(model: StableDiffusion) -> None:
    jobs = [
        image_job(num_inference_steps=3),
        image_job(num_inference_steps=4, seed=4, scheduler="euler", guidance_scale=1.0),
        image_job(num_inference_steps=3, seed=5, negative_prompt="blue", scheduler="euler_ancestral"),
        image_job(num_inference_steps=2, seed=6, prompt=LONG_PROMPT),
        image_job(num_inference_steps=3, seed=7, width=64),
    ]
    together = draw(model, *jobs)
    for job, drawn in zip(jobs, together, strict=True):
        assert apart(drawn, draw(model, job)[0]) <= 2


@pytest.mark.parametrize(
    ("layer", "width", "part"),
    [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", (32, 32), "first encoder"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", (64, 64), "second encoder"),
        ("text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj", (64, 64), "second encoder"),
        ("lora_unet_input_blocks_4_1_proj_in", (32, 32), "the original names of blocks"),
        ("lora_unet_output_blocks_0_0_in_layers_2", (64, 32), "the original names of blocks"),
        ("lora_unet_middle_block_1_proj_out", (32, 32), "the original names of blocks"),
    ],
)
def test_a_lora_reaches_each_part_by_the_names_it_has_in_files(
    model: StableDiffusion, loras: Path, layer: str, width: tuple[int, int], part: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    inner, outer = width
    kohya = layer.startswith("lora_")
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    shape = (4, inner, 3, 3) if "in_layers" in layer else (4, inner)
    shape_up = (outer, 4, 1, 1) if "in_layers" in layer else (outer, 4)
    tensors = {
        f"{layer}.{down}.weight": torch.randn(shape, generator=generator),
        f"{layer}.{up}.weight": torch.randn(shape_up, generator=generator),
    }
    name = part.replace(" ", "-") + str(abs(hash(layer)))
    save_file(tensors, loras / f"{name}.safetensors")
    plain, styled = (
        draw(model, image_job(num_inference_steps=2, loras=chosen))[0]
        for chosen in ((), (LoraChoice(name=name),))
    )
    assert apart(plain, styled) > 2


def test_one_file_with_the_original_names_is_the_same_checkpoint(
    checkpoint: Path, model: StableDiffusion, tmp_path: Path
) -> None:
    file = write_single_file(checkpoint, tmp_path / "tiny-xl.safetensors", layers_per_block=2)
    single = load(ModelSpec(name="tiny-xl", folder=file, config=checkpoint))
    job = image_job(num_inference_steps=2, negative_prompt="blue")
    assert apart(draw(single, job)[0], draw(model, job)[0]) <= 1


@pytest.mark.parametrize("masked", [False, True])
def test_from_a_picture_it_is_the_pipelines_within_2(
    model: StableDiffusion, checkpoint: Path, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_from_picture(scheduler="euler", mask_image=MASK if masked else None)
    given: dict[str, Any] = {"image": picture()}
    if masked:
        given |= {"mask_image": mask(), "height": SIDE, "width": SIDE}
    else:
        with_our_noise(job, monkeypatch, begin=3)
    kind = StableDiffusionXLInpaintPipeline if masked else StableDiffusionXLImg2ImgPipeline
    theirs = from_picture_by_diffusers(kind, checkpoint, job, 0.6, **given)
    assert apart(draw(model, job)[0], theirs) <= 2


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="text_encoder_2"):
        load(ModelSpec(name="tiny", folder=write_checkpoint(tmp_path)))
