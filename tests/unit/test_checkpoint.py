"""Checkpoints in their other forms draw what the plain one draws: one file, offloaded, quantized."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
from pydantic import ValidationError

from jobs import LoraChoice
from models import precision
from models.catalog import Entry, Modality
from models.image.checkpoint import load_parts
from models.image.stable_diffusion import TEXT_ENCODERS, StableDiffusion, load
from models.loading import spec_of
from models.precision import has_amx
from models.protocol import ModelSpec
from models.sources import EMBEDDED
from runners.demand import want
from tests.unit.drawing import Pixels, apart, draw, image_job
from tests.unit.single_file import write_single_file
from tests.unit.tiny_checkpoint import write_checkpoint

JOB = image_job(num_inference_steps=3, negative_prompt="blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> StableDiffusion:
    return load(ModelSpec(name="tiny", folder=folder))


def test_one_file_with_the_original_names_is_the_same_checkpoint(
    folder: Path, plain: StableDiffusion, tmp_path: Path
) -> None:
    file = write_single_file(folder, tmp_path / "tiny.safetensors", layers_per_block=1)
    entry = Entry(
        family="image.stable_diffusion", source=f"file:{file}", config=f"folder:{folder}", licence="none"
    )
    model = load(spec_of("tiny", entry, "cpu"))
    assert apart(draw(model, JOB)[0], draw(plain, JOB)[0]) <= 1


def test_one_file_wants_a_configuration_and_to_be_safetensors(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.ckpt"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"only \.safetensors"):
        load(ModelSpec(name="tiny", folder=file, config=folder))
    with pytest.raises(ValueError, match="`config`"):
        load(ModelSpec(name="tiny", folder=file.rename(tmp_path / "tiny.safetensors")))


def test_offloaded_weights_draw_the_same_and_stay_where_they_are(
    folder: Path, plain: StableDiffusion
) -> None:
    spec = ModelSpec(name="tiny", folder=folder, offload=True)
    parts = load_parts(spec, TEXT_ENCODERS)
    parts.scheduler_config["steps_offset"] = 1
    model = StableDiffusion(spec, parts)
    assert apart(draw(model, JOB)[0], draw(plain, JOB)[0]) == 0
    for module in (parts.unet, parts.vae.module, parts.text_encoders[0].module):
        assert {each.device.type for each in module.parameters()} == {"meta"}


@pytest.mark.parametrize(("quantization", "kind"), [("int8", "Linear8bitLt"), ("int4", "Linear4bit")])
def test_a_quantized_unet_draws_nearly_the_same(quantization: str, kind: str) -> None:
    """Of the embedded model: the random one's layers are narrower than a block of weights."""
    job = image_job(num_inference_steps=4, loras=(LoraChoice(name="night"),))
    drawn: list[Pixels] = []
    for how in (None, quantization):
        spec = ModelSpec(name="tiny", folder=EMBEDDED / "tiny-sd", loras=EMBEDDED / "loras", quantization=how)
        parts = load_parts(spec, TEXT_ENCODERS)
        layers = [each for each in parts.unet.modules() if isinstance(each, getattr(bitsandbytes.nn, kind))]
        assert (len(layers) > 10) is (how is not None)
        drawn += draw(StableDiffusion(spec, parts), job)
    assert 0 < np.abs(drawn[0] - drawn[1]).mean() < 12


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx512f amx_bf16 amx_tile", True), ("fpu avx512_bf16", False)]
)
def test_pictures_are_bf16_where_the_cpu_has_amx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, has: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: a processor\nflags\t\t: {flags}\n")
    assert has_amx(cpuinfo) is has
    assert not has_amx(tmp_path / "nowhere")
    monkeypatch.setattr(precision, "has_amx", lambda: has)
    pictures = Entry(family="image.stable_diffusion", source="embedded:tiny-sd", licence="none")
    words = Entry(family="text.decoder", source="embedded:tiny-llama", licence="none")
    assert spec_of("tiny", pictures, "cpu").dtype == ("bfloat16" if has else "float32")
    planned = want(Modality.IMAGE, {"tiny": pictures}).loads[0].chosen("cpu")
    assert planned == spec_of("tiny", pictures, "cpu").dtype
    assert spec_of("tiny", words, "cpu").dtype == "float32"
    assert spec_of("tiny", words, "cuda:0").dtype == "bfloat16"


def test_a_bf16_picture_is_the_same_in_company() -> None:
    model = load(ModelSpec(name="tiny", folder=EMBEDDED / "tiny-sd", dtype="bfloat16"))
    jobs = [
        image_job(num_inference_steps=3, seed=seed, guidance_scale=scale) for seed, scale in ((1, 1), (2, 4))
    ]
    for job, picture in zip(jobs, draw(model, *jobs), strict=True):
        assert apart(picture, draw(model, job)[0]) <= 2


def test_a_catalog_entry_says_how(folder: Path) -> None:
    entry = Entry(family="image.stable_diffusion", source=f"folder:{folder}", licence="none", offload=True)
    assert spec_of("tiny", entry, "cuda:0").offload
    with pytest.raises(ValidationError, match="source"):
        Entry(family="image.stable_diffusion", source="pickle:/x", licence="none")
