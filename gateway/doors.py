"""The doors in other people's words: routes of our own beside BentoML's, which make the same jobs.

A door is one file (or folder) of `Door`s. Each takes a checked request and answers from the same runners as
the native endpoints; the edge does the rest for all of them alike: ids, bodies, errors, callers that leave.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from re import Pattern
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from starlette.routing import compile_path

from gateway.errands import Errands
from gateway.errors import ErrorBody, ErrorResponse, HttpError, error_for_status
from gateway.explain import explain
from gateway.options import GatewayOptions, ServedModel
from gateway.runners import RunnerClient
from gateway.tickets import Ticket
from jobs import JobError


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request at a door: who asks, what the path named, and what can answer."""

    ticket: Ticket
    path: Mapping[str, str]
    runners: Mapping[str, RunnerClient]
    options: GatewayOptions

    def model(self, name: str | None, modality: str) -> ServedModel | None:
        """The model that a caller's name, or one of its aliases, means; None for the default or no such."""
        return self.options.model(name, modality) if name else None

    def model_name(self, name: str | None, modality: str) -> str | None:
        """That model's own name; a name that nobody knows stays, for the runner to say what there is."""
        known = self.model(name, modality)
        return known.name if known else name


def _no(value: bool) -> bool:
    if value:
        raise PydanticCustomError("literal_error", "false", {"expected": "false"})
    return value


def _yes(value: bool) -> bool:
    if not value:
        raise PydanticCustomError("literal_error", "true", {"expected": "true"})
    return value


# Not `Literal`, which takes 0 and 1 for false and true.
OnlyFalse = Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})]
OnlyTrue = Annotated[bool, AfterValidator(_yes), WithJsonSchema({"type": "boolean", "const": True})]

Answers = Callable[[Any, Call], Awaitable[Response]]
"""What a door does with a request: what its schema made of the body, None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One method of one route. `path` may hold `{names}`; `media` are the types of its answer."""

    method: str
    path: str
    summary: str
    answer: Answers
    request: type[BaseModel] | None = None
    answers: type[BaseModel] | None = None
    """The form of its JSON answer, for the document."""
    media: Sequence[str] = ("application/json",)
    status: int = 200
    refuse: Callable[[JobError], Response] = ErrorResponse
    error: type[BaseModel] = ErrorBody
    """The form of what `refuse` says, for the document."""


@dataclass(frozen=True, slots=True)
class Found:
    door: Door
    path: dict[str, str]


class Doors:
    """All doors, found by path; none until the service is made, for importing their wire types takes time."""

    def __init__(self) -> None:
        self.runners: Mapping[str, RunnerClient] = {}
        self.all: list[Door] = []
        self._roots: set[str] = set()
        self._paths: list[tuple[Pattern[str], Door]] = []

    def open(self, runners: Mapping[str, RunnerClient], errands: Errands) -> None:
        from gateway import ollama, openai, voices  # late: the runners' processes import this module too
        from gateway.jobs_door import job_doors

        self.runners = runners
        self.all = [*openai.DOORS, *ollama.DOORS, *voices.DOORS, *job_doors(errands)]
        self._roots = {door.path.split("/")[1] for door in self.all}
        self._paths = [(compile_path(door.path)[0], door) for door in self.all]

    def find(self, method: str, path: str) -> Found | None:
        """None for no path of ours. Raises `JobError`: 405 for another method's, 404 beside our doors."""
        allowed: list[str] = []
        for pattern, door in self._paths:
            match = pattern.match(path)
            if match is not None and method == door.method:
                return Found(door, match.groupdict())
            if match is not None:
                allowed.append(door.method)
        if allowed:
            raise WrongMethodError(allowed)
        if path.split("/")[1] in self._roots:
            raise error_for_status(404)
        return None

    def refusal(self, path: str, error: JobError) -> Response:
        """An error in the words of the doors that the path is one of."""
        root = path.split("/")[1]
        refuse = next((door.refuse for door in self.all if door.path.split("/")[1] == root), ErrorResponse)
        return refuse(error)


class WrongMethodError(HttpError):
    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(405, "This route does not take this method.", "method_not_allowed")
        self.headers = {"Allow": ", ".join(sorted(set(allowed)))}


class Wire(BaseModel):
    """A request of a door; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def like(model: type[BaseModel], name: str, **changed: Any) -> Any:
    """A field with the bounds and words of a native one; `changed` as in `pydantic.Field`.

    Its annotation is a plain type (`int | None`): bounds that are given twice break on a null.
    """
    info: FieldInfo = copy(model.model_fields[name])
    for key, value in changed.items():
        setattr(info, key, value)
    return info


def native(
    model: type[BaseModel], fields: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Any:
    """A native request, its bounds checked; None counts as left out. `renamed`: native name -> the door's.

    Raises `JobError` that names the door's field.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise explain(error, renamed or {}) from None
