"""Samplers as tables: what a denoising step multiplies, per sampler, step count and step.

Every sampler here is linear in what it has at hand, so one line serves rows of all of them in one batch:

    x' = A*x + B*model + C*h + D*z        the model sees scale*x at `timestep`
    x0 = P*x + Q*model                    the picture as predicted now; h of the next step

`h` is the row's previous x0 and `z` its own noise of this step. The tables follow diffusers' schedulers to
the letter, quirks included (DDIM's previous step under trailing spacing); a test proves each against them.
Sources: DDIM arXiv 2010.02502 (12); Euler and Euler ancestral arXiv 2206.00364 and k-diffusion; DPM++ 2M
arXiv 2211.01095 algorithm 2; LCM arXiv 2310.04378 (9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from jobs import ErrorKind, JobError, Scheduler, TimestepSpacing
from models.image.schedule import Floats, NoiseSchedule
from models.image.table import Table, begun, make_table


class Samplers:
    """The tables of one checkpoint, from its scheduler config.

    A key that the config leaves out takes the default of diffusers' scheduler for that sampler, as
    `Scheduler.from_config` does. Raises `ValueError` for a config that asks for what is not built.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._schedule = NoiseSchedule(config)
        self._tables = lru_cache(maxsize=256)(self._build)

    def table(
        self,
        scheduler: Scheduler,
        num_inference_steps: int,
        spacing: TimestepSpacing | None = None,
        begin: int = 0,
    ) -> Table:
        """`spacing` None is the checkpoint's own.

        Raises `JobError` when the sampler cannot take that many steps or that spacing, or not on this
        checkpoint.
        """
        schedule = self._schedule
        most = _taught_steps(schedule) if scheduler == "lcm" else schedule.train_steps
        if not 1 <= num_inference_steps <= most:
            message = f"num_inference_steps must be between 1 and {most} for {scheduler} on this model."
            raise JobError(ErrorKind.INVALID, message, param="num_inference_steps")
        able = tuple(name for name in _SPACINGS if spacing in _SPACINGS[name])
        if spacing is not None and scheduler not in able:
            message = f"timestep_spacing {spacing} is for the schedulers {', '.join(able)}."
            raise JobError(ErrorKind.INVALID, message, param="timestep_spacing")
        table = self._tables(scheduler, num_inference_steps, spacing)
        return begun(table, begin) if begin else table

    def _build(
        self, scheduler: Scheduler, num_inference_steps: int, spacing: TimestepSpacing | None
    ) -> Table:
        schedule = self._schedule if spacing is None else self._schedule.spaced(spacing)
        table = _BUILDERS[scheduler](schedule, num_inference_steps)
        if not np.all(np.isfinite(table.steps)):
            # An epsilon model says nothing about pure noise (zero terminal SNR): x0 would divide by zero.
            message = f"{scheduler} does not fit this model's noise schedule."
            raise JobError(ErrorKind.INVALID, message, param="scheduler")
        return table


def _ddim(schedule: NoiseSchedule, count: int) -> Table:
    timesteps = schedule.timesteps(count, "leading").round()
    now = timesteps.astype(np.int64)
    before = now - schedule.train_steps // count
    bar = schedule.alphas_cumprod[now]
    final = 1.0 if schedule.config.get("set_alpha_to_one", True) else schedule.alphas_cumprod[0]
    bar_before = np.where(before >= 0, schedule.alphas_cumprod[np.maximum(before, 0)], final)
    alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    alpha_before, sigma_before = np.sqrt(bar_before), np.sqrt(1 - bar_before)
    p, q = schedule.predicted(alpha, sigma)
    keep = sigma_before / sigma
    return make_table(timesteps, 1.0, keep, alpha_before - keep * alpha, p, q, signal=alpha, level=sigma)


def _sigmamake_table(schedule: NoiseSchedule, timesteps: Floats, sigmas: Floats, *, ancestral: bool) -> Table:
    """Euler on x = x0 + sigma*noise; `sigmas` is one longer than `timesteps`, its end the last step's aim."""
    sigma, aim = sigmas[:-1], sigmas[1:]
    up = np.sqrt(aim**2 * (sigma**2 - aim**2) / sigma**2) if ancestral else np.zeros_like(aim)
    keep = np.sqrt(aim**2 - up**2) / sigma
    alpha = 1 / np.sqrt(sigma**2 + 1)
    p, q = schedule.predicted(alpha, sigma * alpha)
    default = schedule.config.get("timestep_spacing", "linspace")
    largest = float(sigmas.max())
    noise_scale = largest if default in ("linspace", "trailing") else float(np.hypot(largest, 1))
    # `predicted` speaks of alpha*x, which is what the model is shown.
    return make_table(
        timesteps,
        alpha,
        keep,
        1 - keep,
        p * alpha,
        q,
        noise=up,
        noise_scale=noise_scale,
        signal=np.ones_like(sigma),
        level=sigma,
    )


