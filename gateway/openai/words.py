"""What /v1/chat/completions and /v1/completions say: whole, and piece by piece."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as Piece
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from gateway.openai.wire import as_json
from gateway.streams import sse
from jobs import TextResult

_MARK = "\ue000"
_MARKED = json.dumps(_MARK)


def usage_of(result: TextResult) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        total_tokens=result.prompt_tokens + result.completion_tokens,
    )


class Words(ABC):
    """One answer. In a stream each event tells `usage`, null but in the last, if the caller wants it told."""

    def __init__(self, id: str, model: str, *, wants_usage: bool = False) -> None:
        self.id = id
        self.model = model
        self.created = int(time.time())
        self._wants_usage = wants_usage
        # Making and writing the wire type anew for each token would be most of the gateway's work.
        self._before, _, self._after = self._event(self.piece(_MARK)).decode("ascii").partition(_MARKED)

    @abstractmethod
    def whole(self, result: TextResult) -> BaseModel: ...

    @abstractmethod
    def piece(self, text: str) -> ChatCompletionChunk | Completion: ...

    @abstractmethod
    def last_piece(self, result: TextResult) -> ChatCompletionChunk | Completion: ...

    @abstractmethod
    def usage(self, result: TextResult) -> ChatCompletionChunk | Completion: ...

    def opening(self) -> list[bytes]:
        return []

    def delta(self, text: str) -> bytes:
        return f"{self._before}{json.dumps(text)}{self._after}".encode("ascii")

    def ending(self, result: TextResult) -> list[bytes]:
        told = [sse(as_json(self.usage(result)))] if self._wants_usage else []
        return [self._event(self.last_piece(result)), *told, sse("[DONE]")]

    def _event(self, piece: ChatCompletionChunk | Completion) -> bytes:
        if self._wants_usage:
            piece.usage = None
        return sse(as_json(piece))


class ChatWords(Words):
    def whole(self, result: TextResult) -> ChatCompletion:
        message = ChatCompletionMessage(role="assistant", content=result.text, refusal=None)
        choice = Choice(index=0, message=message, finish_reason=result.finish_reason, logprobs=None)
        return ChatCompletion(
            id=f"chatcmpl-{self.id}",
            object="chat.completion",
            created=self.created,
            model=result.model,
            choices=[choice],
            usage=usage_of(result),
        )

    def opening(self) -> list[bytes]:
        first = ChoiceDelta(role="assistant", content="")
        return [self._event(self._chunk([Piece(index=0, delta=first, finish_reason=None, logprobs=None)]))]

    def piece(self, text: str) -> ChatCompletionChunk:
        delta = ChoiceDelta(content=text)
        return self._chunk([Piece(index=0, delta=delta, finish_reason=None, logprobs=None)])

    def last_piece(self, result: TextResult) -> ChatCompletionChunk:
        end = Piece(index=0, delta=ChoiceDelta(), finish_reason=result.finish_reason, logprobs=None)
        return self._chunk([end])

    def usage(self, result: TextResult) -> ChatCompletionChunk:
        chunk = self._chunk([])
        chunk.usage = usage_of(result)
        return chunk

    def _chunk(self, choices: list[Piece]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=f"chatcmpl-{self.id}",
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=choices,
        )


class CompletionWords(Words):
    def whole(self, result: TextResult) -> Completion:
        self.model = result.model
        choice = CompletionChoice(
            index=0, text=result.text, finish_reason=result.finish_reason, logprobs=None
        )
        completion = self._completion([choice])
        completion.usage = usage_of(result)
        return completion

    def piece(self, text: str) -> Completion:
        # The `openai` package requires a finish reason, which the API leaves null until the end.
        choice = CompletionChoice.construct(index=0, text=text, finish_reason=None, logprobs=None)
        return self._completion([choice])

    def last_piece(self, result: TextResult) -> Completion:
        end = CompletionChoice(index=0, text="", finish_reason=result.finish_reason, logprobs=None)
        return self._completion([end])

    def usage(self, result: TextResult) -> Completion:
        completion = self._completion([])
        completion.usage = usage_of(result)
        return completion

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=f"cmpl-{self.id}",
            object="text_completion",
            created=self.created,
            model=self.model,
            choices=choices,
        )
