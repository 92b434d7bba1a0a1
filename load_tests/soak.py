"""Holds the service to "no leak": 32 clients, all three endpoints mixed, ten minutes.

python -m load_tests.soak [--short]
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter

import httpx

from load_tests.promises.asking import MIXED, TEMPORARY, service
from load_tests.promises.leaks import Census, judged
from load_tests.promises.rows import Row, run

CLIENTS = 32


def soak(warm_up_s: float, watched_s: float) -> list[Row]:
    with service(TRIPTYCH_ACCESS_LOG="false") as served:
        statuses: Counter[int] = Counter()
        ends = threading.Event()

        def client(number: int) -> None:
            with httpx.Client(base_url=served.url, timeout=300) as mine:
                turn = number
                while not ends.is_set():
                    path, body = MIXED[turn % len(MIXED)]
                    statuses[mine.post(path, json={**body, "seed": turn}).status_code] += 1
                    turn += 1

        crowd = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for each in crowd:
            each.start()
        time.sleep(warm_up_s)
        census = Census(served.processes(), served.log.parent / TEMPORARY)
        ends_at = time.monotonic() + watched_s
        while time.monotonic() < ends_at:
            census.take()
            time.sleep(2)
        ends.set()
        for each in crowd:
            each.join()
    good = statuses[200] / max(1, statuses.total())
    answered = Row("99 % of the answers are good", f"{good:.2%} of {statuses.total()}", good >= 0.99)
    return [answered, *judged(census)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one minute: files, threads and answers only")
    short = parser.parse_args().short
    run("soak", {"soak": lambda: soak(20, 40) if short else soak(120, 600)}, ["soak"])


if __name__ == "__main__":
    main()
