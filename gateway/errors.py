"""The one error shape, and the one place where a kind of error becomes an HTTP status."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from jobs import ErrorKind, JobError

logger = logging.getLogger("triptych.gateway")

SHAPED = "gateway.error_shaped"
"""Scope key: this answer is in our error shape already, so the edge leaves it as it is."""

STATUS: dict[ErrorKind, int] = {
    ErrorKind.INVALID: 400,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.CANCELLED: 499,
    ErrorKind.INTERNAL: 500,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.TIMEOUT: 504,
}


class ErrorDetail(BaseModel):
    """Why a request got no answer, and what to do about it."""

    type: str = Field(description="The kind of error.", examples=["invalid_request_error"])
    message: str = Field(description="What is wrong and what to do; for people.")
    param: str | None = Field(description="The field that is meant, if one is.", examples=["max_tokens"])
    code: str | None = Field(description="A short word for programs.", examples=["out_of_bounds"])


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class HttpError(JobError):
    """A request refused for its form, with the HTTP status that says so."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(ErrorKind.INVALID, message, code=code)
        self.status = status
        self.headers: dict[str, str] = {}


def error_body(error: JobError) -> dict[str, Any]:
    """`{"error": {type, message, param, code}}`"""
    return {
        "error": {
            "type": error.kind.value,
            "message": error.message,
            "param": error.param,
            "code": error.code,
        }
    }


def status_and_headers(error: JobError) -> tuple[int, dict[str, str]]:
    """429 and 503 always say when to come again, in whole seconds."""
    status = error.status if isinstance(error, HttpError) else STATUS[error.kind]
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if status in (408, 413) or error.code == "two_lengths":
        headers["Connection"] = "close"  # the rest of the body has not been read, or is another request
    return status, headers


def log_bug(error: Exception) -> None:
    """Says where a bug was, and not the exception's text, which may hold what the caller sent."""
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a request failed with %s\n%s", type(error).__name__, place)


class ErrorResponse(JSONResponse):
    """An error as HTTP, in our shape, or with a `content` in another's."""

    def __init__(self, error: JobError, headers: dict[str, str] | None = None, content: Any = None) -> None:
        status, own = status_and_headers(error)
        super().__init__(content or error_body(error), status_code=status, headers={**(headers or {}), **own})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SHAPED] = True
        await super().__call__(scope, receive, send)


_BY_STATUS: dict[int, tuple[ErrorKind, str, str]] = {
    404: (
        ErrorKind.NOT_FOUND,
        "There is no such route; /docs.json lists them.",
        "unknown_route",
    ),
    405: (ErrorKind.INVALID, "This route does not take this method.", "method_not_allowed"),
    415: (ErrorKind.INVALID, "Send the body as application/json.", "unsupported_media_type"),
    429: (ErrorKind.OVERLOADED, "Too many requests at once; try again later.", "overloaded"),
    503: (ErrorKind.UNAVAILABLE, "The service is not available; try again later.", "unavailable"),
    504: (ErrorKind.TIMEOUT, "The request took too long.", "timeout"),
}


def error_for_status(status: int) -> JobError:
    """Our words for an error that a layer below answered in its own."""
    if status in _BY_STATUS:
        kind, message, code = _BY_STATUS[status]
    elif status < 500:
        kind, message, code = ErrorKind.INVALID, "The request cannot be answered.", "bad_request"
    else:
        kind, message, code = ErrorKind.INTERNAL, "Something went wrong in the service.", "internal"
    error = JobError(kind, message, code=code)
    if STATUS[kind] != status:
        error = HttpError(status, message, code)
        error.kind = kind
    return error


async def or_error(
    answer: Awaitable[Response], refuse: Callable[[JobError], Response] = ErrorResponse
) -> Response:
    """The answer, or the error that it raised, in the words of `refuse`."""
    try:
        return await answer
    except JobError as error:
        return refuse(error)
    except Exception as error:  # noqa: BLE001 - BentoML would log its text, which may hold a prompt
        log_bug(error)
        return refuse(error_for_status(500))
