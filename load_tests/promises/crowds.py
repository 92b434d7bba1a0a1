"""Too many callers, callers who leave, callers who read slowly, and work that takes too long."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np

from load_tests.load import Request, offer, offer_in_turn, poisson
from load_tests.promises.asking import (
    LONG_PICTURE,
    PICTURE,
    STORY,
    at_work,
    metric,
    seconds_until_idle,
    service,
)
from load_tests.promises.rows import Row
from tests.e2e.process import Served

WORK = Request("/image", {**PICTURE, "num_inference_steps": 20})
IDLE_S = 30.0
"""After which a pooled connection is closed surely: aiohttp keeps one for 15 s."""


def overload(seconds: float) -> Sequence[Row]:
    """Ten times what it can do, in pictures, for so long."""
    with service() as served:
        offer_in_turn(served.url, [WORK] * 16, clients=16)  # warm-up
        before = offer_in_turn(served.url, [WORK] * 60, clients=16)
        peak = len(before) / max(sample.end_s for sample in before)
        alive_s: list[float] = []
        ends = threading.Event()

        def look() -> None:
            with httpx.Client(base_url=served.url, timeout=30) as client:
                while not ends.is_set():
                    began = time.monotonic()
                    client.get("/livez")
                    alive_s.append(time.monotonic() - began)
                    time.sleep(0.1)

        looking = threading.Thread(target=look)
        looking.start()
        count = round(10 * peak * seconds)
        samples = offer(served.url, [WORK] * count, poisson(count, 10 * peak, seed=1))
        ends.set()
        looking.join()
        deepest = metric(served, "triptych_queue_depth")
    good = [each for each in samples if each.good]
    refused = [each for each in samples if each.status in (429, 503)]
    told = all("Retry-After" in each.headers for each in refused)
    rate = len(good) / max(each.end_s for each in samples)
    refused_p99 = _p99_ms([each.end_s - each.due_s for each in refused])
    livez_p99 = _p99_ms(alive_s)
    others = len(samples) - len(good) - len(refused)
    return [
        Row(
            "at ten times the capacity the excess gets 429 or 503 with Retry-After",
            f"{len(refused)} of {len(samples)}, {others} other failures",
            bool(refused) and told and not others,
        ),
        Row("refusals take less than 100 ms (p99)", f"{refused_p99:.0f} ms", refused_p99 < 100),
        Row("good answers are 90 % of the peak", f"{rate:.2f}/s of {peak:.2f}/s", rate >= 0.9 * peak),
        Row("/livez takes less than 100 ms (p99)", f"{livez_p99:.0f} ms", livez_p99 < 100),
        Row("no queue is left", f"{deepest:g}", deepest == 0),
    ]


def _p99_ms(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99)) * 1e3 if seconds else float("nan")


def leavers(count: int) -> Sequence[Row]:
    """Clients that leave after half a second, sixteen at once."""
    with service() as served:
        gateway = served.runner("triptych")
        limit = httpx.Timeout(30, read=0.5)

        def leave(number: int) -> None:
            body = {**PICTURE, "num_inference_steps": 100, "seed": number, "stream": number % 2 == 0}
            with (
                suppress(httpx.HTTPError),
                httpx.stream("POST", f"{served.url}/image", json=body, timeout=limit),
            ):
                time.sleep(0.5)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(leave, range(128)))  # the gateway keeps its connections to the runner
            files = gateway.num_fds()
            list(pool.map(leave, range(count)))
        took_s = seconds_until_idle(served)
        left = at_work(served)
        # Connections to the runner that wait for another request are closed after a while, not at once.
        ends_at = time.monotonic() + IDLE_S
        while gateway.num_fds() - files > 5 and time.monotonic() < ends_at:
            time.sleep(0.1)
        more_files = gateway.num_fds() - files
    return [
        Row(
            f"{count} clients leave and no job is left after 1 s",
            f"{left:g} after {took_s:.2f} s",
            left == 0 and took_s < 1,
        ),
        Row("nor, once idle connections are closed, a file (+-5)", f"{more_files:+d}", more_files <= 5),
    ]


def deadlines() -> Sequence[Row]:
    with service(TRIPTYCH_TIMEOUT_S="2") as served:
        began = time.monotonic()
        status = httpx.post(f"{served.url}/image", json=LONG_PICTURE, timeout=60).status_code
        took_s = time.monotonic() - began
        idle_s = seconds_until_idle(served)
    return [
        Row(
            "a deadline of 2 s is kept within 0.25 s",
            f"{status} after {took_s:.2f} s",
            status == 504 and abs(took_s - 2) <= 0.25,
        ),
        Row("the work stops within 1 s of it", f"{idle_s:.2f} s", idle_s < 1),
    ]


def slow_reader(seconds: float) -> Sequence[Row]:
    """One reads a stream of previews at 1 KB/s; the others' stories take as long as without it."""
    with service() as served:
        gateway = served.runner("triptych")
        _median_s(served, 2)
        before_s, memory = _median_s(served, seconds), gateway.memory_info().rss
        ends = threading.Event()

        def read() -> None:
            body = {**LONG_PICTURE, "stream": True, "num_images": 4, "num_inference_steps": 20}
            with (
                suppress(httpx.HTTPError),
                httpx.stream("POST", f"{served.url}/image", json=body, timeout=60) as answer,
            ):
                for _ in answer.iter_raw(100):
                    if ends.wait(0.1):
                        return

        reading = threading.Thread(target=read)
        reading.start()
        time.sleep(1)
        with suppress(AssertionError):
            _wait_for_pictures(served, 60)
        after_s, grown = _median_s(served, seconds), gateway.memory_info().rss - memory
        ends.set()
        reading.join()
    return [
        Row(
            "one who reads 1 KB/s slows nobody down",
            f"{before_s * 1e3:.0f} ms before, {after_s * 1e3:.0f} ms beside",
            after_s < 1.25 * before_s,
        ),
        Row("and takes no memory (20 MB)", f"{grown / 2**20:+.1f} MiB", grown < 20 * 2**20),
    ]


def _wait_for_pictures(served: Served, limit_s: float) -> None:
    """Until the pictures themselves, which take the cores too, are drawn or held back."""
    name = 'triptych_step_seconds_count{lane="denoise"'
    last, ends = -1.0, time.monotonic() + limit_s
    while (steps := metric(served, name)) != last and time.monotonic() < ends:
        last = steps
        time.sleep(1)


def _median_s(served: Served, seconds: float) -> float:
    took: list[float] = []
    ends = time.monotonic() + seconds
    with httpx.Client(base_url=served.url, timeout=60) as client:
        while time.monotonic() < ends:
            began = time.monotonic()
            client.post("/text", json=STORY).raise_for_status()
            took.append(time.monotonic() - began)
    return statistics.median(took)
