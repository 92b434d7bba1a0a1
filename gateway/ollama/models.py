"""/api/tags, /api/ps, /api/show, /api/version: the text models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from starlette.responses import JSONResponse, Response

from gateway.doors import Call, Door
from gateway.ollama.wire import OllamaError, OllamaShow, plain_name, refuse
from gateway.options import ServedModel
from jobs import ErrorKind, JobError

VERSION = "0.6.3"
"""The version of Ollama's API that is spoken here."""
_CAPABILITIES = {"": ["completion", "tools"], "embed": ["embedding"]}
"""By the kind of a model; what is of another kind cannot be asked for here."""


async def tags(request: Any, call: Call) -> Response:
    del request
    return JSONResponse({"models": [_card(model) for model in _texts(call)]})


async def running(request: Any, call: Call) -> Response:
    """The text models in memory, as their runner says; a model that stays has no `expires_at`."""
    del request
    resident = {each["name"]: each for each in await call.runners["text"].resident()}
    there = [model for model in _texts(call) if model.name in resident]
    return JSONResponse({"models": [{**_card(model), **_stay(resident[model.name])} for model in there]})


def _stay(resident: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"size": resident["size_bytes"]} if resident["size_bytes"] else {}
    if resident["leaves_in_s"] is not None:
        leaves = datetime.now(UTC) + timedelta(seconds=resident["leaves_in_s"])
        told["expires_at"] = leaves.isoformat().replace("+00:00", "Z")
    return told


async def show(request: OllamaShow, call: Call) -> Response:
    model = known(request.model, call)
    return JSONResponse(
        {
            "license": model.licence,
            "details": _details(model),
            "model_info": {"general.architecture": model.family, "general.name": model.name},
            "capabilities": _CAPABILITIES[model.kind],
        }
    )


async def version(request: Any, call: Call) -> Response:
    del request, call
    return JSONResponse({"version": VERSION})


def _texts(call: Call) -> Sequence[ServedModel]:
    return [
        model for model in call.options.models if model.modality == "text" and model.kind in _CAPABILITIES
    ]


def known(name: str, call: Call) -> ServedModel:
    """Raises `JobError` (404)."""
    model = call.model(plain_name(name), "text")
    if model is None or model.kind not in _CAPABILITIES:
        there = ", ".join(each.name for each in _texts(call))
        raise JobError(ErrorKind.NOT_FOUND, f"There is no model '{name}' here. There are: {there}.")
    return model


def _card(model: ServedModel) -> dict[str, Any]:
    """`digest` tells models apart. Sizes and dates are left out: the weights may be on another machine."""
    return {
        "name": model.name,
        "model": model.name,
        "digest": sha256(f"{model.name} {model.family} {model.precision}".encode()).hexdigest(),
        "details": _details(model),
    }


def _details(model: ServedModel) -> dict[str, Any]:
    return {
        "format": "safetensors",
        "family": model.family,
        "families": [model.family],
        "quantization_level": model.precision,
    }


DOORS = (
    Door(
        method="GET",
        path="/api/tags",
        summary="Ollama: lists the text models.",
        answer=tags,
        refuse=refuse,
        error=OllamaError,
    ),
    Door(
        method="GET",
        path="/api/ps",
        summary="Ollama: the models in memory.",
        answer=running,
        refuse=refuse,
        error=OllamaError,
    ),
    Door(
        method="POST",
        path="/api/show",
        summary="Ollama: tells of one model.",
        request=OllamaShow,
        answer=show,
        refuse=refuse,
        error=OllamaError,
    ),
    Door(
        method="GET",
        path="/api/version",
        summary="Ollama: its version.",
        answer=version,
        refuse=refuse,
        error=OllamaError,
    ),
)
