"""/api/embed, and /api/embeddings as older clients ask."""

from __future__ import annotations

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from gateway.doors import Call, Door, like, native
from gateway.ollama.wire import Named, OllamaError, model_field, plain_name, refuse
from gateway.whole import embed_job, embedded
from gateway.whole_schemas import EmbedRequest, Text, TextOrTexts
from jobs import Done, EmbedResult


class OllamaEmbed(Named):
    """Texts to make vectors of."""

    model: str = model_field("tiny-embed")
    input: TextOrTexts = Field(description="A text or 1 to 256 of them.", examples=[["A red fox."]])
    truncate: bool | None = like(
        EmbedRequest,
        "truncate",
        annotation=bool | None,
        default=None,
        description="Cut a text that is longer than the model reads; false refuses it.",
    )


class OllamaEmbeddings(Named):
    """One text to make a vector of; it is cut where the model reads no further."""

    model: str = model_field("tiny-embed")
    prompt: Text = Field(description="The text.", examples=["A red fox."])


class OllamaVectors(BaseModel):
    """A vector of each text, in their order; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = Field(description="Until it was its turn, loading the model included.")
    prompt_eval_count: int


class OllamaVector(BaseModel):
    embedding: list[float]


async def embed(request: OllamaEmbed, call: Call) -> Response:
    result, done = await _made(request, request.input, request.truncate is not False, "input", call)
    answer = OllamaVectors(
        model=result.model,
        embeddings=[list(vector) for vector in result.vectors],
        total_duration=round(done.total_ms * 1e6),
        load_duration=round(done.queue_ms * 1e6),
        prompt_eval_count=sum(result.tokens),
    )
    return JSONResponse(answer.model_dump())


async def embeddings(request: OllamaEmbeddings, call: Call) -> Response:
    result, _ = await _made(request, [request.prompt], True, "prompt", call)
    return JSONResponse({"embedding": result.vectors[0]})


async def _made(
    request: Named, texts: list[str], truncate: bool, field: str, call: Call
) -> tuple[EmbedResult, Done]:
    """Raises `JobError`."""
    fields = {
        "texts": texts,
        "model": call.model_name(plain_name(request.model), "text"),
        "truncate": truncate,
        "keep_alive_s": request.keep_alive_s(),
    }
    asked = native(EmbedRequest, fields, {"texts": field, "keep_alive_s": "keep_alive"})
    job = embed_job(asked, call.ticket, call.options.timeout_s)
    return await embedded(job, call.runners["text"], field)


DOORS = (
    Door(
        method="POST",
        path="/api/embed",
        summary="Ollama: makes a vector of each text.",
        request=OllamaEmbed,
        answer=embed,
        answers=OllamaVectors,
        refuse=refuse,
        error=OllamaError,
    ),
    Door(
        method="POST",
        path="/api/embeddings",
        summary="Ollama: makes a vector of one text, as older clients ask.",
        request=OllamaEmbeddings,
        answer=embeddings,
        answers=OllamaVector,
        refuse=refuse,
        error=OllamaError,
    ),
)
