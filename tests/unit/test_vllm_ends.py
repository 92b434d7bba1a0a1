"""What a runner on vLLM starts ends with it: vLLM's engine process would keep a GPU's memory."""

from __future__ import annotations

import subprocess
import sys

import psutil

RUNNER = """
import subprocess, sys, time
from runners.vllm import end_together
end_together()
engine = subprocess.Popen(["sleep", "600"])
print(engine.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_runners_engine_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as runner:
        assert runner.stdout is not None
        engine = psutil.Process(int(runner.stdout.readline()))
        runner.kill()
    _, left = psutil.wait_procs([engine], timeout=30)
    assert not left
