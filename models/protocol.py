"""What an engine steps: the verbs of a model. No torch here, so the engine and its tests need none.

A job becomes a *row*. `prepare` makes it, `reserve` admits it, `step` advances it with its neighbours from
lane to lane until `lane` says None, `finish` makes its result, `release` gives back what it held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from jobs import Event, Result

J = TypeVar("J", contravariant=True)
R = TypeVar("R")


class OutOfMemoryError(Exception):
    """A step did not fit; it changed nothing, and fewer rows may fit."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Rows that can share one forward: the same model, stage and shape."""

    model: str
    stage: str
    shape: tuple[int, ...] = ()
    beside: bool = False
    """Whether its steps may run on a second thread while another lane's runs on the engine's; the two have
    no row in common."""


class Model(Protocol[J, R]):
    """One loaded model. `J` is its job, `R` its row: any object of the model's own, compared by identity.

    `step`, `reserve` and `lane` run on the engine's thread; `prepare`, `finish` and the `step` of a lane that
    is `beside` run next to it, at once.
    """

    name: str

    def prepare(self, job: J) -> R:
        """Checks, tokenises, loads what the row needs. May block; raises `jobs.JobError` for a bad job."""
        ...

    def reserve(self, row: R) -> bool:
        """Takes the memory the row needs (a cache slot, an adapter's place), or False: not now, ask again."""
        ...

    def lane(self, row: R) -> Lane | None:
        """Where the row's next step belongs; None when it is ready to finish."""
        ...

    def cost(self, row: R) -> float:
        """What the row's next step costs, in the unit of `budget` (forward rows: a guided row is two)."""
        ...

    def budget(self, lane: Lane) -> float:
        """The most cost that one step of this lane takes."""
        ...

    def step(self, lane: Lane, rows: Sequence[R]) -> Sequence[Sequence[Event]]:
        """Advances all rows by one fused forward, or raises and advances none; gives each row's events.

        Everything random in it is a function of (seed, step): a repeated step is the same step.
        Raises `OutOfMemoryError` when fewer rows might do.
        """
        ...

    def finish(self, row: R) -> Result:
        """Encodes the result (a PNG, a WAV)."""
        ...

    def release(self, row: R) -> None:
        """Gives back what `prepare` and `reserve` took; called once for a prepared row, however it ends."""
        ...

    def warm_up(self) -> None:
        """Runs (and compiles) the forwards of every bucket once, before the runner says ready."""
        ...


class WholeModel(Protocol[J, R]):
    """A loaded model that answers a job by one stateless call. It is called by one thread at a time."""

    name: str

    def prepare(self, job: J) -> R:
        """Checks and tokenises; raises `jobs.JobError` for a bad job."""
        ...

    def answer(self, rows: Sequence[R]) -> Sequence[Result]:
        """The results of all rows, or raises. Raises `OutOfMemoryError` when fewer rows might do."""
        ...

    def warm_up(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Everything a family needs to load a model: the weights are on this machine by now."""

    name: str
    folder: Path
    """A folder in the hub's layout (or one `.safetensors` file where the family says so)."""
    device: str = "cpu"
    """As torch names it: `cpu`, `cuda:0`."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`."""
    quantization: str | None = None
    """None, `int8` or `int4` (bitsandbytes), `fp8` (vLLM)."""
    max_rows: int = 16
    """The most rows in flight: slots of a cache, pictures in one forward."""
    offload: bool = False
    """Whether its weights stay on the CPU, and each layer's go to the device for its part of a forward
    (language models: those that `room` has no place for)."""
    room: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes of weights that each device takes of it, the first `device`; empty where that takes all."""
    config: Path | None = None
    """For a single file: the folder in the hub's layout that its configuration and tokenizer come from."""
    safety_checker: bool = True
    """Whether the checkpoint's safety checker looks at each picture, where it brings one."""
    watermark: bool = False
    """Whether pictures carry the invisible mark."""
    metadata: bool = True
    """Whether pictures carry the parameters that they were made with."""
    lora_memory_bytes: int = 1 << 30
    """What the LoRAs that are ready to be mixed may take together."""
    language: str = "en"
    """ISO 639-1: of voices whose names do not tell it (speech)."""
    loudness_lufs: float | None = None
    """What speech is levelled to; None leaves it as the model makes it."""
    guidance_scale: float = 7.5
    """Of pictures whose request names none."""
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Words before a text to embed, by what it is for."""
    loras: Path | None = None
    """The only folder LoRA files are taken from."""
