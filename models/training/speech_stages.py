"""What Bark's three stages are shown in training: the windows that `BarkModel.generate` would feed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast
from transformers.models.bark import BarkCoarseModel, BarkFineModel, BarkSemanticModel

from models.training.speech_attention import headless
from models.training.speech_data import DEFAULT_VOICE, Utterance
from models.training.speech_model import (
    COARSE_CODEBOOKS,
    COARSE_HISTORY,
    COARSE_INFER,
    COARSE_PAD,
    COARSE_SEMANTIC,
    COARSE_WINDOW,
    CODEBOOK_SIZE,
    CODEBOOKS,
    FINE_HISTORY,
    FINE_WINDOW,
    MAX_TEXT,
    PROMPT_FRAMES,
    PROMPT_SEMANTIC,
    SEMANTIC_EOS,
    SEMANTIC_VOCAB,
    TEXT_OFFSET,
    text_pad_id,
)
from models.training.speech_phonemes import BLOCK

IGNORED = -100  # what cross-entropy leaves out
_NO_PROMPT_RATE = 0.4  # of the default voice's utterances: what is heard when no preset is given
_JOIN_RATE = 0.3

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenCorpus:
    """The corpus as tokens.

    Attributes:
        utterances: Texts and voices.
        semantic: For each, its semantic tokens, shape [n].
        codes: For each, its codec frames, shape [CODEBOOKS, 2 n].
        tokenizer: The text's.
    """

    utterances: Sequence[Utterance]
    semantic: Sequence[Tokens]
    codes: Sequence[Tokens]
    tokenizer: PreTrainedTokenizerFast

    def draw_prompt(self, index: int, rng: np.random.Generator) -> int | None:
        """Another utterance of the same voice to take the history from; None for no history."""
        voice = self.utterances[index].voice
        if voice == DEFAULT_VOICE and rng.random() < _NO_PROMPT_RATE:
            return None
        while True:
            other = int(rng.integers(len(self.utterances)))
            if other != index and self.utterances[other].voice == voice:
                return other

    def draw_alike(self, rng: np.random.Generator, batch: int) -> list[int]:
        """`batch` utterances of about one length, so that little of the batch is padding."""
        drawn = rng.integers(len(self.utterances), size=4 * batch)
        drawn = drawn[np.argsort([len(self.semantic[i]) for i in drawn], kind="stable")]
        start = int(rng.integers(4)) * batch
        return [int(i) for i in drawn[start : start + batch]]


def corrupt(tokens: Tokens, rate: float, low: int, size: int, rng: np.random.Generator) -> Tokens:
    """Replace a share of the tokens by random ones of `low` to `low + size`."""
    hit = rng.random(tokens.shape) < rate
    return np.where(hit, low + rng.integers(size, size=tokens.shape), tokens)


def text_ids(text: str, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator | None = None) -> Tokens:
    """The semantic stage's text positions, shape [MAX_TEXT].

    Given a generator, runs of spelled letters are sometimes written as one word, so that the model learns
    that an unknown word's pieces (`c ##a ##t`) are letters too.
    """
    if rng is not None:
        text = _join_letters(text, tokenizer, rng)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    padded = np.full(MAX_TEXT, text_pad_id(len(tokenizer)))
    padded[: len(ids)] = np.asarray(ids[:MAX_TEXT]) + TEXT_OFFSET
    return padded


def _join_letters(text: str, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> str:
    words, out = text.split(), list[str]()
    i = 0
    while i < len(words):
        end = i
        while end < len(words) and len(words[end]) == 1 and words[end].isalpha():
            end += 1
        joined = "".join(words[i:end])
        # A known word at the front would be taken for that word.
        spelled = end - i > 1 and len(tokenizer.tokenize(joined)) == end - i
        if spelled and rng.random() < _JOIN_RATE:
            out.append(joined)
        else:
            out += words[i : max(end, i + 1)]
        i = max(end, i + 1)
    return " ".join(out)


class SemanticLoss:
    """Text and a voice's last semantic tokens -> semantic tokens."""

    def __init__(self, model: BarkSemanticModel, corpus: TokenCorpus, batch: int) -> None:
        self.model, self.corpus, self.batch = model, corpus, batch

    def example(self, index: int, rng: np.random.Generator) -> tuple[Tokens, Tokens, Tokens, Tokens]:
        """Text ids [MAX_TEXT], history [MAX_TEXT], tokens to read and tokens to predict, both [n + 1]."""
        corpus = self.corpus
        history = np.full(MAX_TEXT, SEMANTIC_EOS)
        prompt = corpus.draw_prompt(index, rng)
        if prompt is not None:
            tail = corpus.semantic[prompt][-PROMPT_SEMANTIC:]
            history[: len(tail)] = tail
        said = corpus.semantic[index]
        # A little noise in what it reads: it has to go on well after a token of its own that was off.
        own_voice = said[0] // BLOCK * BLOCK
        read = corrupt(said, rng.uniform(0, 0.15), own_voice, BLOCK, rng)
        infer = text_pad_id(len(corpus.tokenizer)) + 1
        text = text_ids(corpus.utterances[index].text, corpus.tokenizer, rng)
        return text, history, np.append(infer, read), np.append(said, SEMANTIC_EOS)

    def __call__(self, step: int, rng: np.random.Generator) -> Tensor:
        """One batch's cross-entropy."""
        del step
        examples = [self.example(i, rng) for i in self.corpus.draw_alike(rng, self.batch)]
        text, history, read, wanted = (
            _padded([e[k] for e in examples], value).to(self.model.device)
            for k, value in enumerate((SEMANTIC_EOS, SEMANTIC_EOS, SEMANTIC_EOS, IGNORED))
        )
        embed = self.model.input_embeds_layer
        inputs = torch.cat([embed(text) + embed(history), embed(read)], dim=1)
        with headless(self.model) as head:
            hidden = self.model(inputs_embeds=inputs, use_cache=False).logits[:, MAX_TEXT:]
        chosen = wanted != IGNORED
        return functional.cross_entropy(head(hidden[chosen]).float(), wanted[chosen])


