"""Each sampler's table against diffusers' own scheduler, step by step.

Both are given the same sequence of model outputs and noises. diffusers computes in float32, the tables are
built in float64 and stored in float32: the paths may part by `TOLERANCE` of the largest value there is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from jobs import ErrorKind, JobError, Scheduler
from models.image.samplers import Samplers
from models.image.table import Column, Table

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers' own, under numpy 2
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # its karras branch of unused sigmas
]
TOLERANCE = 2e-5
"""Of the largest value a step shows, or of 1."""
SHAPE = (1, 4, 8, 8)
CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "steps_offset": 1,
}
SCHEDULERS: dict[Scheduler, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}
COMPARABLE: list[tuple[Scheduler, str]] = [
    (name, prediction_type)
    for name in SCHEDULERS
    for prediction_type in ("epsilon", "v_prediction", "sample")
    if (name, prediction_type) != ("euler_ancestral", "sample")  # diffusers has no such scheduler
]
SPACINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "karras-trailing": {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    "sigma-min": {"final_sigmas_type": "sigma_min"},
    "alpha-one": {"set_alpha_to_one": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    "linear": {"beta_schedule": "linear"},
    "euler-at-final": {"euler_at_final": True, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
}


def by_table(
    table: Table, start: torch.Tensor, outputs: torch.Tensor, noises: torch.Tensor
) -> list[torch.Tensor]:
    """What the model is shown at each step, then the end."""
    x, history, seen = start * table.noise_scale, torch.zeros_like(start), []
    for step, output, noise in zip(table.steps, outputs, noises, strict=True):
        seen.append(x * float(step[Column.SCALE]))
        x0 = float(step[Column.P]) * x + float(step[Column.Q]) * output
        x = float(step[Column.A]) * x + float(step[Column.B]) * output
        x = x + float(step[Column.C]) * history + float(step[Column.D]) * noise
        history = x0
    return [*seen, x]


def by_diffusers(
    scheduler: Any,
    start: torch.Tensor,
    outputs: torch.Tensor,
    noises: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> list[torch.Tensor]:
    drawn = iter(noises)

    def next_noise(*_: Any, **__: Any) -> torch.Tensor:
        return next(drawn)

    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", next_noise)
    x, seen = start * scheduler.init_noise_sigma, []
    for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
        seen.append(scheduler.scale_model_input(x, timestep))
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return [*seen, x]


def compare(
    name: Scheduler,
    config: dict[str, Any],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    tolerance: float = TOLERANCE,
) -> None:
    reference = SCHEDULERS[name].from_config(config)
    reference.set_timesteps(count)
    table = Samplers(config).table(name, count)
    generator = torch.Generator().manual_seed(count)
    start = torch.randn(SHAPE, generator=generator)
    outputs = torch.randn((len(table), *SHAPE), generator=generator)
    noises = torch.randn((len(table), *SHAPE), generator=generator)
    assert torch.allclose(
        torch.from_numpy(table.steps[:, Column.TIMESTEP]), reference.timesteps.float(), atol=1e-3
    )
    ours = by_table(table, start, outputs, noises)
    theirs = by_diffusers(reference, start, outputs, noises, monkeypatch)
    for step, (mine, own) in enumerate(zip(ours, theirs, strict=True)):
        assert (mine - own).abs().max() <= tolerance * max(1.0, float(own.abs().max())), f"step {step}"


@pytest.mark.parametrize("count", [1, 2, 4, 7, 14, 15, 20, 50])
@pytest.mark.parametrize(("name", "prediction_type"), COMPARABLE)
def test_table_follows_diffusers(
    name: Scheduler, prediction_type: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, {**CONFIG, "prediction_type": prediction_type}, count, monkeypatch)


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_table_follows_diffusers_in_every_spacing(
    name: Scheduler, spacing: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction_type = "epsilon" if count == 10 else "v_prediction"
    config = {**CONFIG, "prediction_type": prediction_type, **SPACINGS[spacing]}
    # A cosine schedule ends at a sigma of 20,000: diffusers' own float32 resolves no more than 0.002 there.
    tolerance = 2e-3 if spacing == "cosine" and name.startswith("euler") else TOLERANCE
    compare(name, config, count, monkeypatch, tolerance)


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m"])
def test_zero_terminal_snr(name: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CONFIG, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    compare(name, {**config, "prediction_type": "v_prediction"}, 12, monkeypatch)


def test_an_epsilon_model_cannot_start_from_pure_noise() -> None:
    config = {**CONFIG, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(JobError) as refused:
        Samplers(config).table("ddim", 10)
    assert refused.value.param == "scheduler"


@pytest.mark.parametrize(
    ("name", "count", "most"), [("ddim", 1001, 1000), ("lcm", 51, 50), ("euler", 0, 1000)]
)
def test_a_step_count_out_of_bounds_is_refused_with_the_bound(name: Scheduler, count: int, most: int) -> None:
    with pytest.raises(JobError, match=f"between 1 and {most}") as refused:
        Samplers(CONFIG).table(name, count)
    assert refused.value.kind is ErrorKind.INVALID
    assert refused.value.param == "num_inference_steps"


@pytest.mark.parametrize(
    "unknown",
    [
        {"use_beta_sigmas": True},
        {"prediction_type": "flow_prediction"},
        {"beta_schedule": "sigmoid"},
    ],
)
def test_a_config_that_asks_for_what_is_not_built_is_refused(unknown: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(unknown)))):
        Samplers({**CONFIG, **unknown})


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m"])
def test_a_caller_may_choose_the_spacing_that_a_config_could(name: Scheduler, spacing: Any) -> None:
    own = {**CONFIG, "timestep_spacing": "linspace", "use_karras_sigmas": name == "euler"}
    if spacing == "karras" and name in ("ddim", "euler_ancestral"):
        with pytest.raises(JobError, match="euler, dpmpp_2m") as refused:
            Samplers(own).table(name, 7, spacing)
        assert refused.value.param == "timestep_spacing"
        return
    said = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    by_config = Samplers({**own, "use_karras_sigmas": False, **said}).table(name, 7)
    chosen = Samplers(own).table(name, 7, spacing)
    assert (chosen.steps == by_config.steps).all()
    assert chosen.noise_scale == by_config.noise_scale


def test_lcm_has_steps_of_its_own() -> None:
    with pytest.raises(JobError, match="timestep_spacing trailing is for"):
        Samplers(CONFIG).table("lcm", 4, "trailing")
