"""What every runner's process does: loads its models beside its server, and hands jobs to what steps them.

A runner answers from its first moment: while it loads, `state` says so and jobs are refused with UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, Literal, Protocol, TypedDict

import bentoml
from pydantic import ValidationError

from jobs import Done, ErrorKind, Event, Failed, Job, JobError, WholeJob, decode_job, encode_event
from models.catalog import CatalogError, Entry, Modality, models_served
from runners.failures import UNKNOWN_JOB
from runners.guard import GuardedService
from runners.metrics import watch_gpu_memory
from runners.placement import Placement, PlacementError, place, use_own_cards
from settings import Settings, SettingsError, settings
from tracing import start_tracing, stop_tracing

log = logging.getLogger("triptych.runner")

SERVICE: Any = {
    "service_class": GuardedService,
    "workers": 1,
    # A stream is cut at its runner's timeout, `watch` too, whose end says that the runner has gone. So it is
    # ten years, and deadlines travel in jobs.
    "traffic": {"timeout": 10 * 365 * 86_400},
    # The client that BentoML keeps to a runner closes its session, calls in flight included, at these bounds.
    "runner_connection": {"max_requests": 10**9, "max_age": 1e9},
    # The gateway logs each request once.
    "logging": {"access": {"enabled": False}},
}
"""The options of every runner's `bentoml.service`."""

CRASHED = 70  # EX_SOFTWARE
BEAT_S = 1.0
LOOK_AGAIN_S = 10.0
"""How often a runner looks for files that are not here."""


class RunnerState(TypedDict):
    state: Literal["loading", "ready", "down"]
    why: str
    models: list[str]


_LOADING: RunnerState = {"state": "loading", "why": "its models are being loaded", "models": []}


class Backend(Protocol):
    """What steps jobs: our engine, or one that brings its own."""

    def submit(self, job: Job) -> AsyncIterable[Event]: ...
    def cancel(self, job_id: str) -> bool: ...
    def resident(self) -> list[dict[str, Any]]: ...
    def drain(self, timeout_s: float) -> bool: ...
    def close(self) -> None: ...


