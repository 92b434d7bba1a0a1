"""Models of the catalog, loaded and put on our step engine."""

from __future__ import annotations

import logging
import time
from typing import Any

from models.catalog import Entry, Modality
from models.loading import load_model
from models.protocol import Model
from runners.engine import Engine
from runners.hosting import crash
from runners.metrics import EngineMetrics
from runners.placement import Placement
from settings import Settings

log = logging.getLogger("triptych.runner")


def step_engine(
    modality: Modality, entries: dict[str, Entry], placement: Placement, options: Settings
) -> Engine:
    """Loads and warms up each model, then starts the engine. Raises `models.loading.LoadError`."""
    models: dict[str, Model[Any, Any]] = {}
    for name, entry in entries.items():
        started = time.monotonic()
        models[name] = load_model(name, entry, placement.device)
        loaded = time.monotonic()
        models[name].warm_up()
        log.info(
            "Loaded %s in %.1f s, warmed up in %.1f s", name, loaded - started, time.monotonic() - loaded
        )
    engine = Engine(models, EngineMetrics(modality), queue_size=options.queue_size, on_crash=crash)
    engine.start()
    return engine
