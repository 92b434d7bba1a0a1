"""The OpenAPI document: every field with its unit, bound and default, every answer, and the one error shape.

BentoML's own document knows neither our errors nor the bytes and streams we answer with, and drops the bounds
of optional fields; so `/docs.json` is made here, from the same classes that check the requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.doors import Door
from gateway.errors import ErrorBody
from gateway.forms import file_fields
from gateway.schemas import ImagesAnswer
from gateway.streams import EVENT_STREAM
from gateway.text_schemas import TextAnswer
from gateway.together import RULES
from gateway.whole_schemas import ClassifyAnswer, EmbedAnswer

_CONVERTER = re.compile(r":\w+}")
_NAMED = re.compile(r"{(\w+)}")
_NOT_WORD = re.compile(r"\W+")
_REF = "#/components/schemas/{model}"
_HEADERS: dict[str, tuple[str, str]] = {
    "X-Request-Id": ("string", "The caller's own id, or a fresh one."),
    "X-Seed": ("integer", "The seed that gives this answer again."),
    "X-Queue-Ms": ("number", "Milliseconds from arrival to the first step."),
    "X-Total-Ms": ("number", "Milliseconds from arrival to the end."),
    "X-Safety-Checker": ("string", "`passed`, or `flagged`: a picture was withheld and is black."),
    "X-Sample-Rate": ("integer", "Samples a second."),
    "Retry-After": ("integer", "Whole seconds to wait before the next try."),
}
_ERRORS: dict[str, str] = {
    "400": "A field is missing, unknown or out of its bounds; `message` names it and its bound.",
    "404": "There is no such model, voice or LoRA; `message` names those there are.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not application/json, nor multipart/form-data where files go in.",
    "429": "Too many requests wait already; see Retry-After.",
    "500": "Something went wrong in the service.",
    "503": "The runner is loading or restarting; see Retry-After.",
    "504": "The answer took too long.",
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_IMAGE = {f"image/{kind}": _BYTES for kind in ("png", "jpeg", "webp")}
_AUDIO = {f"audio/{kind}": _BYTES for kind in ("wav", "flac", "ogg", "mpeg", "pcm")}
# Without a type: some readers take one for the whole stream's, some for each event's.
_EVENT: dict[str, Any] = {"schema": {"description": "Server-sent events."}}
_EVENTS = {EVENT_STREAM: _EVENT}


def _json(answer: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=answer)}}}


_TEXT, _IMAGES = _json("TextAnswer"), _json("ImagesAnswer")
_TIMED = ("X-Seed", "X-Queue-Ms", "X-Total-Ms")
_ANSWERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "text": ("The text; with `stream`, its pieces.", _TEXT | _EVENTS, ("X-Seed",)),
    "text_stream": ("The pieces of the text, the last with usage, then [DONE].", _EVENTS, ("X-Seed",)),
    "image": (
        "The encoded picture; all of them as JSON when `num_images` is above 1; with `stream`, their events.",
        _IMAGE | _IMAGES | _EVENTS,
        (*_TIMED, "X-Safety-Checker"),
    ),
    "image_stream": ("Events: queued, progress, preview, result or error.", _EVENTS, ("X-Seed",)),
    "speech": ("The encoded sound.", _AUDIO | _EVENTS, (*_TIMED, "X-Sample-Rate")),
    "embed": ("A vector of each text.", _json("EmbedAnswer"), ()),
    "classify": ("What was found in each text.", _json("ClassifyAnswer"), ()),
    "speech_stream": ("The encoded sound, as it is made.", _AUDIO | _EVENTS, ("X-Seed", "X-Sample-Rate")),
}


_NATIVE_ANSWERS = (TextAnswer, ImagesAnswer, EmbedAnswer, ClassifyAnswer)


def openapi_document(
    title: str, endpoints: Mapping[str, tuple[type[BaseModel], str]], doors: Sequence[Door]
) -> dict[str, Any]:
    """`endpoints` maps the name of each of BentoML's endpoints to its request class and what it does."""
    bodies: list[type[BaseModel]] = [body for body, _ in endpoints.values()]
    theirs = [model for door in doors for model in (door.request, door.answers) if model is not None]
    theirs += [door.error for door in doors]
    models = dict.fromkeys([*bodies, *_NATIVE_ANSWERS, ErrorBody, *theirs])
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = schemas["$defs"]
    for name in RULES.keys() & schemas.keys():
        schemas[name] = {key: said for key, said in (schemas[name] | RULES[name]).items() if said is not None}
    schemas |= {
        _form_name(each): _as_form(schemas[each.__name__], each) for each in models if file_fields(each)
    }
    paths = {f"/{name}": {"post": _operation(name, *endpoint)} for name, endpoint in endpoints.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": "Text, images and speech from open models."},
        "servers": [{"url": "."}],
        "paths": paths | _door_paths(doors) | _health_paths(),
        "components": {"schemas": schemas, "headers": _header_components()},
    }


