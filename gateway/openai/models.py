"""/v1/models: what can be asked for, by its own name or by one of OpenAI's that stands for it."""

from __future__ import annotations

from openai.types import Model
from starlette.responses import JSONResponse, Response

from gateway.doors import Call, Door
from gateway.openai.wire import JsonAnswer
from gateway.options import MODALITIES, ServedModel
from jobs import ErrorKind, JobError

CREATED = 0
"""Nobody knows when an open model's weights were made."""


def _card(model: ServedModel) -> Model:
    """OpenAI's card, and which of our endpoints the model is for."""
    card = Model(id=model.name, object="model", created=CREATED, owned_by=model.licence or "unknown")
    return card.model_copy(update={"modality": model.kind or model.modality})


async def all_models(_: None, call: Call) -> Response:
    cards = [_card(model).model_dump(mode="json") for model in call.options.models]
    return JSONResponse({"object": "list", "data": cards})


async def one_model(_: None, call: Call) -> Response:
    name = call.path["model"]
    for modality in MODALITIES:
        model = call.options.model(name, modality)
        if model is not None:
            return JsonAnswer(_card(model))
    there = ", ".join(model.name for model in call.options.models)
    raise JobError(
        ErrorKind.NOT_FOUND,
        f"There is no such model. There are: {there}.",
        param="model",
        code="model_not_found",
    )


DOORS = (
    Door(method="GET", path="/v1/models", summary="OpenAI: lists the models.", answer=all_models),
    Door(
        method="GET",
        path="/v1/models/{model:path}",
        summary="OpenAI: tells of one model, by its name or an alias.",
        answer=one_model,
        answers=Model,
    ),
)
