"""What is refused before any work: a bad request id, a wrong type of body, one too large or too slow."""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.datastructures import Headers
from starlette.types import Receive

from gateway.errors import HttpError

UNREAD_S = 0.1
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FORM_TYPE = re.compile(r"multipart/form-data\s*;\s*boundary=\"?[^\",;\s]{1,70}\"?\s*", re.IGNORECASE)
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
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


def idempotency_key(headers: Headers) -> str | None:
    """Raises `HttpError` (400) for one that is not 1 to 255 printable characters, or beside a job."""
    sent = headers.getlist("idempotency-key")
    if not sent:
        return None
    if len(sent) > 1 or not _IDEMPOTENCY_KEY.fullmatch(sent[0]):
        message = "Idempotency-Key must be 1 to 255 printable characters of ASCII and sent once."
        raise HttpError(400, message, "bad_idempotency_key")
    if wants_async(headers):
        message = "A job needs no Idempotency-Key: one X-Request-Id is one job."
        raise HttpError(400, message, "bad_idempotency_key")
    return sent[0]


def wants_async(headers: Headers) -> bool:
    """Whether the caller would rather have a job than wait (RFC 7240)."""
    sent = ",".join(headers.getlist("prefer")).split(",")
    return any(each.partition(";")[0].strip().lower() == "respond-async" for each in sent)


def check_body_type(headers: Headers, *, forms: bool = False) -> bool:
    """Whether the body is multipart/form-data, which only routes with `forms` take; else plain UTF-8 JSON.

    Raises `HttpError` (415) for anything else.
    """
    types = headers.getlist("content-type")
    is_form = forms and len(types) == 1 and _FORM_TYPE.fullmatch(types[0]) is not None
    if len(types) != 1 or not (is_form or _JSON_TYPE.fullmatch(types[0])):
        form = " or multipart/form-data" if forms else ""
        raise HttpError(415, f"Send the body as application/json{form}.", "unsupported_media_type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpError(415, "Send the body without a Content-Encoding.", "unsupported_encoding")
    return is_form


async def read_body(headers: Headers, receive: Receive, most_bytes: int, timeout_s: float) -> bytes:
    """The whole body, never more than `most_bytes` of it in memory.

    Raises `HttpError` (400, 413, 408) and `ClientGoneError`.
    """
    length = headers.get("content-length", "0")
    if "content-length" in headers and "transfer-encoding" in headers:
        raise HttpError(400, "Send a Content-Length or a Transfer-Encoding, not both.", "two_lengths")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > most_bytes:
        raise _too_large(most_bytes)
    collecting = asyncio.ensure_future(_collect(receive, most_bytes))
    try:
        # What has come meanwhile to a process that got no processor is not late: it is looked at once more.
        for patience_s in (timeout_s, UNREAD_S):
            if (await asyncio.wait((collecting,), timeout=patience_s))[0]:
                return collecting.result()
        message = f"The body did not arrive within {timeout_s:g} seconds."
        raise HttpError(408, message, "body_timeout")
    finally:
        collecting.cancel()


async def _collect(receive: Receive, most_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(most_bytes: int) -> HttpError:
    return HttpError(413, f"The body may have at most {most_bytes} bytes.", "body_too_large")
