"""A failed check of a request, in words that name the field and its bound, and never the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs import ErrorKind, JobError

BAD_JSON = (
    "The body must be one JSON object in UTF-8: no NaN or Infinity, no lone surrogates, "
    "and no more than 200 levels deep."
)
_MAX_NAME_CHARS = 64
_TYPES = frozenset({"str", "int", "float", "bool"})

# pydantic's error type -> (code, what is wrong); the braces are filled from the error's context.
_WORDS: dict[str, tuple[str, str]] = {
    "missing": ("missing_field", "is required"),
    "extra_forbidden": ("unknown_field", "is not a field of this request"),
    "greater_than_equal": ("out_of_bounds", "must be at least {ge}"),
    "greater_than": ("out_of_bounds", "must be more than {gt}"),
    "less_than_equal": ("out_of_bounds", "must be at most {le}"),
    "less_than": ("out_of_bounds", "must be less than {lt}"),
    "multiple_of": ("out_of_bounds", "must be a multiple of {multiple_of}"),
    "string_too_short": ("out_of_bounds", "must have at least {min_length} character(s)"),
    "string_too_long": ("out_of_bounds", "must have at most {max_length} characters"),
    "too_short": ("out_of_bounds", "must have at least {min_length} item(s)"),
    "too_long": ("out_of_bounds", "must have at most {max_length} items"),
    "literal_error": ("unknown_choice", "must be {expected}"),
    "finite_number": ("out_of_bounds", "must be a finite number"),
    "string_pattern_mismatch": ("bad_characters", "must not contain NUL characters"),
    "string_type": ("wrong_type", "must be a string"),
    "string_unicode": ("bad_characters", "must be valid Unicode"),
    "int_type": ("wrong_type", "must be an integer"),
    "int_parsing_size": ("out_of_bounds", "is far too large"),
    "float_type": ("wrong_type", "must be a number"),
    "bool_type": ("wrong_type", "must be true or false"),
    "list_type": ("wrong_type", "must be a list"),
    "model_type": ("wrong_type", "must be an object"),
    "model_attributes_type": ("wrong_type", "must be an object"),
    "dict_type": ("wrong_type", "must be an object"),
    "schema_too_long": ("out_of_bounds", "must have at most 16384 characters as JSON, and no NUL"),
    "tool_name": ("bad_characters", "must be 1 to 64 of A-Z a-z 0-9 _ -"),
    "format_parts": ("missing_field", "needs json_schema for its type json_schema, pattern for regex, only"),
    "exactly_one": ("missing_field", "Give exactly one of `prompt` and `messages`."),
    "one_voice": ("conflicting_fields", "Give `voice` or `voice_file`, not both."),
    "base64": ("bad_characters", "must be base64"),
    "url": ("url_not_supported", "must be a name: nothing is fetched from a URL"),
    "too_many_pairs": ("out_of_bounds", "`labels` times `texts` must be at most {most}."),
    "needs_init_image": ("missing_field", "`{name}` needs an `init_image`."),
}


def invalid(message: str, code: str, param: str | None = None) -> JobError:
    return JobError(ErrorKind.INVALID, message, param=param, code=code)


def explain(error: ValidationError, renamed: Mapping[str, str] | None = None) -> JobError:
    """The first thing wrong with a request, as our own error; `renamed`: the check's names to a caller's."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid" or (not first["loc"] and first["type"].startswith("model_")):
        return invalid(BAD_JSON, "invalid_json")
    code, words = _WORDS.get(first["type"], ("invalid_field", "is not valid"))
    if first["type"] == "one_voice":
        return invalid(words, code, "voice_file")
    if first["type"] == "exactly_one":
        return invalid(words, code, "prompt")
    if first["type"] == "too_many_pairs":
        return invalid(words.format(**_context(first)), code, "labels")
    if first["type"] == "needs_init_image":
        return invalid(words.format(**_context(first)), code, _context(first)["name"])
    param = _name(first, renamed or {})
    return invalid(f"`{param}` {words.format(**_context(first))}.", code, param)


def _context(error: ErrorDetails) -> dict[str, Any]:
    return dict(error.get("ctx", {}))


def _name(error: ErrorDetails, renamed: Mapping[str, str]) -> str:
    """`messages.0.role`"""
    first, *rest = [str(part) for part in error["loc"] if _is_field(part)] or [""]
    return printable(".".join([renamed.get(first, first), *rest]))


def _is_field(part: int | str) -> bool:
    """Not the name of a type, which pydantic puts in where a field takes one of several."""
    return isinstance(part, int) or not (part in _TYPES or "[" in part)


def printable(name: str) -> str:
    """A caller's own field name, cut short, and what cannot be printed is replaced."""
    name = "".join(c if c.isprintable() and c != "`" else "?" for c in name)
    return name if len(name) <= _MAX_NAME_CHARS else name[:_MAX_NAME_CHARS] + "..."
