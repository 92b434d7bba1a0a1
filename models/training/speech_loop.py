"""The loop that each stage of the speech recipe trains in: seeded by step, resumable, logged, averaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from models.training.common import Ema, LossLog, load_state, processes, save_state, share_gradients

StepLoss = Callable[[int, np.random.Generator], Tensor]
"""From a step's number and its own generator to the loss to descend."""

_CHECKPOINT_EVERY = 100
_LOG_EVERY = 10


@dataclass(frozen=True)
class Plan:
    """How one stage trains.

    Attributes:
        steps: Optimizer steps in all.
        rate: Peak learning rate.
        betas: AdamW's.
        weight_decay: AdamW's.
        average: Decay of the moving average that is kept at the end; 0 keeps the last weights instead.
        bf16: Whether matrix products are done in bfloat16.
    """

    steps: int
    rate: float
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    average: float = 0.0
    bf16: bool = True


@dataclass(frozen=True)
class Spent:
    """What a training took.

    Attributes:
        steps: Optimizer steps.
        wall_s: Seconds by the clock.
        cpu_s: Seconds of computing, all threads together: without the waiting of a busy machine.
    """

    steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


def learning_rate(step: int, plan: Plan, *, warmup: int = 50) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < warmup:
        return plan.rate * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, plan.steps - warmup))
    return plan.rate * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * done))))


def train(name: str, module: torch.nn.Module, step_loss: StepLoss, plan: Plan, out: Path, seed: int) -> Spent:
    """Train `module` in place to the plan's end, from the last checkpoint of `name` in `out` if there is one.

    Each step draws from a generator of (seed, step): a resumed run sees what an unbroken one would have.
    Processes that train together each draw a batch of their own; the first one keeps the books.

    Returns:
        What it took in all, the time before a resume included.
    """
    rank, count = processes()
    own = [rank] if rank else []
    checkpoint = out / f"{name}.pt"
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
    )
    average = Ema(module, plan.average) if plan.average else None
    step, before = 0, Spent()
    if checkpoint.exists():
        state = load_state(checkpoint, device)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        before = Spent(**state["spent"])
        step = before.steps
    log = LossLog(out, name, resume_from=step)
    started = time.monotonic() - before.wall_s, time.process_time() - before.cpu_s / count
    spent = before
    module.train()
    with Progress(disable=rank > 0) as progress:
        task = progress.add_task(name, total=plan.steps, completed=step)
        while step < plan.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, plan)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16):
                loss = step_loss(step, np.random.default_rng([seed, step, *own]))
            optimizer.zero_grad()
            loss.backward()
            if count > 1:
                share_gradients(module)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if average is not None:
                average.update(module)
            step += 1
            if step % _LOG_EVERY == 0:
                log.add(step, loss=float(loss.detach()))
                progress.update(task, completed=step, description=f"{name} {float(loss.detach()):.3f}")
            if rank == 0 and (step % _CHECKPOINT_EVERY == 0 or step == plan.steps):
                cpu_s = (time.process_time() - started[1]) * count
                spent = Spent(step, time.monotonic() - started[0], cpu_s)
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
                averaged = {"average": average.state_dict()} if average is not None else {}
                save_state(checkpoint, {**state, **averaged, "spent": asdict(spent)})
                log.write()
    if rank == 0:
        log.plot(title=name)
    if average is not None:
        average.copy_to(module)
    module.eval()
    return spent if rank == 0 else Spent()