def _operation(name: str, body: type[BaseModel], summary: str) -> dict[str, Any]:
    description, content, headers = _ANSWERS[name]
    answer = {
        "description": description,
        "content": content,
        "headers": {header: _header(header) for header in ("X-Request-Id", *headers)},
    }
    return {
        "operationId": name,
        "summary": summary,
        "tags": [name.partition("_")[0]],
        "parameters": [_request_id()],
        "requestBody": _body(body),
        "responses": {"200": answer} | {status: _error(status) for status in _ERRORS},
    }


def _door_paths(doors: Sequence[Door]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for door in doors:
        path = _CONVERTER.sub("}", door.path)
        paths.setdefault(path, {})[door.method.lower()] = _door_operation(door, path)
    return paths


def _door_operation(door: Door, path: str) -> dict[str, Any]:
    form = {"schema": {"$ref": _REF.format(model=door.answers.__name__)}} if door.answers else {}
    plain = {"application/json": form, EVENT_STREAM: _EVENT}
    answer = {
        "description": "The answer.",
        "content": {media: plain.get(media, _BYTES) for media in door.media},
        "headers": {"X-Request-Id": _header("X-Request-Id")},
    }
    operation: dict[str, Any] = {
        "operationId": f"{door.method.lower()}{_NOT_WORD.sub('_', path)}",
        "summary": door.summary,
        "tags": [path.split("/")[1]],
        "parameters": [_request_id(), *map(_path_parameter, _NAMED.findall(path))],
        "responses": {str(door.status): answer} | {status: _error(status, door.error) for status in _ERRORS},
    }
    if door.request is not None:
        operation["requestBody"] = _body(door.request)
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """One that holds files may come as a form, where they are parts with their plain bytes."""
    schema = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    content: dict[str, Any] = {"application/json": schema}
    files = sorted(file_fields(model))
    if files:
        encoding = {name: {"contentType": "application/octet-stream"} for name in files}
        form = {"schema": {"$ref": _REF.format(model=_form_name(model))}}
        content["multipart/form-data"] = form | {"encoding": encoding}
    return {"required": True, "content": content}


def _form_name(model: type[BaseModel]) -> str:
    return f"{model.__name__}Form"


def _as_form(schema: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The same request as parts: files as they are, and a part that is not sent in place of null."""
    fields = {name: _given(field) for name, field in schema["properties"].items()}
    for name in file_fields(model):
        fields[name] = {
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "description": fields[name]["description"],
        }
    return {key: said for key, said in schema.items() if key not in ("oneOf", "anyOf")} | {
        "title": _form_name(model),
        "properties": fields,
    }


def _given(field: dict[str, Any]) -> dict[str, Any]:
    choices = [each for each in field.get("anyOf", ()) if each != {"type": "null"}]
    rest = {key: said for key, said in field.items() if key != "anyOf" and said is not None}
    return rest | (choices[0] if len(choices) == 1 else {"anyOf": choices} if choices else {})


def _error(status: str, form: type[BaseModel] = ErrorBody) -> dict[str, Any]:
    names = ("X-Request-Id", "Retry-After") if status in ("429", "503") else ("X-Request-Id",)
    return {
        "description": _ERRORS[status],
        "headers": {name: _header(name) for name in names},
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=form.__name__)}}},
    }


def _request_id() -> dict[str, Any]:
    return {
        "name": "X-Request-Id",
        "in": "header",
        "required": False,
        "description": "An id of your own, which the answer carries.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    }


def _header(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/headers/{name}"}


def _header_components() -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in _HEADERS.items()}


def _health_paths() -> dict[str, Any]:
    def get(summary: str, answers: dict[str, str]) -> dict[str, Any]:
        responses = {status: {"description": text} for status, text in answers.items()}
        return {"get": {"summary": summary, "tags": ["health"], "responses": responses}}

    not_ready = "A required runner is loading or down; the JSON says which and why."
    return {
        "/livez": get("Whether the process lives", {"200": "It does."}),
        "/readyz": get("Whether each runner is ready", {"200": "All are.", "503": not_ready}),
        "/metrics": get("Prometheus metrics of all processes", {"200": "In Prometheus' text format."}),
    }