def _euler(schedule: NoiseSchedule, count: int) -> Table:
    config = schedule.config
    timesteps = schedule.timesteps(count, "linspace")
    sigmas = schedule.sigmas_at(timesteps)
    if config.get("use_karras_sigmas"):
        smallest, largest = config.get("sigma_min"), config.get("sigma_max")
        sigmas, timesteps = schedule.karras(
            float(sigmas[0]) if largest is None else largest,
            float(sigmas[-1]) if smallest is None else smallest,
            count,
        )
    return _sigmamake_table(schedule, timesteps, np.append(sigmas, schedule.final_sigma()), ancestral=False)


def _euler_ancestral(schedule: NoiseSchedule, count: int) -> Table:
    timesteps = schedule.timesteps(count, "linspace")
    sigmas = schedule.sigmas_at(timesteps)
    return _sigmamake_table(schedule, timesteps, np.append(sigmas, 0.0), ancestral=True)


def _dpmpp_2m_timesteps(schedule: NoiseSchedule, count: int) -> Floats:
    """As `NoiseSchedule.timesteps`, but one step more is spaced and the last left out, unless trailing."""
    config = schedule.config
    lambdas = -np.log(schedule.train_sigmas)
    clipped = config.get("lambda_min_clipped", -np.inf)
    last = schedule.train_steps - int(np.searchsorted(lambdas[::-1], clipped))
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "linspace":
        return np.linspace(0, last - 1, count + 1).round()[::-1][:-1]
    if spacing == "leading":
        steps = np.arange(count + 1)[::-1][:-1] * (last // (count + 1)) + config.get("steps_offset", 0)
        return steps.astype(np.float64)
    return np.arange(last, 0, -schedule.train_steps / count).round().astype(np.float64) - 1


def _dpmpp_2m(schedule: NoiseSchedule, count: int) -> Table:
    config = schedule.config
    timesteps = _dpmpp_2m_timesteps(schedule, count)
    sigmas = schedule.sigmas_at(timesteps)
    if config.get("use_karras_sigmas"):
        sigmas, timesteps = schedule.karras(schedule.train_sigmas[-1], schedule.train_sigmas[0], count)
        timesteps = timesteps if config.get("beta_schedule") == "squaredcos_cap_v2" else timesteps.round()
    steps = len(timesteps)
    sigmas = np.append(sigmas, schedule.final_sigma())
    sigma, aim = sigmas[:-1], sigmas[1:]
    alpha, alpha_aim = 1 / np.sqrt(sigma**2 + 1), 1 / np.sqrt(aim**2 + 1)
    keep = aim * alpha_aim / (sigma * alpha)
    weight = alpha_aim * (1 - aim / sigma)
    # Second order leans on the step before: not at the first step, nor at the last where it is unstable.
    second = np.zeros(steps)
    with np.errstate(divide="ignore"):
        gained = np.log(sigma) - np.log(aim)
    second[1:] = 0.5 * weight[1:] * gained[1:] / gained[:-1]
    stable_end = config.get("lower_order_final", True) and steps < 15
    if stable_end or config.get("euler_at_final") or schedule.final_sigma() == 0.0:
        second[-1] = 0.0
    p, q = schedule.predicted(alpha, sigma * alpha)
    level = sigma * alpha
    return make_table(timesteps, 1.0, keep, weight + second, p, q, history=-second, signal=alpha, level=level)


def _taught_steps(schedule: NoiseSchedule) -> int:
    """The steps a consistency model was distilled on: LCM takes a subset of them."""
    return schedule.config.get("original_inference_steps", 50)


def _lcm(schedule: NoiseSchedule, count: int) -> Table:
    original = _taught_steps(schedule)
    taught = (np.arange(1, original + 1) * (schedule.train_steps // original) - 1)[::-1]
    now = taught[np.floor(np.linspace(0, original, count, endpoint=False)).astype(np.int64)]
    bar = schedule.alphas_cumprod[now]
    scaled = now * schedule.config.get("timestep_scaling", 10.0)
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    alpha_next, noise = np.ones(count), np.zeros(count)  # the last step adds no noise and is not scaled
    alpha_next[:-1], noise[:-1] = np.sqrt(bar[1:]), np.sqrt(1 - bar[1:])
    alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    p, q = schedule.predicted(alpha, sigma)
    steps = now.astype(np.float64)
    keep, weight = alpha_next * skip, alpha_next * out
    return make_table(steps, 1.0, keep, weight, p, q, noise=noise, signal=alpha, level=sigma)


_BUILDERS: dict[Scheduler, Callable[[NoiseSchedule, int], Table]] = {
    "ddim": _ddim,
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "dpmpp_2m": _dpmpp_2m,
    "lcm": _lcm,
}
_SPACINGS: dict[Scheduler, tuple[TimestepSpacing, ...]] = {
    "ddim": ("leading", "trailing", "linspace"),
    "euler": ("leading", "trailing", "linspace", "karras"),
    "euler_ancestral": ("leading", "trailing", "linspace"),
    "dpmpp_2m": ("leading", "trailing", "linspace", "karras"),
    "lcm": (),  # its steps are those it was taught
}
"""What a caller may ask for: all that diffusers' scheduler of that name follows."""
