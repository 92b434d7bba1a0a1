"""Whether a grammar compiles within bounds: it is tried in a process of its own, whose program this is.

llguidance bounds most of what a grammar may cost, but not all. A schema of a hundred characters (an array of
10^9 items, twenty patterns that must hold at once) takes all of a machine's memory, or a core for hours.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
from collections import OrderedDict

CPU_S = 1
MEMORY_BYTES = 512 << 20
PATIENCE_S = 60.0
"""By the clock: for a process that hardly gets a core."""
REMEMBERED = 512
"""Grammars whose outcome is known: most callers ask for the same few again and again."""

_BEGUN, _FINE = "begun", "fine"


class GrammarTrials:
    """Thread-safe. A trial takes about a tenth of a second, and there is one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, bool] = OrderedDict()

    def passes(self, grammar: str) -> bool:
        """Whether `grammar`, in llguidance's own form, is valid and compiles within the bounds."""
        known = self._known.get(grammar)
        if known is not None:
            return known
        with self._lock:
            if grammar not in self._known:
                self._known[grammar] = _tried(grammar)
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[grammar]


def _tried(grammar: str) -> bool:
    """Raises `RuntimeError` when the process could not even begin, which says nothing of the grammar."""
    command = [sys.executable, "-P", __file__]
    try:
        told = subprocess.run(  # noqa: S603 - our own program
            command, input=grammar.encode(), capture_output=True, timeout=PATIENCE_S, check=False
        ).stdout
    except subprocess.TimeoutExpired as late:
        told = late.stdout or b""
    said = told.decode().split()
    if said[:1] != [_BEGUN]:
        raise RuntimeError("the process that tries grammars could not begin")
    return said[1:] == [_FINE]


def main() -> None:
    """Reads a grammar from stdin and says `begun`, then `fine` if it compiles; else no more than that."""
    import llguidance

    bounds = ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0))
    for kind, most in bounds:
        with contextlib.suppress(ValueError, OSError):  # macOS has no bound of memory
            resource.setrlimit(kind, (most, most))
    _say(_BEGUN)
    if not llguidance.LLMatcher.validate_grammar(sys.stdin.read()):
        _say(_FINE)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
