"""Runs a module as one process of the service, which does not outlive the supervisor that started it."""

from __future__ import annotations

import ctypes
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """`python -m commands.worker MODULE ARGUMENTS...`"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
