"""How OpenAI's wire types become bytes."""

from __future__ import annotations

from openai import BaseModel
from starlette.responses import Response


class JsonAnswer(Response):
    """One of OpenAI's models as JSON; what was never said about it is left out."""

    media_type = "application/json"

    def __init__(self, answer: BaseModel, headers: dict[str, str] | None = None) -> None:
        super().__init__(as_json(answer), headers=headers)


def as_json(answer: BaseModel) -> str:
    return answer.model_dump_json(exclude_unset=True, ensure_ascii=True)
