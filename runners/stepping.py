"""Models of the catalog, loaded and put on our step engine."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from models.catalog import Entry, Modality
from models.loading import LoadError, load_model, weight_bytes
from runners.engine import Engine
from runners.hosting import crash
from runners.metrics import EngineMetrics
from runners.placement import Placement
from runners.residency import Place, Residency
from settings import Settings

log = logging.getLogger("triptych.runner")


def step_engine(
    modality: Modality, entries: dict[str, Entry], placement: Placement, options: Settings
) -> Engine:
    """Loads what is to be loaded at the start, then starts the engine. Raises `models.loading.LoadError`."""
    metrics = EngineMetrics(modality, replica=placement.replica)
    return engine_over(loaded_models(entries, placement, options), metrics, entries, options)


def engine_over(
    models: Residency, metrics: EngineMetrics, entries: Iterable[str], options: Settings
) -> Engine:
    """An engine, started, that serves those of the models that `entries` names."""
    engine = Engine(
        models,
        metrics,
        names=list(entries),
        queue_size=options.queue_size,
        on_crash=crash,
    )
    engine.start()
    return engine


def loaded_models(entries: dict[str, Entry], placement: Placement, options: Settings) -> Residency:
    """The models of the entries, those in memory that are to be at the start. Raises `LoadError`."""
    places = {
        name: Place(
            load=partial(_loaded, name, entry, placement),
            size_bytes=weight_bytes(entry, placement.device),
            keep_alive_s=entry.keep_alive_s,
        )
        for name, entry in entries.items()
    }
    budget = round(options.memory_gib * 2**30) or None
    try:
        models = Residency(places, budget_bytes=budget, freed=_freed)
    except ValueError as error:
        raise LoadError(f"{error}: TRIPTYCH_MEMORY_GIB is too little for it") from error
    for name, entry in entries.items():
        if entry.load == "start":
            models.preload(name)
    return models


def _loaded(name: str, entry: Entry, placement: Placement) -> Any:
    started = time.monotonic()
    model = load_model(name, entry, placement.device, placement.room.get(name))
    loaded = time.monotonic()
    model.warm_up()
    _freed()  # loading makes much that is thrown away
    log.info("Loaded %s in %.1f s, warmed up in %.1f s", name, loaded - started, time.monotonic() - loaded)
    return model


def _freed() -> None:
    """Models hold themselves in circles. Torch keeps the memory of a GPU for its next tensors, and the C
    library that of the machine: a quarter of a GiB once Stable Diffusion 1.5 is loaded."""
    gc.collect()
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # not every C library has it
        trim(0)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
