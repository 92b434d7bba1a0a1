"""The noise schedule of a checkpoint: how much noise each training step holds, and which steps are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs import TimestepSpacing

Floats = NDArray[np.float64]

_UNSUPPORTED = (
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "thresholding",
)
_ALMOST_ZERO = 2.0**-24
"""diffusers' last cumulative alpha under zero terminal SNR for samplers whose sigmas must be finite."""


class NoiseSchedule:
    """What a scheduler config says, as float64 arrays over the training steps, the cleanest first.

    `alphas_cumprod` [T]; `train_sigmas` [T] = sqrt((1 - a) / a). Raises `ValueError` for a config that asks
    for what no sampler here follows.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        for flag in _UNSUPPORTED:
            if config.get(flag):
                raise ValueError(f"the scheduler config sets {flag}, which no sampler here follows")
        self.config = dict(config)
        self.prediction_type: str = config.get("prediction_type", "epsilon")
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {self.prediction_type!r} is not known")
        self.train_steps: int = config.get("num_train_timesteps", 1000)
        self.alphas_cumprod: Floats = _alphas_cumprod(config)
        finite = self.alphas_cumprod.copy()
        if config.get("rescale_betas_zero_snr"):
            finite[-1] = _ALMOST_ZERO
        self.train_sigmas: Floats = np.sqrt((1 - finite) / finite)

    def spaced(self, spacing: TimestepSpacing) -> NoiseSchedule:
        """The same noise with its steps spaced otherwise; `karras` leaves the timesteps to its sigmas."""
        karras = spacing == "karras"
        own = {} if karras else {"timestep_spacing": spacing}
        return NoiseSchedule({**self.config, "use_karras_sigmas": karras, **own})

    def timesteps(self, count: int, default_spacing: str) -> Floats:
        """[count] spaced steps, the noisiest first; linspace is not rounded (arXiv 2305.08891, table 2)."""
        spacing = self.config.get("timestep_spacing", default_spacing)
        if spacing == "linspace":
            return np.linspace(0, self.train_steps - 1, count, dtype=np.float32)[::-1].astype(np.float64)
        if spacing == "leading":
            steps = np.arange(count)[::-1] * (self.train_steps // count) + self.config.get("steps_offset", 0)
            return np.minimum(steps, self.train_steps - 1).astype(np.float64)
        if spacing == "trailing":
            steps = np.arange(self.train_steps, 0, -self.train_steps / count)
            return steps.round().astype(np.float64) - 1
        raise ValueError(f"timestep_spacing {spacing!r} is not known")

    def sigmas_at(self, timesteps: Floats) -> Floats:
        return np.interp(timesteps, np.arange(self.train_steps), self.train_sigmas)

    def predicted(self, alpha: Floats, sigma: Floats) -> tuple[Floats, Floats]:
        """P and Q of x0 = P*x + Q*model, where x = alpha*x0 + sigma*noise and alpha^2 + sigma^2 = 1.

        v-prediction: arXiv 2202.00512, appendix D.
        """
        if self.prediction_type == "epsilon":
            with np.errstate(divide="ignore"):
                return 1 / alpha, -sigma / alpha
        if self.prediction_type == "v_prediction":
            return alpha, -sigma
        return np.zeros_like(alpha), np.ones_like(alpha)

    def final_sigma(self) -> float:
        """What the last step aims at."""
        return float(self.train_sigmas[0]) if self.config.get("final_sigmas_type") == "sigma_min" else 0.0

    def karras(self, sigma_max: float, sigma_min: float, count: int) -> tuple[Floats, Floats]:
        """[count] sigmas by arXiv 2206.00364 (5), rho 7, and the timesteps that they stand for."""
        low, high = sigma_min ** (1 / 7), sigma_max ** (1 / 7)
        sigmas = (high + np.linspace(0, 1, count) * (low - high)) ** 7
        steps = np.arange(self.train_steps, dtype=np.float64)
        return sigmas, np.interp(np.log(sigmas), np.log(self.train_sigmas), steps)


def _alphas_cumprod(config: Mapping[str, Any]) -> Floats:
    """[T], in the float32 rounding that the checkpoint was trained with, widened."""
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    elif schedule == "squaredcos_cap_v2":
        bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = torch.tensor(np.minimum(1 - bar[1:] / bar[:-1], 0.999), dtype=torch.float32)
    else:
        raise ValueError(f"beta_schedule {schedule!r} is not known")
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    if config.get("rescale_betas_zero_snr"):  # arXiv 2305.08891, algorithm 1
        root = alphas_cumprod.sqrt()
        alphas_cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return alphas_cumprod.double().numpy()
