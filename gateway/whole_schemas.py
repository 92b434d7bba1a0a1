"""What a caller of the embedding and classification endpoints may say, and what it is answered."""

from __future__ import annotations

from typing import Annotated, Any

from bentoml import IODescriptor
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from gateway.schemas import NO_NUL, KeepAlive, Model, Strict, Timings, no_url
from gateway.text_schemas import as_list

MAX_TEXTS = 256
MAX_PAIRS = 256
"""Texts times labels of the caller's own: a model reads each text once for each label."""
Text = Annotated[str, Field(min_length=1, max_length=32768, pattern=NO_NUL)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 32768, "pattern": NO_NUL}
_TEXTS = {"type": "array", "minItems": 1, "maxItems": MAX_TEXTS, "items": _TEXT}
TextOrTexts = Annotated[Texts, BeforeValidator(as_list), WithJsonSchema({"anyOf": [_TEXT, _TEXTS]})]
"""As other people's doors take them."""
OwnLabel = Annotated[str, Field(min_length=1, max_length=128, pattern=NO_NUL)]
Language = Annotated[str | None, Field(min_length=2, max_length=32, pattern=NO_NUL), AfterValidator(no_url)]
PromptName = Annotated[str | None, Field(min_length=1, max_length=64, pattern=NO_NUL), AfterValidator(no_url)]
TRUNCATE = "Cut a text that is longer than the model reads; otherwise it is refused."


class EmbedRequest(Strict, IODescriptor):
    """Texts to make vectors of."""

    texts: Texts = Field(
        description="What to embed: 1 to 256 texts, each in characters, no longer than the model reads.",
        examples=[["Why do leaves turn red?", "A red fox."]],
    )
    model: Model = None
    prompt_name: PromptName = Field(
        None, description="What the texts are for, where the model wants to know it: `query`, `passage`."
    )
    truncate: bool = Field(False, description=TRUNCATE)
    keep_alive_s: KeepAlive = None


class ClassifyRequest(Strict, IODescriptor):
    """Texts to label, to find entities in, or to translate: what the model is made for."""

    texts: Texts = Field(
        description="1 to 256 texts, each in characters, no longer than the model reads.",
        examples=[["I like this very much."]],
    )
    model: Model = None
    labels: list[OwnLabel] = Field(
        [],
        max_length=32,
        description="Labels of your own (zero-shot), of a model that knows entailment; times `texts` 256.",
    )
    multi_label: bool = Field(False, description="Score each of `labels` by itself: several may be right.")
    top_k: Annotated[int | None, Field(ge=1, le=1000)] = Field(
        None, description="Only this many labels of a text, the likeliest first; left out, all."
    )
    source_language: Language = Field(None, description="Of the texts, as the model names it (`en`).")
    target_language: Language = Field(None, description="To translate to, as the model names it (`de`).")
    truncate: bool = Field(False, description=TRUNCATE)
    keep_alive_s: KeepAlive = None

    @model_validator(mode="after")
    def _not_too_many_pairs(self) -> ClassifyRequest:
        if len(self.texts) * len(self.labels) > MAX_PAIRS:
            raise PydanticCustomError("too_many_pairs", "too many", {"most": MAX_PAIRS})
        return self


class TokensRead(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbedAnswer(IODescriptor):
    """A vector of each text, in their order."""

    id: str = Field(description="The request's id, as in the header X-Request-Id.")
    model: str
    vectors: list[list[float]]
    usage: TokensRead
    timings: Timings


class LabelScore(BaseModel):
    label: str
    score: float


class EntityFound(LabelScore):
    """`text` is from character `start` to before `end` of the text."""

    text: str
    start: int
    end: int


class FindingTold(BaseModel):
    """One of these, as the model is made for."""

    labels: list[LabelScore] | None = None
    entities: list[EntityFound] | None = None
    translation: str | None = None


class TokensUsed(TokensRead):
    completion_tokens: int = Field(description="Of all translations.")


class ClassifyAnswer(IODescriptor):
    """What was found in each text, in their order."""

    id: str = Field(description="The request's id, as in the header X-Request-Id.")
    model: str
    results: list[FindingTold]
    usage: TokensUsed
    timings: Timings