class CoarseLoss:
    """Semantic tokens and the sound so far -> the first two codebooks, in windows.

    Plain teacher forcing fails here: neighbouring codec tokens are so alike that the model continues its own
    past and ignores the semantic tokens. So a share of the past, another for each example, is replaced.
    """

    max_corruption = 0.6

    def __init__(self, model: BarkCoarseModel, corpus: TokenCorpus, batch: int) -> None:
        self.model, self.corpus, self.batch = model, corpus, batch

    @staticmethod
    def flatten(codes: Tokens) -> Tokens:
        """Codec frames [CODEBOOKS, frames] as Bark's coarse ids, the codebooks in turn; [2 * frames]."""
        offsets = SEMANTIC_VOCAB + CODEBOOK_SIZE * np.arange(COARSE_CODEBOOKS)[:, None]
        return (codes[:COARSE_CODEBOOKS] + offsets).T.reshape(-1)

    def example(self, index: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Inputs of one window and what to predict at each position."""
        corpus = self.corpus
        prompt = corpus.draw_prompt(index, rng)
        semantic_history, past = np.empty(0, np.int64), np.empty(0, np.int64)
        if prompt is not None:
            semantic_history = corpus.semantic[prompt][-PROMPT_SEMANTIC:]
            # The last frame is dropped, as Bark does "for time alignment".
            past = self.flatten(corpus.codes[prompt][:, -PROMPT_FRAMES:])[:-2]
        target = self.flatten(corpus.codes[index])
        window = int(rng.integers(-(-len(target) // COARSE_WINDOW)))
        done = window * COARSE_WINDOW
        ratio = 2 * COARSE_CODEBOOKS  # coarse tokens to a semantic one: twice the frames, two codebooks
        position = len(semantic_history) + done // ratio
        semantic = np.concatenate([semantic_history, corpus.semantic[index]])
        seen = semantic[max(0, position - COARSE_HISTORY // ratio) :][:COARSE_SEMANTIC]
        seen = np.append(seen, np.full(COARSE_SEMANTIC - len(seen), COARSE_PAD))

        rate = rng.uniform(0, self.max_corruption)
        spoiled = self._spoil(target[: done + COARSE_WINDOW], rate, rng)
        heard = np.concatenate([self._spoil(past, rate / 3, rng), spoiled[:done]])[-COARSE_HISTORY:]
        own = min(done, len(heard))  # of the history, what belongs to this utterance and not to the prompt
        inputs = np.concatenate([seen, [COARSE_INFER], heard, spoiled[done:]])[:-1]
        wanted = np.full(len(inputs), IGNORED)
        new = target[done - own : done + COARSE_WINDOW]
        wanted[len(wanted) - len(new) :] = new
        if len(past) + done > len(heard):
            # A cut history's first tokens have next to nothing before them; generation never asks for them.
            wanted[: COARSE_SEMANTIC + 1 + 8] = IGNORED
        return inputs, wanted

    @staticmethod
    def _spoil(flat: Tokens, rate: float, rng: np.random.Generator) -> Tokens:
        books = [
            corrupt(
                flat[book::COARSE_CODEBOOKS], rate, SEMANTIC_VOCAB + CODEBOOK_SIZE * book, CODEBOOK_SIZE, rng
            )
            for book in range(COARSE_CODEBOOKS)
        ]
        return np.stack(books, axis=1).reshape(-1) if len(flat) else flat

    def __call__(self, step: int, rng: np.random.Generator) -> Tensor:
        """One batch's cross-entropy, each position over the codebook whose turn it is."""
        del step
        examples = [self.example(i, rng) for i in self.corpus.draw_alike(rng, self.batch)]
        inputs = _padded([e[0] for e in examples], COARSE_PAD).to(self.model.device)
        wanted = _padded([e[1] for e in examples], IGNORED).to(self.model.device)
        with headless(self.model) as head:
            hidden = self.model(input_ids=inputs, use_cache=False).logits
        # Bark masks the other codebook's ids when it generates: each position needs its own book's only.
        losses: list[Tensor] = []
        for book in range(COARSE_CODEBOOKS):
            low = SEMANTIC_VOCAB + CODEBOOK_SIZE * book
            chosen = (wanted >= low) & (wanted < low + CODEBOOK_SIZE)
            logits = functional.linear(hidden[chosen], head.weight[low : low + CODEBOOK_SIZE])
            losses.append(functional.cross_entropy(logits.float(), wanted[chosen] - low))
        return torch.stack(losses).mean()


class FineLoss:
    """All frames' lower codebooks at once -> one of the higher ones."""

    def __init__(self, model: BarkFineModel, corpus: TokenCorpus, batch: int) -> None:
        self.model, self.corpus, self.batch = model, corpus, batch

    def example(self, index: int, book: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """One window [FINE_WINDOW, CODEBOOKS] and the codes of codebook `book` to predict, [FINE_WINDOW]."""
        corpus = self.corpus
        frames = corpus.codes[index].T
        prompt = corpus.draw_prompt(index, rng)
        if rng.random() < 0.2 and len(frames) > 2:
            # A later window of a long utterance: its history is its own past.
            known = int(rng.integers(1, min(FINE_HISTORY, len(frames) - 1) + 1))
            window = frames[int(rng.integers(len(frames) - known)) :][:FINE_WINDOW]
        else:
            history = corpus.codes[prompt][:, -PROMPT_FRAMES:].T if prompt is not None else frames[:0]
            known = len(history)
            window = np.concatenate([history, frames])[:FINE_WINDOW]
        shown = window.copy()
        rates = rng.uniform(0, (0.2, 0.3, 0.5, 0.5))
        for lower in range(book):
            # The codes it will be given are other stages' guesses.
            shown[known:, lower] = corrupt(window[known:, lower], rates[lower], 0, CODEBOOK_SIZE, rng)
        shown[known:, book:] = CODEBOOK_SIZE
        padding = FINE_WINDOW - len(window)
        wanted = np.where(np.arange(len(window)) < known, IGNORED, window[:, book])
        return (
            np.pad(shown, ((0, padding), (0, 0)), constant_values=CODEBOOK_SIZE),
            np.pad(wanted, (0, padding), constant_values=IGNORED),
        )

    def __call__(self, step: int, rng: np.random.Generator) -> Tensor:
        """One batch's cross-entropy for one of the codebooks above the coarse ones."""
        book = COARSE_CODEBOOKS + step % (CODEBOOKS - COARSE_CODEBOOKS)
        drawn = rng.integers(len(self.corpus.utterances), size=self.batch)
        examples = [self.example(int(i), book, rng) for i in drawn]
        shown, wanted = (
            torch.from_numpy(np.stack([e[k] for e in examples])).to(self.model.device) for k in (0, 1)
        )
        logits = self.model(book, input_ids=shown).logits[..., :CODEBOOK_SIZE]
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def _padded(rows: Sequence[Tokens], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.from_numpy(
        np.stack([np.pad(row, (0, width - len(row)), constant_values=value) for row in rows])
    )
