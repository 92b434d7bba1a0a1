"""Bodies of multipart/form-data, made into the JSON that the endpoint's schema checks.

A part is named like its field. One with a file name is the file itself, for a field that takes encoded files
(`file_fields` of the schema), and becomes base64; any other is the text of a text field, or the JSON of a
number, a boolean or a list. A field given twice is refused, for nobody could say which one counts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.explain import invalid, printable
from jobs import JobError

MOST_PARTS = 64
_TEXT_BYTES = 1 << 20


def file_fields(schema: type[BaseModel]) -> frozenset[str]:
    """The fields of a request that hold an encoded file: base64 in JSON, plain bytes in a multipart part."""
    return getattr(schema, "file_fields", frozenset())


class _InMemory(MultiPartParser):
    """The body is in memory already, and bounded: no part of it is spooled to a disk."""

    spool_max_size = 1 << 30


async def form_as_json(headers: Headers, body: bytes, schema: type[BaseModel]) -> bytes:
    """The JSON object that a multipart body stands for. Raises `JobError` (400)."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    files = file_fields(schema)
    parser = _InMemory(
        headers, stream(), max_files=len(files), max_fields=MOST_PARTS, max_part_size=_TEXT_BYTES
    )
    try:
        form = await parser.parse()
        if not form:
            raise MultiPartException("")
    except (MultiPartException, UnicodeError):
        message = (
            f"The body is not multipart/form-data of at most {len(files)} file(s) and {MOST_PARTS} "
            f"other parts of {_TEXT_BYTES} bytes."
        )
        raise invalid(message, "invalid_multipart") from None
    try:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise _refused(name, "is given twice")
            fields[name] = await _value(name, value, schema, files)
    finally:
        await form.close()
    return json.dumps(fields).encode("ascii")


async def _value(name: str, value: str | UploadFile, schema: type[BaseModel], files: frozenset[str]) -> Any:
    if isinstance(value, UploadFile):
        if name not in files:
            raise _refused(name, "does not take a file")
        return base64.b64encode(await value.read()).decode("ascii")
    field = schema.model_fields.get(name)
    if field is None or _is_text(field.annotation):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value  # its type is wrong, which the schema says in its own words


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _is_text(annotation: Any) -> bool:
    """Whether a field takes a string as it stands."""
    if get_origin(annotation) not in (Literal, Union, UnionType):
        return isinstance(annotation, type) and issubclass(annotation, str)
    choices = get_args(annotation)
    return all(choice is type(None) or isinstance(choice, str) or _is_text(choice) for choice in choices)


def _refused(name: str, why: str) -> JobError:
    shown = printable(name)
    return invalid(f"`{shown}` {why}.", "invalid_multipart", shown)
