"""How much memory a runner needs: weights at a precision, its cache, what a forward keeps, its process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.catalog import QUANTIZED, STEPS_BESIDE, Entry, Memory, Modality
from models.footprint import FIRST_LENGTH, memory_of
from models.precision import automatic
from runners.machine import GIB

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5625, "fp8": 1.0}
"""Of one weight. int4 keeps a float32 scale for every 64 weights beside them."""

STEPS = ("", "int8", "int4")
"""What `auto` steps down to where the plain precision does not fit; the first is the plain one."""

WORTH_SHRINKING = 1 / 3
"""Of a model's weights: where fewer are of linear layers, as in Stable Diffusion 1.5, `auto` shrinks none."""

LEAST_ON_DEVICE = 0.25
"""Of an offloaded language model's weights: with less on its device a token is hardly ever worth its wait."""

LAYER_ON_CARD = 0.03
"""Of an offloaded picture model's weights: its largest layer, for each is brought to the card alone."""

GPU_PROCESS_GIB = 0.6
"""What each process takes of a card before its model: CUDA's context and its libraries' kernels."""

CPU_PROCESS_GIB = {Modality.TEXT: 0.50, Modality.IMAGE: 0.65, Modality.SPEECH: 0.55}
"""Resident memory of a runner's process without its model: Python, torch and what the family imports
(measured; `tests/e2e/test_memory.py` holds it to that)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """GiB, by what they are for."""

    weights: float = 0.0
    cache: float = 0.0
    work: float = 0.0
    process: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.work + self.process


@dataclass(frozen=True, slots=True)
class Load:
    """One model of a runner; `memory` None where nothing tells it."""

    name: str
    precision: str
    """The catalog's: `auto` may step down, any other stays."""
    rows: int
    memory: Memory | None
    step: int = 0
    """How far `auto` has stepped down."""
    offload: bool = False
    """Weights are brought when needed: of a language model those that its device has no room for, of a
    picture model on a card all of them."""
    plain_on_cpu: str = "float32"
    """What `auto` is on a CPU before it steps down."""

    def chosen(self, device: str) -> str:
        """The precision on `device` (`cpu` or `cuda`)."""
        if self.precision != "auto":
            return self.precision
        return STEPS[self.step] or self._plain(device)

    def _plain(self, device: str) -> str:
        """What of a quantized model is not."""
        return self.plain_on_cpu if device == "cpu" else "bfloat16"

    def can_step_down(self) -> bool:
        return (
            self.precision == "auto"
            and not self.offload  # bitsandbytes takes no part of a model that is elsewhere
            and self.memory is not None
            and self.memory.quantizable > WORTH_SHRINKING * self.memory.parameters
            and self.step + 1 < len(STEPS)
        )

    def parts(self, device: str, rows: int | None = None) -> Parts:
        """On `device`, with room for `rows` requests in flight (its own number without)."""
        memory, rows = self.memory, self.rows if rows is None else rows
        if memory is None:
            return Parts()
        precision = self.chosen(device)
        quantized = precision in QUANTIZED
        plain = BYTES[self._plain(device) if quantized else precision]
        shrunk = memory.quantizable if quantized else 0
        weights = shrunk * BYTES[precision] + (memory.parameters - shrunk) * plain + memory.packed_bytes
        slots = rows + 1  # one is padding's
        if device == "cpu" and memory.cache_rows > 1:
            slots = -(-rows // memory.cache_rows) * memory.cache_rows
        cache = slots * memory.context * memory.cache_values_per_token
        return Parts(
            weights=weights * self.part_on(device) / GIB,
            cache=cache * plain / GIB,
            work=rows * memory.work_values * plain / GIB,
        )

    @property
    def writes(self) -> bool:
        """It keeps a cache, as language models do (and Bark's)."""
        return self.memory is not None and self.memory.cache_values_per_token > 0

    def part_on(self, device: str) -> float:
        """Of its weights, what is on its device for good."""
        if not self.offload:
            return 1.0
        if self.writes:
            return LEAST_ON_DEVICE
        return 1.0 if device == "cpu" else LAYER_ON_CARD

    def is_laid(self, *, spanning: bool) -> bool:
        """Whether accelerate lays it over devices, where its runner is `spanning` cards or on one."""
        return self.writes and (spanning or self.offload)

    def whole_gib(self, device: str) -> float:
        """Of its weights, those included that an offloaded model may keep elsewhere."""
        return self.parts(device).weights / self.part_on(device)

    def first_cache_gib(self, device: str) -> float:
        """What its cache takes in our engine before any row needs more."""
        if self.memory is None:
            return 0.0
        return (self.rows + 1) * min(self.memory.context, FIRST_LENGTH) * self.token_bytes(device) / GIB

    def token_bytes(self, device: str) -> float:
        """Of the cache, for each token."""
        precision = self.chosen(device)
        each = BYTES[self._plain(device) if precision in QUANTIZED else precision]
        return self.memory.cache_values_per_token * each if self.memory else 0.0


@dataclass(frozen=True, slots=True)
class Want:
    """A runner that is wanted, with all the models of its profile."""

    modality: Modality
    loads: tuple[Load, ...]
    replicas: int = 1
    budget_gib: float = 0.0
    """Of weights in memory at once; the least recently used leave for others. 0 is without a bound."""
    steps_at_once: int = 1
    """On a CPU: of each process."""

    def parts(self, device: str) -> Parts:
        """What it cannot do without: on a card, text's cache is one request's, and it takes what is left.

        Of models that take turns, those that are in memory together at the worst; one of them steps.
        """
        process = CPU_PROCESS_GIB[self.modality] if device == "cpu" else GPU_PROCESS_GIB
        rows = 1 if device != "cpu" and self.modality is Modality.TEXT else None
        each = [load.parts(device, rows) for load in self.loads]
        left = self.budget_gib or float("inf")
        weights = cache = 0.0
        for parts in sorted(each, key=lambda one: one.cache / (one.weights or 1), reverse=True):
            share = min(1.0, left / parts.weights) if parts.weights else 1.0
            weights, cache = weights + share * parts.weights, cache + share * parts.cache
            left -= share * parts.weights
        return Parts(weights, cache, max((parts.work for parts in each), default=0.0), process)

    def stepped_down(self) -> Want | None:
        """The same with the model that saves most one precision lower; None where none can."""
        able = [load for load in self.loads if load.can_step_down()]
        if not able:
            return None
        largest = max(able, key=lambda load: load.parts("cuda").weights)
        return self._with(largest, replace(largest, step=largest.step + 1))

    def with_fewer_rows(self) -> Want | None:
        """The same with half the requests in flight; None where that helps nothing."""
        able = [load for load in self.loads if load.rows > 1 and load.memory is not None]
        if not able:
            return None
        largest = max(able, key=lambda load: load.parts("cuda").cache + load.parts("cuda").work)
        return self._with(largest, replace(largest, rows=largest.rows // 2))

    def _with(self, old: Load, new: Load) -> Want:
        return replace(self, loads=tuple(new if load is old else load for load in self.loads))


def want(
    modality: Modality, entries: dict[str, Entry], replicas: int = 1, *, budget_gib: float = 0.0
) -> Want:
    """A runner of the catalog's entries."""
    loads = tuple(
        Load(
            name,
            entry.precision,
            entry.max_rows,
            memory_of(entry),
            offload=entry.offload,
            plain_on_cpu=automatic(entry.modality, "cpu"),
        )
        for name, entry in entries.items()
    )
    beside = any(entry.family in STEPS_BESIDE for entry in entries.values())
    return Want(modality, loads, replicas, budget_gib, steps_at_once=2 if beside else 1)
