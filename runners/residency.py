"""Which of a runner's models are in memory: loaded at the start or at first use, within a budget.

The one least recently used leaves when another needs its room, and each leaves by itself after its time to
live. Knows no torch: how a model is loaded and its memory given back are functions that it is handed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs import ErrorKind, JobError

log = logging.getLogger("triptych.runner")

PATIENCE_S = 1.0
"""After so long a request that waits for room goes before newcomers of the models that are in memory."""


@dataclass(slots=True, kw_only=True)
class Place:
    """One model, in memory or not. Times are `time.monotonic()` seconds."""

    load: Callable[[], Any]
    size_bytes: int = 0
    keep_alive_s: float = -1.0
    """Seconds without a job after which it leaves; below 0 it stays until its room is needed."""
    asked_s: float | None = None
    """The same by the last job that said so, while the model is there."""
    model: Any = None
    users: int = 0
    last_used: float = 0.0
    timer: threading.Timer | None = None
    leaves_at: float | None = None


class Residency:
    """Thread-safe. `borrow` a model for a job, `give_back` once for each borrow."""

    def __init__(
        self,
        places: Mapping[str, Place],
        *,
        budget_bytes: int | None = None,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        """`freed` is called when a model has left, to return its memory to the machine.

        Raises `ValueError` for a model larger than the whole budget.
        """
        for name, place in places.items():
            if budget_bytes is not None and place.size_bytes > budget_bytes:
                raise ValueError(f"{name} takes {place.size_bytes} bytes, and the runner has {budget_bytes}")
        self._places = dict(places)
        self._budget = budget_bytes
        self._freed = freed
        self._changed = threading.Condition()
        self._loading: str | None = None
        self._short_of_room: set[float] = set()
        """When they arrived who wait until models in use get idle; a load in progress is nobody's fault."""

    @classmethod
    def of(cls, models: Mapping[str, Any]) -> Residency:
        """Models that are loaded and stay."""
        return cls(
            {name: Place(load=partial(models.__getitem__, name), model=models[name]) for name in models}
        )

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def present(self, name: str) -> bool:
        return self._places[name].model is not None

    def preload(self, name: str) -> None:
        """Loads a model that fits beside those there; raises what its loading raises."""
        place = self._places[name]
        with self._changed:
            if place.model is not None or not self._fits(place.size_bytes):
                return
        self._put(name, place, place.load(), users=0)

    def borrow(self, name: str, wanted: Callable[[], bool] = lambda: True) -> Any:
        """The model, loaded first if need be; blocks meanwhile, and while all room is in use.

        Raises `JobError`: UNAVAILABLE when it cannot be loaded, CANCELLED once it is `wanted` no more.
        """
        place = self._places[name]
        arrived = time.monotonic()
        with self._changed:
            try:
                while True:
                    if not wanted():
                        raise JobError(ErrorKind.CANCELLED, "The request was cancelled.")
                    if place.model is not None and not self._others_first(arrived):
                        return self._lend(place, place.model)
                    if place.model is None and self._loading is None:
                        if self._make_room(place.size_bytes):
                            self._loading = name
                            break
                        self._short_of_room.add(arrived)
                    self._changed.wait(PATIENCE_S)
            finally:
                self._short_of_room.discard(arrived)
                self._changed.notify_all()
        return self._loaded(name, place)

    def give_back(self, name: str, keep_alive_s: float | None = None) -> None:
        """Ends one borrow; `keep_alive_s` is the model's until it leaves, None leaves it as it was."""
        place = self._places[name]
        with self._changed:
            place.users -= 1
            place.last_used = time.monotonic()
            if keep_alive_s is not None:
                place.asked_s = keep_alive_s
            stays_s = place.keep_alive_s if place.asked_s is None else place.asked_s
            if place.users == 0 and stays_s >= 0:
                self._leave_later(name, place, stays_s)
            self._changed.notify_all()

    def resident(self) -> list[dict[str, Any]]:
        """The models in memory: `name`, `size_bytes`, and `leaves_in_s`, None for one that stays."""
        now = time.monotonic()
        with self._changed:
            return [
                {
                    "name": name,
                    "size_bytes": place.size_bytes,
                    "leaves_in_s": None if place.leaves_at is None else max(0.0, place.leaves_at - now),
                }
                for name, place in self._places.items()
                if place.model is not None
            ]

    # --- under the lock -------------------------------------------------------------------------------------

    def _others_first(self, arrived: float) -> bool:
        """Somebody has waited for room for long, so the models here must get idle."""
        oldest = min(self._short_of_room, default=arrived)
        return oldest < arrived and time.monotonic() - oldest > PATIENCE_S

    def _lend(self, place: Place, model: Any) -> Any:
        place.users += 1
        if place.timer is not None:
            place.timer.cancel()
        place.timer = place.leaves_at = None
        return model

    def _fits(self, size_bytes: int) -> bool:
        used = sum(place.size_bytes for place in self._places.values() if place.model is not None)
        return self._budget is None or used + size_bytes <= self._budget

    def _make_room(self, size_bytes: int) -> bool:
        """Lets idle models go, the least recently used first, if that is enough."""
        idle = [
            (place.last_used, name)
            for name, place in self._places.items()
            if place.model is not None and place.users == 0
        ]
        could_go = sum(self._places[name].size_bytes for _, name in idle)
        if not self._fits(size_bytes - could_go):
            return False
        for _, name in sorted(idle):
            if self._fits(size_bytes):
                break
            self._leave(name)
        return True

    def _leave_later(self, name: str, place: Place, stays_s: float) -> None:
        if stays_s == 0:
            self._leave(name)
            return
        place.leaves_at = time.monotonic() + stays_s
        place.timer = threading.Timer(stays_s, self._time_is_up, (name,))
        place.timer.daemon = True
        place.timer.start()

    def _leave(self, name: str) -> None:
        place = self._places[name]
        if place.timer is not None:
            place.timer.cancel()
        place.model = place.timer = place.leaves_at = place.asked_s = None
        self._freed()
        log.info("%s has left memory", name)

    # --- on other threads -----------------------------------------------------------------------------------

    def _time_is_up(self, name: str) -> None:
        with self._changed:
            place = self._places[name]
            if place.users == 0 and place.leaves_at is not None and place.model is not None:
                self._leave(name)
                self._changed.notify_all()

    def _loaded(self, name: str, place: Place) -> Any:
        try:
            return self._put(name, place, place.load(), users=1)
        except Exception as error:
            log.exception("%s could not be loaded", name)
            message = f"The model {name} could not be loaded; the runner's log says why."
            raise JobError(ErrorKind.UNAVAILABLE, message, retry_after_s=30) from error
        finally:
            with self._changed:
                self._loading = None
                self._changed.notify_all()

    def _put(self, name: str, place: Place, model: Any, *, users: int) -> Any:
        with self._changed:
            place.model = model
            place.users = users
            place.last_used = time.monotonic()
            log.info("%s is in memory", name)
        return model
