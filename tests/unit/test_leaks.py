"""What `make soak` judges by: it passes a process that is steady and catches each kind of leak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from load_tests.promises.leaks import Census, Count, judged

LEAKS = {
    "memory": "kept.append(bytearray(b'x' * 2_000_000))",
    "open files": "kept.append(open('/dev/null'))",
    "threads": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "temporary files": "os.close(tempfile.mkstemp(dir=sys.argv[1])[0])",
    "nothing": "kept[:] = [bytearray(b'x' * 2_000_000)]",
}
PROGRAM = """
import os, sys, tempfile, threading
kept = []
for line in sys.stdin:
    {}
    print(flush=True)
"""


@pytest.mark.parametrize("leak", LEAKS)
def test_each_kind_of_leak_is_caught(tmp_path: Path, leak: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(LEAKS[leak]), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        census = None
        for turn in range(40):
            program.stdin.write("leak\n")
            program.stdin.flush()
            program.stdout.readline()
            if turn == 9:  # it is warm
                census = Census([psutil.Process(program.pid)], tmp_path)
            if census is not None:
                census.take()
        assert census is not None
        # In so short a time a page more is a slope of its own.
        rows = judged(census, shortest_s=0) if leak == "memory" else judged(census)
        broken = [row.promise for row in rows if not row.kept]
        program.stdin.close()
    assert len(broken) == (0 if leak == "nothing" else 1), broken
    assert leak == "nothing" or leak in broken[0]


@pytest.mark.parametrize(("grown", "kept"), [(0.0, True), (0.01, True), (0.03, False)])
def test_memory_may_grow_by_two_parts_in_a_hundred_in_ten_minutes(
    tmp_path: Path, grown: float, kept: bool
) -> None:
    census = Census([psutil.Process()], tmp_path)
    (counts,) = census.counts.values()
    for second in range(0, 600, 2):
        noise = 1 + 0.01 * (second % 10 - 4) / 4
        counts.append(Count(second, round(10**9 * noise * (1 + grown * second / 600)), 10, 10))
    (memory,) = (row for row in judged(census) if "memory" in row.promise)
    assert memory.kept is kept, memory
