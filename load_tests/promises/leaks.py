"""Whether processes grow: their memory, open files, threads and temporary files, over time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from load_tests.promises.rows import Row

SLOPE_S = 600.0
MOST_SLOPE = 0.02
"""Of a process's memory, in ten minutes."""
SHORTEST_SLOPE_S = 300.0
MOST_FILES, MOST_THREADS = 5, 2


@dataclass(frozen=True, slots=True)
class Count:
    at_s: float
    rss: int
    files: int
    threads: int


class Census:
    """Counts of the same processes, taken now and then; `temporary` has their temporary files."""

    def __init__(self, processes: Sequence[psutil.Process], temporary: Path) -> None:
        self._processes = list(processes)
        self._folder = temporary
        self.counts: dict[str, list[Count]] = {_name(each): [] for each in processes}
        self._temporary = set(temporary.rglob("*"))

    def take(self) -> None:
        """Raises `psutil.NoSuchProcess` when one has ended."""
        for process in self._processes:
            with process.oneshot():
                count = Count(
                    time.monotonic(), process.memory_info().rss, process.num_fds(), process.num_threads()
                )
            self.counts[_name(process)].append(count)

    def new_temporary_files(self) -> set[Path]:
        return set(self._folder.rglob("*")) - self._temporary


def judged(census: Census, shortest_s: float = SHORTEST_SLOPE_S) -> list[Row]:
    """Watched for less than `shortest_s`, memory's slope is mostly noise, and not judged."""
    rows: list[Row] = []
    for name, counts in census.counts.items():
        watched_s = counts[-1].at_s - counts[0].at_s
        slope = _slope([count.at_s for count in counts], [count.rss for count in counts])
        shown = f"{slope:+.2%} in ten minutes of {counts[-1].rss / 2**20:.0f} MiB"
        if watched_s >= shortest_s:
            rows.append(Row(f"{name}: memory stays (2 % in ten minutes)", shown, slope < MOST_SLOPE))
        rows.append(_steady(f"{name}: open files", [count.files for count in counts], MOST_FILES))
        rows.append(_steady(f"{name}: threads", [count.threads for count in counts], MOST_THREADS))
    left = census.new_temporary_files()
    shown = ", ".join(sorted(path.name for path in left)[:3]) or "none"
    return [*rows, Row("temporary files that are left", shown, not left)]


def _steady(what: str, numbers: Sequence[int], most: int) -> Row:
    """Over the last third against the first, so that one peak is no leak."""
    third = max(1, len(numbers) // 3)
    grown = float(np.median(numbers[-third:]) - np.median(numbers[:third]))
    return Row(f"{what} stay (+-{most})", f"{grown:+g}", abs(grown) <= most)


def _slope(seconds: Sequence[float], amounts: Sequence[float]) -> float:
    """The part of its mean by which an amount grows in ten minutes, by least squares."""
    if len(seconds) < 2:
        return 0.0
    per_s = float(np.polyfit(np.subtract(seconds, seconds[0]), amounts, 1)[0])
    return per_s * SLOPE_S / float(np.mean(amounts))


def _name(process: psutil.Process) -> str:
    """The service that it runs, as its command line says."""
    line = process.cmdline()
    return line[line.index("--service-name") + 1] if "--service-name" in line else "supervisor"
