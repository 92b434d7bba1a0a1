"""What is refused before any work: a bad request id, a wrong type of body, one too large or too slow."""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.datastructures import Headers
from starlette.types import Receive

from gateway.errors import HttpError
from gateway.options import GatewayOptions

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_JSON_TYPE = re.compile(r"application/json(\s*;\s*charset=\"?utf-8\"?)?\s*", re.IGNORECASE)


class ClientGoneError(Exception):
    """The caller hung up; there is nobody to answer."""


def fresh_id() -> str:
    return uuid.uuid4().hex


def request_id(headers: Headers) -> str | None:
    """The caller's own id, None if it sent none.

    Raises `HttpError` (400) for one that is not 1 to 128 of A-Z a-z 0-9 . _ : -
    """
    sent = headers.getlist("x-request-id")
    if not sent:
        return None
    if len(sent) > 1 or not _REQUEST_ID.fullmatch(sent[0]):
        message = "X-Request-Id must be 1 to 128 characters of A-Z a-z 0-9 . _ : - and sent once."
        raise HttpError(400, message, "bad_request_id")
    return sent[0]


def check_body_type(headers: Headers) -> None:
    """Raises `HttpError` (415) for anything but plain UTF-8 JSON."""
    types = headers.getlist("content-type")
    if len(types) != 1 or not _JSON_TYPE.fullmatch(types[0]):
        raise HttpError(415, "Send the body as application/json.", "unsupported_media_type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpError(415, "Send the body without a Content-Encoding.", "unsupported_encoding")


async def read_body(headers: Headers, receive: Receive, options: GatewayOptions) -> bytes:
    """The whole body, never more than `max_body_bytes` of it in memory.

    Raises `HttpError` (413, 408) and `ClientGoneError`.
    """
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > options.max_body_bytes:
        raise _too_large(options)
    try:
        async with asyncio.timeout(options.body_timeout_s):
            return await _collect(receive, options)
    except TimeoutError:
        message = f"The body did not arrive within {options.body_timeout_s:g} seconds."
        raise HttpError(408, message, "body_timeout") from None


async def _collect(receive: Receive, options: GatewayOptions) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > options.max_body_bytes:
            raise _too_large(options)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(options: GatewayOptions) -> HttpError:
    return HttpError(413, f"The body may have at most {options.max_body_bytes} bytes.", "body_too_large")
