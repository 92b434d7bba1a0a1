"""Tokens to text as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""

CONTEXT_TOKENS = 6
"""Tokens of the prompt decoded before the first one, so that its leading space is right."""

PENDING_TOKENS = 16
"""A character takes at most 4 bytes: what is still broken after so many tokens goes out as it is."""

BROKEN = "\ufffd"


class Detokenizer:
    """The text of one row. A token's text depends on those before it (spaces, bytes of one character), so a
    window of tokens is decoded with and without its newest, and the difference is what is new."""

    def __init__(self, decode: Decode, prompt_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt_ids[-CONTEXT_TOKENS:])
        self._known = len(self._window)
        self._known_text = decode(self._window)

    def push(self, token: int) -> str:
        """The text this token completes: empty while a character lacks bytes."""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._known
        if text.endswith(BROKEN) and pending < PENDING_TOKENS:
            return ""
        fresh = text[len(self._known_text) :]
        self._window = self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return fresh

    def flush(self) -> str:
        """The whole characters held when no more tokens come; bytes of an unfinished one are dropped."""
        if len(self._window) == self._known:
            return ""
        return self._decode(self._window)[len(self._known_text) :].rstrip(BROKEN)


class StopFinder:
    """Cuts a text at the first of its stop strings, and holds back an end that may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown now; nothing more comes once `found` is set."""
        if self.found:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        hold = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
