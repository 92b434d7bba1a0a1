"""What /v1/chat/completions and /v1/completions say: whole, and piece by piece."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as Piece
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from gateway.openai.wire import as_json
from gateway.streams import sse
from gateway.text import called, usage
from jobs import TextDelta, TextResult, TokenLogprob

_MARK = "\ue000"
_MARKED = json.dumps(_MARK)


class Words(ABC):
    """One answer of one or several texts. In a stream only the last event's `usage` is not null."""

    def __init__(self, id: str, model: str, *, wants_usage: bool = False) -> None:
        self.id = id
        self.model = model
        self.created = int(time.time())
        self._wants_usage = wants_usage
        self._templates: dict[int, tuple[str, str]] = {}

    @abstractmethod
    def whole(self, results: Sequence[TextResult]) -> BaseModel: ...

    @abstractmethod
    def piece(self, index: int, said: TextDelta) -> ChatCompletionChunk | Completion: ...

    @abstractmethod
    def last_pieces(self, index: int, result: TextResult) -> list[ChatCompletionChunk | Completion]: ...

    @abstractmethod
    def empty(self) -> ChatCompletionChunk | Completion: ...

    def opening(self, index: int) -> list[bytes]:
        """Before a text's first piece."""
        del index
        return []

    def delta(self, index: int, said: TextDelta) -> bytes:
        if said.logprobs:
            return self.event(self.piece(index, said))
        # Making and writing the wire type anew for each token would be most of the gateway's work.
        if index not in self._templates:
            before, _, after = (
                self.event(self.piece(index, TextDelta(text=_MARK))).decode().partition(_MARKED)
            )
            self._templates[index] = before, after
        before, after = self._templates[index]
        return f"{before}{json.dumps(said.text)}{after}".encode("ascii")

    def ending(self, index: int, result: TextResult) -> list[bytes]:
        return [self.event(piece) for piece in self.last_pieces(index, result)]

    def closing(self, results: Sequence[TextResult]) -> list[bytes]:
        """After all texts have ended."""
        if not self._wants_usage:
            return [sse("[DONE]")]
        last = self.empty()
        last.usage = usage_of(results)
        return [sse(as_json(last)), sse("[DONE]")]

    def event(self, piece: ChatCompletionChunk | Completion) -> bytes:
        if self._wants_usage:
            piece.usage = None
        return sse(as_json(piece))


class ChatWords(Words):
    def whole(self, results: Sequence[TextResult]) -> ChatCompletion:
        return ChatCompletion(
            id=f"chatcmpl-{self.id}",
            object="chat.completion",
            created=self.created,
            model=results[0].model,
            choices=[self._choice(index, result) for index, result in enumerate(results)],
            usage=usage_of(results),
        )

    def opening(self, index: int) -> list[bytes]:
        return [self.event(self._chunk(index, ChoiceDelta(role="assistant", content="")))]

    def piece(self, index: int, said: TextDelta) -> ChatCompletionChunk:
        return self._chunk(index, ChoiceDelta(content=said.text), logprobs=_chat_logprobs(said.logprobs))

    def last_pieces(self, index: int, result: TextResult) -> list[ChatCompletionChunk | Completion]:
        calls = [{"index": place, **called(call)} for place, call in enumerate(result.tool_calls)]
        pieces = [self._chunk(index, ChoiceDelta.model_validate({"tool_calls": calls}))] if calls else []
        return [*pieces, self._chunk(index, ChoiceDelta(), finish_reason=result.finish_reason)]

    def empty(self) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=f"chatcmpl-{self.id}",
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=[],
        )

    def _choice(self, index: int, result: TextResult) -> Choice:
        message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
        if result.tool_calls:
            message["content"] = result.text or None
            message["tool_calls"] = [called(call) for call in result.tool_calls]
        return Choice.model_validate(
            {
                "index": index,
                "message": ChatCompletionMessage.model_validate(message),
                "finish_reason": result.finish_reason,
                "logprobs": None if result.logprobs is None else _chat_logprobs(result.logprobs),
            }
        )

    def _chunk(
        self, index: int, delta: ChoiceDelta, finish_reason: Any = None, logprobs: Any = None
    ) -> ChatCompletionChunk:
        piece = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        chunk = self.empty()
        chunk.choices = [Piece.model_validate(piece)]
        return chunk


class CompletionWords(Words):
    def whole(self, results: Sequence[TextResult]) -> Completion:
        completion = self.empty()
        completion.model = results[0].model
        completion.choices = [
            self._choice(index, result.text, result.finish_reason, result.logprobs or ())
            for index, result in enumerate(results)
        ]
        completion.usage = usage_of(results)
        return completion

    def piece(self, index: int, said: TextDelta) -> Completion:
        completion = self.empty()
        completion.choices = [self._choice(index, said.text, None, said.logprobs)]
        return completion

    def last_pieces(self, index: int, result: TextResult) -> list[ChatCompletionChunk | Completion]:
        completion = self.empty()
        completion.choices = [self._choice(index, "", result.finish_reason, ())]
        return [completion]

    def empty(self) -> Completion:
        return Completion(
            id=f"cmpl-{self.id}",
            object="text_completion",
            created=self.created,
            model=self.model,
            choices=[],
        )

    def _choice(
        self, index: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob]
    ) -> CompletionChoice:
        told = None
        if logprobs:
            told = {
                "tokens": [token.token for token in logprobs],
                "token_logprobs": [token.logprob for token in logprobs],
                "top_logprobs": [{each.token: each.logprob for each in token.top} for token in logprobs],
            }
        # The `openai` package requires a finish reason, which the API leaves null until the end.
        return CompletionChoice.construct(index=index, text=text, finish_reason=reason, logprobs=told)


def usage_of(results: Sequence[TextResult]) -> CompletionUsage:
    return CompletionUsage.model_validate(usage(results))


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not logprobs:
        return None

    def told(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    tokens = [
        {
            **told(each.token, each.logprob),
            "top_logprobs": [told(other.token, other.logprob) for other in each.top],
        }
        for each in logprobs
    ]
    return {"content": tokens, "refusal": None}
