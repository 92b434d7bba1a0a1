"""Holds the service to its promises under attack, overload and death: a row each, pass or fail.

python -m load_tests.chaos [--short] [NAMES...]
"""

from __future__ import annotations

import argparse
from functools import partial

from load_tests.promises import attacks, crowds, processes
from load_tests.promises.rows import Check, run

ALL_PHASES = "examples,coverage,fuzzing,stateful"


def checks(*, short: bool) -> dict[str, Check]:
    return {
        "runner-killed": processes.runner_killed,
        "drain": processes.drained,
        "told-twice": processes.told_twice,
        "supervisor-killed": processes.supervisor_killed,
        "deadlines": crowds.deadlines,
        "leavers": partial(crowds.leavers, 64 if short else 1000),
        "slow-reader": partial(crowds.slow_reader, 3 if short else 15),
        "overload": partial(crowds.overload, 8 if short else 60),
        "bounds": attacks.bounds,
        "bombs": attacks.bombs,
        "slow-callers": partial(attacks.slow_callers, 30 if short else 300),
        "made-up": partial(attacks.made_up, *((4, "fuzzing") if short else (600, ALL_PHASES))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few minutes in place of half an hour")
    parser.add_argument("names", nargs="*", help="only these")
    given = parser.parse_args()
    known = checks(short=given.short)
    if unknown := set(given.names) - known.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    run("chaos", known, given.names or list(known))


if __name__ == "__main__":
    main()
