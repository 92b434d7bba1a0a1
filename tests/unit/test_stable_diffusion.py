"""Stable Diffusion rows against diffusers' pipeline, alone and in company, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from jobs import ErrorKind, ImageJob, JobError, Preview, Progress, Scheduler
from models.image.checkpoint import load_parts
from models.image.denoise import step_noise
from models.image.encode import read_parameters
from models.image.preview import fit_latent_to_rgb
from models.image.stable_diffusion import TEXT_ENCODERS, StableDiffusion, load
from models.protocol import ModelSpec, OutOfMemoryError
from tests.unit.drawing import Pixels, admit, apart, draw, image_job, pixels_of, run
from tests.unit.tiny_checkpoint import SIDE, write_checkpoint

SCHEDULERS: dict[Scheduler, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}
LONG_PROMPT = "a red circle beside a blue square " * 8
"""216 letters: a token each for this tokenizer, so three chunks of at most 75."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(root, kind) for kind in ("epsilon", "v_prediction")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, StableDiffusion]:
    return {kind: load(ModelSpec(name="tiny", folder=folder)) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    loader: Any = StableDiffusionPipeline
    made = {kind: loader.from_pretrained(folder) for kind, folder in folders.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def model(models: dict[str, StableDiffusion]) -> StableDiffusion:
    return models["epsilon"]


def with_our_noise(job: ImageJob, monkeypatch: pytest.MonkeyPatch, begin: int = 0) -> None:
    """Has diffusers' scheduler draw what our steps draw, from step `begin` on."""
    steps = iter(range(begin, job.num_inference_steps))

    def noise(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        return step_noise(job.seed, next(steps), shape[1:])[None]

    if job.scheduler in ("euler_ancestral", "lcm"):
        monkeypatch.setattr(f"{SCHEDULERS[job.scheduler].__module__}.randn_tensor", noise)


def by_diffusers(pipe: Any, job: ImageJob, monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """The pipeline's picture of a job, from the noise that its seed gives here."""
    pipe.scheduler = SCHEDULERS[job.scheduler].from_config(pipe.scheduler.config)
    with_our_noise(job, monkeypatch)
    picture = pipe(
        job.prompt,
        negative_prompt=job.negative_prompt or None,  # which XL takes for zeros
        width=job.width,
        height=job.height,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    ).images[0]
    return np.asarray(picture).astype(np.int16)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' schedulers under numpy 2
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_whole_picture_is_the_pipelines_within_2(
    models: dict[str, StableDiffusion],
    pipelines: dict[str, Any],
    prediction_type: str,
    scheduler: Scheduler,
    guidance_scale: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = image_job(
        num_inference_steps=4,
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        negative_prompt="blue",
    )
    (ours,) = draw(models[prediction_type], job)
    assert apart(ours, by_diffusers(pipelines[prediction_type], job, monkeypatch)) <= 2


@pytest.mark.parametrize("own", [1.0, 3.0])
def test_guidance_left_out_is_the_models_own(
    model: StableDiffusion, folders: dict[str, Path], own: float
) -> None:
    other = load(ModelSpec(name="tiny", folder=folders["epsilon"], guidance_scale=own))
    (left_out,) = draw(other, image_job(num_inference_steps=2, guidance_scale=None))
    (named,) = draw(model, image_job(num_inference_steps=2, guidance_scale=own))
    assert apart(left_out, named) <= 2


@pytest.mark.parametrize(("width", "height"), [(120, 72), (64, 256), (136, 128)])
def test_any_multiple_of_8_is_drawn_as_the_pipeline_draws_it(
    model: StableDiffusion,
    pipelines: dict[str, Any],
    width: int,
    height: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = image_job(num_inference_steps=2, width=width, height=height)
    (ours,) = draw(model, job)
    assert ours.shape == (height, width, 3)
    assert apart(ours, by_diffusers(pipelines["epsilon"], job, monkeypatch)) <= 2


def test_a_picture_is_the_same_alone_and_in_mixed_company(model: StableDiffusion) -> None:
    jobs = [
        image_job(),
        image_job(seed=4, scheduler="euler", num_inference_steps=3),
        image_job(seed=5, guidance_scale=1.0, scheduler="lcm"),
        image_job(seed=6, scheduler="dpmpp_2m", guidance_scale=7.5, negative_prompt="green"),
        image_job(seed=7, scheduler="euler_ancestral"),
        image_job(seed=8, width=120, height=72),
        image_job(seed=9, prompt=LONG_PROMPT),
        image_job(seed=10, scheduler="euler_ancestral", guidance_scale=1.0),
    ]
    together = draw(model, *jobs)
    for job, picture in zip(jobs, together, strict=True):
        assert apart(picture, draw(model, job)[0]) <= 2
    assert apart(together[0], together[1]) > 5


def test_no_more_than_max_rows_are_in_flight(folders: dict[str, Path]) -> None:
    model = load(ModelSpec(name="tiny", folder=folders["epsilon"], max_rows=2))
    first, second = admit(model, [image_job(seed=1), image_job(seed=2)])
    third = model.prepare(image_job(seed=3))
    assert not model.reserve(third)
    model.release(first)
    model.release(first)  # a second time gives nothing back
    assert model.reserve(third)
    fourth = model.prepare(image_job(seed=4))
    assert not model.reserve(fourth)
    for row in (second, third, fourth):
        model.release(row)


def test_rows_join_and_leave_between_steps(model: StableDiffusion) -> None:
    early, late = image_job(scheduler="euler_ancestral"), image_job(seed=12, scheduler="dpmpp_2m")
    alone = [draw(model, job)[0] for job in (early, late)]
    (first,) = admit(model, [early])
    for _ in range(3):
        lane = model.lane(first)
        assert lane is not None
        model.step(lane, [first])
    (second,) = admit(model, [late])
    run(model, [first, second])
    for row, picture in zip((first, second), alone, strict=True):
        assert apart(pixels_of(model.finish(row).data), picture) <= 2
        model.release(row)


def test_a_long_prompt_is_encoded_to_its_end(model: StableDiffusion) -> None:
    (row,) = admit(model, [image_job(prompt=LONG_PROMPT)])
    run(model, [row])
    assert row.cond is not None
    assert row.uncond is not None
    assert row.cond.hidden.shape == row.uncond.hidden.shape == (3 * 77, 32)
    long, cut, other_end = draw(
        model,
        image_job(prompt=LONG_PROMPT),
        image_job(prompt=LONG_PROMPT[:90]),
        image_job(prompt=LONG_PROMPT[:-8] + "triangle"),
    )
    assert apart(long, cut) > 2
    assert apart(long, other_end) > 0


def test_a_long_negative_prompt_gives_both_prompts_its_chunks(model: StableDiffusion) -> None:
    (row,) = admit(model, [image_job(negative_prompt=LONG_PROMPT)])
    assert model.lane(row) is not None
    assert len(row.prompt) == 3
    assert row.negative_prompt is not None
    assert len(row.negative_prompt) == 3


def test_a_known_prompt_is_not_encoded_again(folders: dict[str, Path]) -> None:
    fresh = load(ModelSpec(name="tiny", folder=folders["epsilon"]))
    stages: list[str] = []
    for seed in (1, 2):
        (row,) = admit(fresh, [image_job(seed=seed)])
        lane = fresh.lane(row)
        assert lane is not None
        stages.append(lane.stage)
        run(fresh, [row])
    assert stages == ["encode", "denoise"]


def test_lanes_costs_and_budgets(folders: dict[str, Path]) -> None:
    fresh = load(ModelSpec(name="tiny", folder=folders["epsilon"], max_rows=8))
    guided, plain = admit(fresh, [image_job(), image_job(guidance_scale=1.0, width=64)])
    assert (fresh.cost(guided), fresh.cost(plain)) == (2.0, 1.0)
    lane = fresh.lane(guided)
    assert lane is not None
    assert (lane.stage, lane.shape) == ("encode", ())
    fresh.step(lane, [guided, plain])
    lanes = [fresh.lane(row) for row in (guided, plain)]
    assert [lane.shape for lane in lanes if lane] == [(16, 16, 1), (16, 8, 1)]
    assert [fresh.budget(lane) for lane in lanes if lane] == [8.0, 8.0]
    assert (fresh.cost(guided), fresh.cost(plain)) == (2.0, 1.0)


def test_events_progress_each_step_and_previews_only_for_a_stream(model: StableDiffusion) -> None:
    streamed, quiet = admit(
        model, [image_job(stream=True, num_inference_steps=10), image_job(num_inference_steps=10)]
    )
    told: dict[int, list[Any]] = {0: [], 1: []}
    while (lane := model.lane(streamed)) is not None:
        for at, events in enumerate(model.step(lane, [streamed, quiet])):
            told[at].extend(events)
    progress = [Progress(step=step, total=10) for step in range(1, 11)]
    assert told[1] == progress
    assert [event for event in told[0] if isinstance(event, Progress)] == progress
    previews = [event for event in told[0] if isinstance(event, Preview)]
    assert len(previews) == 4
    assert all(preview.media_type == "image/jpeg" for preview in previews)
    assert pixels_of(previews[-1].data).shape == (SIDE, SIDE, 3)


def test_the_preview_matrix_is_the_vaes_where_that_is_linear() -> None:
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn((5, 3), generator=generator) * 0.05

    def decode(latents: torch.Tensor) -> torch.Tensor:
        colours = torch.einsum("nchw,cd->ndhw", latents, wanted[:4]) + wanted[4].reshape(1, 3, 1, 1)
        return torch.nn.functional.interpolate(colours, scale_factor=8)

    assert torch.allclose(fit_latent_to_rgb(decode, 4), wanted, atol=2e-3)


def test_the_result_tells_what_made_it(model: StableDiffusion) -> None:
    job = image_job(response_format="webp", num_inference_steps=2, negative_prompt="blue")
    (row,) = admit(model, [job])
    run(model, [row])
    result = model.finish(row)
    assert (result.model, result.seed, result.media_type) == ("tiny", 3, "image/webp")
    told = read_parameters(result.data)
    assert (told["width"], told["height"]) == (SIDE, SIDE)
    assert (told["prompt"], told["negative_prompt"], told["seed"]) == ("a red circle", "blue", 3)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"width": 100}, "width"),
        ({"width": 56}, "width"),
        ({"height": 264}, "height"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 51, "scheduler": "lcm"}, "num_inference_steps"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(
    model: StableDiffusion, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(JobError, match=r"between \d+ and \d+") as refused:
        model.prepare(image_job(**changes))
    assert refused.value.kind is ErrorKind.INVALID
    assert refused.value.param == param


OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory"),
    "python": MemoryError(),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize(
    ("stage", "error"),
    [("encode", "cpu"), ("denoise", "gpu"), ("denoise", "python"), ("denoise", "cpu"), ("vae", "cpu")],
)
def test_a_step_without_memory_changes_nothing_and_can_be_repeated(
    folders: dict[str, Path], model: StableDiffusion, stage: str, error: str
) -> None:
    spec = ModelSpec(name="tiny", folder=folders["epsilon"])
    parts = load_parts(spec, TEXT_ENCODERS)
    fresh = StableDiffusion(spec, parts)
    modules = {
        "encode": parts.text_encoders[0].module,
        "denoise": parts.unet,
        "vae": parts.vae.module.decoder,
    }
    (row,) = admit(fresh, [image_job(num_inference_steps=3, scheduler="euler_ancestral")])

    def fail(*_: Any) -> None:
        raise OUT_OF_MEMORY[error]

    while (lane := fresh.lane(row)) is not None:
        if lane.stage == stage:
            hook = modules[stage].register_forward_pre_hook(fail)
            before = (row.index, row.latents, row.history, row.cond, row.pixels)
            with pytest.raises(OutOfMemoryError):
                fresh.step(lane, [row])
            after = (row.index, row.latents, row.history, row.cond, row.pixels)
            assert all(one is other for one, other in zip(before, after, strict=True))
            hook.remove()
        fresh.step(lane, [row])
    (undisturbed,) = draw(model, row.job)
    assert apart(pixels_of(fresh.finish(row).data), undisturbed) == 0


def test_other_failures_are_not_taken_for_memory(folders: dict[str, Path]) -> None:
    spec = ModelSpec(name="tiny", folder=folders["epsilon"])
    parts = load_parts(spec, TEXT_ENCODERS)
    fresh = StableDiffusion(spec, parts)

    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    parts.text_encoders[0].module.register_forward_pre_hook(fail)
    (row,) = admit(fresh, [image_job()])
    lane = fresh.lane(row)
    assert lane is not None
    with pytest.raises(RuntimeError, match="mat1"):
        fresh.step(lane, [row])


def test_warm_up_leaves_nothing_behind(folders: dict[str, Path], model: StableDiffusion) -> None:
    fresh = load(ModelSpec(name="tiny", folder=folders["epsilon"], max_rows=4))
    fresh.warm_up()
    job = image_job(num_inference_steps=2)
    assert apart(draw(fresh, job)[0], draw(model, job)[0]) == 0


def test_a_folder_without_a_part_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        load(ModelSpec(name="tiny", folder=tmp_path))
