"""Rows that begin from a picture: as diffusers draws them, in mixed company, and bombs that never go off."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from PIL import Image

from jobs import ErrorKind, ImageJob, JobError, Progress, Scheduler
from models.image.encode import read_parameters
from models.image.stable_diffusion import StableDiffusion, load
from models.protocol import ModelSpec
from tests.unit.drawing import Pixels, admit, apart, draw, image_job, run
from tests.unit.test_stable_diffusion import SCHEDULERS, with_our_noise
from tests.unit.tiny_checkpoint import SIDE, write_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers' schedulers, numpy 2
    pytest.mark.filterwarnings("ignore:.*DecompressionBombWarning"),
]
SAMPLERS: list[Scheduler] = ["ddim", "euler", "dpmpp_2m", "lcm"]


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Stripes of colour over a slope of light: nothing about it is symmetric."""
    down, across = np.mgrid[0:height, 0:width]
    channels = [across * 2 % 256, down * 255 // height, (across // 16 + down // 32) * 40 % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def mask() -> Image.Image:
    """White in the right half."""
    levels = np.zeros((SIDE, SIDE), np.uint8)
    levels[:, SIDE // 2 :] = 255
    return Image.fromarray(levels)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


PICTURE, MASK = encoded(picture()), encoded(mask())
NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "plain": write_checkpoint(root / "plain"),
        "inpainting": write_checkpoint(root / "inpainting", in_channels=9),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, StableDiffusion]:
    return {kind: load(ModelSpec(name="tiny", folder=folder)) for kind, folder in folders.items()}


@pytest.fixture
def model(models: dict[str, StableDiffusion]) -> StableDiffusion:
    return models["plain"]


def by_diffusers(kind: Any, folder: Path, job: ImageJob, strength: float, **pictures: Any) -> Pixels:
    pipe = kind.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS[job.scheduler].from_config(pipe.scheduler.config)
    drawn = pipe(
        job.prompt,
        **pictures,
        strength=strength,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    ).images[0]
    return np.asarray(drawn).astype(np.int16)


def job_from_picture(**changes: Any) -> ImageJob:
    return image_job(**{"init_image": PICTURE, "num_inference_steps": 5, "strength": 0.6} | changes)


@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_image_to_image_is_the_pipelines_within_2(
    model: StableDiffusion,
    folders: dict[str, Path],
    scheduler: Scheduler,
    strength: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_from_picture(scheduler=scheduler, strength=strength)
    with_our_noise(job, monkeypatch, begin=0 if strength == 1 else 3)
    (ours,) = draw(model, job)
    theirs = by_diffusers(StableDiffusionImg2ImgPipeline, folders["plain"], job, strength, image=picture())
    assert apart(ours, theirs) <= 2


@pytest.mark.parametrize("kind", ["plain", "inpainting"])
@pytest.mark.parametrize(
    ("scheduler", "strength"), [("ddim", None), ("ddim", 0.6), ("euler", 0.6), ("dpmpp_2m", None)]
)
def test_inpainting_is_the_pipelines_within_2(
    models: dict[str, StableDiffusion],
    folders: dict[str, Path],
    kind: str,
    scheduler: Scheduler,
    strength: float | None,
) -> None:
    job = job_from_picture(mask_image=MASK, scheduler=scheduler, strength=strength)
    (ours,) = draw(models[kind], job)
    pictures: dict[str, Any] = {"image": picture(), "mask_image": mask(), "height": SIDE, "width": SIDE}
    theirs = by_diffusers(StableDiffusionInpaintPipeline, folders[kind], job, strength or 1.0, **pictures)
    assert apart(ours, theirs) <= 2


def test_an_inpainting_model_draws_without_a_picture(models: dict[str, StableDiffusion]) -> None:
    one, other = draw(models["inpainting"], image_job(), image_job(seed=4))
    assert one.shape == (SIDE, SIDE, 3)
    assert apart(one, other) > 5


def test_what_a_mask_leaves_out_stays(model: StableDiffusion) -> None:
    (row,) = admit(model, [job_from_picture(mask_image=MASK)])
    run(model, [row])
    assert row.source is not None
    wanted, half = row.source.encoded[0], row.latents.shape[2] // 2
    assert torch.allclose(row.latents[..., :half], wanted[..., :half], atol=1e-6)
    assert not torch.allclose(row.latents[..., half:], wanted[..., half:], atol=0.1)


@pytest.mark.parametrize("kind", ["plain", "inpainting"])
def test_a_picture_is_the_same_alone_and_in_mixed_company(
    models: dict[str, StableDiffusion], kind: str
) -> None:
    jobs = [
        job_from_picture(),
        image_job(seed=4, num_inference_steps=4),
        job_from_picture(mask_image=MASK, seed=5, strength=None, scheduler="euler_ancestral"),
        job_from_picture(seed=6, strength=0.2, scheduler="dpmpp_2m", guidance_scale=1.0),
        job_from_picture(mask_image=MASK, seed=7, strength=0.8, scheduler="euler"),
    ]
    together = draw(models[kind], *jobs)
    for job, drawn in zip(jobs, together, strict=True):
        assert apart(drawn, draw(models[kind], job)[0]) <= 2


def test_only_the_steps_that_are_taken_are_told_and_remembered(model: StableDiffusion) -> None:
    (row,) = admit(model, [job_from_picture(num_inference_steps=10, strength=0.3)])
    told: list[Any] = []
    while (lane := model.lane(row)) is not None:
        told.extend(event for events in model.step(lane, [row]) for event in events)
    assert told == [Progress(step=step, total=3) for step in (1, 2, 3)]
    parameters = read_parameters(model.finish(row).data)
    assert parameters["strength"] == 0.3
    assert parameters["init_image"].startswith("sha256:")


def test_sources_of_one_size_are_encoded_in_one_forward(model: StableDiffusion) -> None:
    rows = admit(model, [job_from_picture(seed=seed, prompt="never seen") for seed in range(3)])
    stages: list[str] = []
    for _ in range(3):
        (lane,) = {model.lane(row) for row in rows}
        assert lane is not None
        stages.append(lane.stage)
        model.step(lane, rows)
    assert stages == ["encode", "source", "denoise"]


@pytest.mark.parametrize(
    ("given", "asked", "drawn"),
    [
        ((120, 72), {}, (120, 72)),
        ((123, 70), {}, (120, 64)),
        ((1024, 512), {}, (256, 128)),
        ((20, 10), {}, (128, 64)),
        ((2000, 10), {}, (256, 64)),
        ((500, 500), {"width": 64, "height": 128}, (64, 128)),
    ],
)
def test_the_size_is_the_pictures_own_within_the_models_bounds(
    model: StableDiffusion, given: tuple[int, int], asked: dict[str, int], drawn: tuple[int, int]
) -> None:
    row = model.prepare(image_job(init_image=encoded(picture(*given)), **asked))
    assert (row.width, row.height) == drawn


def test_a_phones_picture_stands_upright(model: StableDiffusion) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(picture(96, 64).transpose(Image.Transpose.ROTATE_90), exif=exif)
    row = model.prepare(image_job(init_image=lying))
    assert (row.width, row.height) == (96, 64)
    assert row.source is not None
    upright = model.prepare(image_job(init_image=encoded(picture(96, 64)))).source
    assert upright is not None
    assert torch.equal(row.source.pictures, upright.pictures)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A picture of one bit a pixel that says it is of that size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    body = b"Comment\0\0" + zlib.compress(b"x" * (200 << 20), 1)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return PICTURE[:33] + chunk + PICTURE[33:]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not_a_picture"),
    "text": (lambda: b"http://127.0.0.1/picture.png", "not_a_picture"),
    "gif": (lambda: encoded(picture(), "GIF"), "not_a_picture"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_a_picture"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_a_picture"),
    "truncated": (lambda: NOISE[: len(NOISE) // 2], "broken_picture"),
    "garbled": (lambda: NOISE[:900] + bytes(100) + NOISE[1000:], "broken_picture"),
    "too large": (lambda: encoded(Image.new("L", (4096, 2049))), "out_of_bounds"),
    "bomb": (lambda: png(12_000, 9_000), "out_of_bounds"),
    "huge bomb": (lambda: png(50_000, 50_000), "out_of_bounds"),
    "webp": (lambda: encoded(Image.new("RGB", (16_000, 1_000)), "WEBP"), "out_of_bounds"),
    "text bomb": (text_bomb, "not_a_picture"),
}


@pytest.mark.parametrize("param", ["init_image", "mask_image"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_refused_by_name_before_its_pixels_are_made(
    model: StableDiffusion, kind: str, param: str
) -> None:
    make, code = BAD[kind]
    job = job_from_picture(**{param: make()})
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(JobError) as refused:
        model.prepare(job)
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert refused.value.kind is ErrorKind.INVALID
    assert (refused.value.param, refused.value.code) == (param, code)


def test_too_little_strength_for_one_step_is_refused_with_its_bound(model: StableDiffusion) -> None:
    with pytest.raises(JobError, match=r"at least 1 / num_inference_steps, 0\.2") as refused:
        model.prepare(job_from_picture(strength=0.1))
    assert refused.value.param == "strength"


def test_a_source_without_memory_is_unchanged(model: StableDiffusion, folders: dict[str, Path]) -> None:
    fresh = load(ModelSpec(name="tiny", folder=folders["plain"]))
    (row,) = admit(fresh, [job_from_picture()])
    run(fresh, [row])
    (again,) = draw(model, job_from_picture())
    assert row.pixels is not None
    assert apart(row.pixels.astype(np.int16), again) == 0
