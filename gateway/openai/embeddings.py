"""/v1/embeddings."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from gateway.answers import timing_headers
from gateway.doors import Call, Door, Wire, like, native
from gateway.schemas import NO_NUL, KeepAlive
from gateway.whole import embed_job, embedded
from gateway.whole_schemas import EmbedRequest, TextOrTexts, TokensRead


class EmbeddingsRequest(Wire):
    """Texts to make vectors of."""

    input: TextOrTexts = Field(
        description="A text or 1 to 256 of them; not token ids, for each model has a tokenizer of its own.",
        examples=[["Why do leaves turn red?", "A red fox."]],
    )
    model: str | None = like(EmbedRequest, "model", annotation=str | None, examples=["tiny-embed"])
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or the bytes of 32-bit floats, little end first, in base64."
    )
    user: str | None = Field(
        None, max_length=512, pattern=NO_NUL, description="The caller's own mark; it is not kept."
    )
    prompt_name: str | None = like(EmbedRequest, "prompt_name")
    truncate: bool | None = like(EmbedRequest, "truncate", annotation=bool | None, default=None)
    keep_alive_s: KeepAlive = None

    def as_native(self, call: Call) -> EmbedRequest:
        """Raises `JobError`."""
        fields = {
            "texts": self.input,
            "model": call.model_name(self.model, "text"),
            "prompt_name": self.prompt_name,
            "truncate": self.truncate,
            "keep_alive_s": self.keep_alive_s,
        }
        return native(EmbedRequest, fields, {"texts": "input"})


class Vector(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="As `encoding_format` asks.")


class EmbeddingsAnswer(BaseModel):
    """OpenAI's CreateEmbeddingResponse, whose own type knows no base64."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: TokensRead


async def embeddings(request: EmbeddingsRequest, call: Call) -> Response:
    job = embed_job(request.as_native(call), call.ticket, call.options.timeout_s)
    result, done = await embedded(job, call.runners["text"], "input")
    read = sum(result.tokens)
    said = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, request.encoding_format)}
        for index, vector in enumerate(result.vectors)
    ]
    usage = {"prompt_tokens": read, "total_tokens": read}
    return JSONResponse(
        {"object": "list", "data": said, "model": result.model, "usage": usage}, headers=timing_headers(done)
    )


def _encoded(vector: tuple[float, ...], form: str | None) -> list[float] | str:
    if form != "base64":
        return list(vector)
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


DOORS = (
    Door(
        method="POST",
        path="/v1/embeddings",
        summary="OpenAI: makes a vector of each text.",
        request=EmbeddingsRequest,
        answer=embeddings,
        answers=EmbeddingsAnswer,
    ),
)