class Runner:
    """The base of the three services: one modality, one process, one backend."""

    modality: Modality
    replica: int = 0
    """Which of several processes on this machine; each is a service of its own (`replica_of`)."""
    look_again_s: float = LOOK_AGAIN_S

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._state: RunnerState = _LOADING
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def build(self, entries: dict[str, Entry], placement: Placement, options: Settings) -> Backend:
        """Loads the models and starts what steps them; on the loading thread."""
        raise NotImplementedError

    def cpu_threads(
        self,
        entries: dict[str, Entry],  # noqa: ARG002 - for who overrides it
        placement: Placement,
        options: Settings,  # noqa: ARG002
    ) -> int:
        """Of a forward on a CPU."""
        return placement.cpu_threads

    def warm_up_job(self, entries: dict[str, Entry]) -> Job | None:
        """A small real job, answered before the runner says ready; None where nothing takes one."""
        raise NotImplementedError

    def resident(self) -> list[dict[str, Any]]:
        """The models in memory, as `Residency.resident` tells them."""
        return [] if self._backend is None else self._backend.resident()

    # --- the calls of a runner ------------------------------------------------------------------------

    @bentoml.api
    async def run(self, job: str) -> AsyncGenerator[str, None]:
        """Takes a job as ASCII JSON, gives its events as lines of ASCII JSON; the last is done or failed."""
        try:
            order = decode_job(job)
            if isinstance(order, WholeJob):  # which are asked by `answer`
                raise UNKNOWN_JOB.as_error()
            events = self.ready_backend().submit(order)
        except ValidationError:
            yield encode_event(UNKNOWN_JOB)
            return
        except JobError as error:
            yield encode_event(Failed.of(error))
            return
        try:
            async for event in events:
                yield encode_event(event)
        finally:
            self.ready_backend().cancel(order.id)  # when the reader has gone; after the end it does nothing

    @bentoml.api
    async def cancel(self, id: str) -> bool:
        """Ends a job between two steps; False when none of that id is at work."""
        return self._backend is not None and self._backend.cancel(id)

    @bentoml.api
    async def state(self) -> dict[str, Any]:
        return {**self._state, "resident": self.resident()}

    @bentoml.api
    async def watch(self) -> AsyncGenerator[str, None]:
        """A line now and then while this process lives: who reads it knows at once when it has gone."""
        while True:
            yield "\n"
            await asyncio.sleep(BEAT_S)

    def __is_ready__(self) -> bool:
        """For BentoML's /readyz of a runner that is served alone: ready is with its models loaded."""
        return self._state["state"] == "ready"

    # --- life cycle -----------------------------------------------------------------------------------------

    @bentoml.on_shutdown
    def stop(self) -> None:
        if self._backend is not None:
            self._backend.drain(settings().drain_s)
            self._backend.close()
        stop_tracing()

    def _load(self) -> None:
        from models.loading import LoadError  # late, with torch: the service's description needs neither

        try:
            start_tracing()
            options = settings()
            entries = models_served(options.profile, self.modality)
            if not entries:
                self._down(f"the profile {options.profile} has no {self.modality} model")
                return
            self._wait_for_files(entries)
            placement = place(self.modality, options, replica=self.replica)
            use_own_cards(placement)
            watch_gpu_memory()
            _share_cores(placement, self.cpu_threads(entries, placement, options))
            # It advises a package that fetches code from a hub at the import, and does without it as well.
            logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
            entries = placement.applied(entries)
            backend = self.build(entries, placement, options)
            job = self.warm_up_job(entries)
            if job is not None:
                asyncio.run(_answer(backend, job))
        except (LoadError, CatalogError, SettingsError, PlacementError) as error:
            self._down(str(error))
        except Exception:
            log.exception("The %s runner could not start", self.modality)
            self._down("it could not start; its log says why")
        else:
            self._backend = backend
            self._state = {"state": "ready", "why": "", "models": list(entries)}
            log.info("The %s runner is ready: %s on %s", self.modality, ", ".join(entries), placement.device)

    def _wait_for_files(self, entries: dict[str, Entry]) -> None:
        """Returns when all models that are wanted at the start are on this machine; says so while one is not.

        Another process may be fetching them onto this volume, and a hub may be reached later.
        """
        from models.loading import LoadError
        from models.sources import find_folder

        whole = True
        while True:
            try:
                for entry in entries.values():
                    parts = (entry.source, entry.config, entry.loras) if entry.load == "start" else ()
                    for part in filter(None, parts):
                        find_folder(part, entry)
            except LoadError as error:
                whole = False
                if self._state["why"] != str(error):
                    self._down(str(error))
            else:
                if whole:
                    break
                whole = True  # what has just come may not be all of it yet: looked at once more
            time.sleep(self.look_again_s)
        self._state = _LOADING

    def _down(self, why: str) -> None:
        log.error("The %s runner is down: %s", self.modality, why)
        self._state = {"state": "down", "why": why, "models": []}

    def ready_backend(self) -> Backend:
        if self._backend is None:
            loading = self._state["state"] == "loading"
            doing = "loading its models" if loading else "down"
            raise JobError(
                ErrorKind.UNAVAILABLE,
                f"The {self.modality} runner is {doing}; try again later.",
                code="runner_not_ready",
                retry_after_s=5 if loading else 60,
            )
        return self._backend


def replica_of(service: bentoml.Service[Any], number: int) -> bentoml.Service[Any]:
    """The same runner once more on this machine, `number` counted from 0: a process of its own, which its
    gateway can name. BentoML's `workers` share a socket: a cancel would reach any of them."""
    again = type(f"{service.name}{number + 1}", (service.inner,), {"replica": number})
    return bentoml.service(name=again.__name__, **SERVICE)(again)


def crash() -> None:
    """Ends the process, which the supervisor starts anew: an engine that failed has lost its rows."""
    os._exit(CRASHED)


def _share_cores(placement: Placement, threads: int) -> None:
    """Before torch is imported. Threads of runners that share the cores must not spin as they wait for each
    other; those of one alone should, for a small model's operations are shorter than a thread's waking."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if not placement.alone:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


async def _answer(backend: Backend, job: Job) -> None:
    async for event in backend.submit(job):
        if isinstance(event, Failed):
            raise RuntimeError(f"The warm-up failed: {event.message}")
        if isinstance(event, Done):
            return
