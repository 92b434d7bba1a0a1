"""A sampler's steps as a table of coefficients, and how one is made from what a step does to a picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from models.image.schedule import Floats


class Column(IntEnum):
    """The columns of a table."""

    TIMESTEP = 0
    SCALE = 1
    A = 2
    B = 3
    C = 4
    D = 5
    P = 6
    Q = 7


@dataclass(frozen=True, slots=True)
class Table:
    """One sampler at one step count.

    `steps` is [N, 8] float32, a row a step (see `Column`), of which the first `begin` are left out by a row
    that begins from a picture; `noise_scale` is the standard deviation of the noise a picture starts from.
    `levels` [N + 1, 2] float32 is how much picture and how much noise there is before each step and after
    the last.
    """

    steps: NDArray[np.float32]
    levels: NDArray[np.float32]
    noise_scale: float
    begin: int = 0

    @property
    def uses_history(self) -> bool:
        return bool(np.any(self.steps[:, Column.C] != 0.0))

    def __len__(self) -> int:
        return len(self.steps)


def make_table(
    timesteps: Floats,
    scale: Floats | float,
    keep: Floats,
    weight: Floats,
    p: Floats,
    q: Floats,
    *,
    signal: Floats,
    level: Floats,
    history: Floats | float = 0.0,
    noise: Floats | float = 0.0,
    noise_scale: float = 1.0,
) -> Table:
    """From x' = keep*x + weight*x0 + history*h + noise*z to columns: x0 is P*x + Q*model.

    Before a step x is signal * picture + level * noise; after the last it is the picture.
    """
    columns = (timesteps, scale, keep + weight * p, weight * q, history, noise, p, q)
    steps = np.stack([np.broadcast_to(column, timesteps.shape) for column in columns], axis=1)
    levels = np.stack([np.append(signal, 1.0), np.append(level, 0.0)], axis=1)
    return Table(steps.astype(np.float32), levels.astype(np.float32), noise_scale)


def begun(table: Table, begin: int) -> Table:
    """The same steps from `begin` on: the first of them has no history, and so is of first order."""
    steps = table.steps.copy()
    second = -steps[begin, Column.C]
    # weight + second is what x0 counts for, x0 = P*x + Q*model: what `second` added goes.
    steps[begin, Column.A] -= second * steps[begin, Column.P]
    steps[begin, Column.B] -= second * steps[begin, Column.Q]
    steps[begin, Column.C] = 0.0
    return replace(table, steps=steps, begin=begin)
