"""What every recipe needs: seeds, resumable state, a loss log and its plot, a moving average."""

from __future__ import annotations

import argparse
import csv
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed


def add_common_args(parser: argparse.ArgumentParser, *, steps: int, out: str) -> argparse.ArgumentParser:
    """Add the options that all recipes share.

    Args:
        parser: The recipe's own parser.
        steps: The default number of optimizer steps.
        out: The default folder for checkpoints and logs, relative to the project (git ignores `var/`).
    """
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps in all")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for checkpoints and logs")
    return parser


def prepare(args: argparse.Namespace) -> torch.device:
    """Apply `--threads`, `--seed`, `--out` and `--device`; return the device to train on."""
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    set_seed(args.seed)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(args.device)


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, those of all CUDA devices included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` so that a crash leaves either the old file or the new one, never half of one.

    The global generators' states go along, so that a resumed run draws what an unbroken one would have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    generators = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    half = path.with_name(path.name + ".part")
    torch.save({"state": dict(state), "generators": generators}, half)
    half.replace(path)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote and put the generators back where they were.

    `path` is a recipe's own checkpoint: it is unpickled, so never point this at a file from elsewhere.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    saved = torch.load(path, map_location=device, weights_only=False)
    generators = saved["generators"]
    random.setstate(generators["python"])
    np.random.set_state(generators["numpy"])
    torch.set_rng_state(generators["torch"].cpu())
    return saved["state"]


class LossLog:
    """Losses by step in `<folder>/<name>.csv`, drawn into `<folder>/<name>.png`."""

    def __init__(self, folder: Path, name: str = "loss", *, resume_from: int = 0) -> None:
        """Open the log; rows of an earlier run up to step `resume_from` are kept, later ones dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        self.csv_path = folder / f"{name}.csv"
        self.png_path = folder / f"{name}.png"
        self.rows: list[dict[str, float]] = []
        if resume_from and self.csv_path.exists():
            with self.csv_path.open(newline="") as file:
                read = [
                    {key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)
                ]
            self.rows = [row for row in read if row["step"] <= resume_from]

    def add(self, step: int, **losses: float) -> None:
        """Note the named losses of one step."""
        self.rows.append({"step": float(step), **losses})

    def write(self) -> None:
        """Write the CSV anew, whole."""
        names = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
        with self.csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path: Path | None = None, *, title: str = "", log_scale: bool = True) -> Path:
        """Draw one line per loss as a small PNG (about 20 kB) and return its path."""
        # Imported here: only the recipes' machines need matplotlib, and it takes a second to load.
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(6.0, 3.2), dpi=80)
        for name in dict.fromkeys(name for row in self.rows for name in row if name != "step"):
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1)
        axes.set(xlabel="step", ylabel="loss", title=title, yscale="log" if log_scale else "linear")
        if self.rows:
            axes.legend()
        axes.grid(alpha=0.3)
        figure.tight_layout()
        target = path or self.png_path
        figure.savefig(target)
        plt.close(figure)
        return target


class Ema:
    """A moving average of a module's parameters and buffers, kept in fp32.

    `average <- decay_t * average + (1 - decay_t) * weights` with
    `decay_t = min(decay, (1 + t) / (10 + t))`, so that the first steps do not linger.
    """

    def __init__(self, module: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().clone().float() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Take in the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            self.average[name].lerp_(value.detach().float(), 1 - decay)

    def copy_to(self, module: torch.nn.Module) -> None:
        """Put the average into `module`, in the module's own precision."""
        module.load_state_dict(
            {name: self.average[name].to(value.dtype) for name, value in module.state_dict().items()}
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.updates = int(state["updates"])
        self.average = {name: value.clone() for name, value in state["average"].items()}


def fill_card(card: Path, name: str, text: str) -> None:
    """Put `text` between `<!-- name:begin -->` and `<!-- name:end -->` of a model card.

    Raises:
        ValueError: the card has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = card.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{card} has no markers {begin} and {end}")
    card.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def hardware(device: torch.device, threads: int) -> str:
    """What a model was trained on, in words, for its card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{threads or torch.get_num_threads()} CPU thread(s)"


def processes() -> tuple[int, int]:
    """This process's number and how many train together: more than one when started by `torchrun`."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return int(os.environ.get("RANK", "0")), count


def share_gradients(module: torch.nn.Module) -> None:
    """Give every process the mean of all processes' gradients."""
    grads = [weight.grad for weight in module.parameters() if weight.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce(flat)
    means = (flat / distributed.get_world_size()).split([grad.numel() for grad in grads])
    for grad, mean in zip(grads, means, strict=True):
        grad.copy_(mean.view_as(grad))
