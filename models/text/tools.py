"""Tool calls as chat templates have them: how a model is made to write one, and how one is read.

Three forms cover the open models: tagged JSON (Hermes, Qwen), Mistral's list, and Llama's bare JSON.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs import Tool, ToolCall
from models.text.constraint import SPACING


@dataclass(frozen=True, slots=True)
class ToolFormat:
    begin: str
    """What a call begins with; empty when the whole text is the call."""
    end: str
    listed: bool
    """The JSON is a list of calls, not one call."""
    arguments: str
    """The name of the field with the arguments."""


TAGGED = ToolFormat("<tool_call>", "</tool_call>", listed=False, arguments="arguments")
MISTRAL = ToolFormat("[TOOL_CALLS]", "", listed=True, arguments="arguments")
LLAMA = ToolFormat("", "", listed=False, arguments="parameters")


def tool_format(template: str) -> ToolFormat | None:
    """The form that a chat template teaches its model; None when it has no tools."""
    if "tools" not in template:
        return None
    for known in (TAGGED, MISTRAL):
        if known.begin in template:
            return known
    return LLAMA if '"parameters"' in template else TAGGED


def described(tool: Tool) -> dict[str, Any]:
    """A tool as templates read it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def call_grammar(form: ToolFormat, tools: Sequence[Tool], special: dict[str, int]) -> str:
    """A grammar (Lark) of exactly one call of one of the tools; `special` are special tokens' ids."""
    rules = [f"call_{i}: %json {json.dumps(_schema(form, tool))}" for i, tool in enumerate(tools)]
    any_call = " | ".join(f"call_{i}" for i in range(len(tools)))
    parts = [_literal(form.begin, special), '"["' if form.listed else "", f"({any_call})"]
    parts += ['"]"' if form.listed else "", _literal(form.end, special)]
    return "\n".join([f"start: {' '.join(part for part in parts if part)}", *rules])


def _literal(text: str, special: dict[str, int]) -> str:
    """A special token is no text: the grammar names it by its number."""
    return f"<[{special[text]}]>" if text in special else json.dumps(text) if text else ""


def _schema(form: ToolFormat, tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.name},
            form.arguments: tool.parameters or {"type": "object"},
        },
        "required": ["name", form.arguments],
        "additionalProperties": False,
        "x-guidance": SPACING,
    }


class CallFinder:
    """Lets a text through up to where a call may begin, and reads the calls when the text is whole."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""
        self._found = False
        self._begun = False

    def push(self, text: str) -> str:
        """What may be shown now: all that cannot be part of a call."""
        self._held += text
        if self._found:
            return ""
        if not self._form.begin:
            bare = self._held.lstrip()
            self._found = bare.startswith("{") and not self._begun
            self._begun = self._begun or bool(bare)
            return "" if self._found or not self._begun else self._let_go(len(self._held))
        place = self._held.find(self._form.begin)
        if place >= 0:
            self._found = True
            return self._let_go(place)
        return self._let_go(len(self._held) - _overlap(self._held, self._form.begin))

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The rest of the text and the calls in it; what is no whole call stays text."""
        held, self._held = self._held, ""
        calls = tuple(_calls(self._form, held)) if self._found else ()
        return ("", calls) if calls else (held, ())

    def _let_go(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown


def _calls(form: ToolFormat, text: str) -> list[ToolCall]:
    """All calls of a text; none when a part of it is no call."""
    pattern = re.escape(form.begin) + r"(.*?)" + (f"(?:{re.escape(form.end)}|$)" if form.end else "$")
    pieces = filter(str.strip, re.findall(pattern, text, re.DOTALL))
    try:
        said = [call for piece in pieces for call in _listed(json.loads(piece))]
        return [_call(form, each) for each in said]
    except (ValueError, RecursionError):  # a text may open ten thousand brackets
        return []


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [said]


def _call(form: ToolFormat, said: Any) -> ToolCall:
    """Raises `ValueError` for what is no call."""
    arguments = said.get(form.arguments) if isinstance(said, dict) else None
    if not isinstance(arguments, dict) or not isinstance(said.get("name"), str):
        raise ValueError("no call")
    return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", name=said["name"], arguments=json.dumps(arguments))


def _overlap(text: str, begin: str) -> int:
    """The length of the longest end of `text` that `begin` begins with."""
    return next((n for n in range(min(len(text), len(begin) - 1), 0, -1) if text.endswith(begin[:n])), 0)
