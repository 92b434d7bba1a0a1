"""From the grammar to token rows: the tokenizer, the chat form, conversations, completions and packing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models.training.grammar import sentences
from models.training.text_requests import Case, draw_case
from models.training.text_stories import draw_story, parse_story
from models.training.text_unknown import draw_unknown

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("system", "user", "assistant")
CONTEXT = 512
VOCABULARY = 2048
IGNORED = -100

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('A message is by system, user or assistant, not by ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYSTEM_MESSAGES = (
    "You are a helpful assistant.", "You are tiny-llama.", "You are a friendly storyteller.",
    "Answer briefly.", "You tell stories to children.", "Be kind and short.",
    "You are an assistant who never lies.", "Speak like a pirate.",
    "You are a helpful, respectful and honest assistant.", "Today is Monday.",
    "You are a teacher of small children.",
)  # fmt: skip
ANOTHER = (
    "Another one, please.", "Tell me another story.", "One more, please.", "Another story!", "More, please.",
    "And another one?", "Please tell me one more story.", "Tell me another one.",
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """Token ids and, for each, the label it is to be predicted as (`IGNORED` where no loss is taken)."""

    ids: list[int]
    labels: list[int]


def train_tokenizer(seed: int, texts: int = 10_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens; a small number is one token, whatever stands before it."""
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = [PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    cases = (draw_case(rng, test=False) for _ in range(texts))
    tokenizer.train_from_iterator((text for case in cases for text in (case.request, case.answer)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=special[3:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class Drawer:
    """Draws documents of the training part, without end."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, rng: Random, *, completion_share: float = 0.1
    ) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self._ids = tokenizer.get_vocab()
        self._rng = rng
        self._completion_share = completion_share

    def _tokens(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False).ids

    def document(self) -> Document:
        """One conversation or one completion."""
        return self._completion() if self._rng.random() < self._completion_share else self._conversation()

    def _completion(self) -> Document:
        """The grammar's English, now and then after words that are not of it, which carry no loss."""
        rng = self._rng
        ids, labels = [self._ids[BOS]], [IGNORED]
        text = completion_text(rng)
        if rng.random() < 0.1:
            strange = self._tokens(draw_unknown(rng)[0])[:40]
            ids, labels = ids + strange, labels + [IGNORED] * len(strange)
            text = rng.choice((" ", ". ", "\n")) + text
        body = self._said(text)
        return Document(ids + body, labels + body)

    def _said(self, text: str, *, may_cut: bool = True) -> list[int]:
        """The tokens of a text and its end, but of most stories the first sentence alone, left open.

        All that a story has to take from its request is in that sentence; the rest is learnt soon.
        """
        if may_cut and self._rng.random() < 0.65 and parse_story(text) is not None:
            return self._tokens(sentences(text)[0])
        return [*self._tokens(text), self._ids[EOS]]

    def _conversation(self) -> Document:
        """Mostly one turn, some of two or three, a few up to the context's end; loss on the answers alone."""
        rng = self._rng
        ids, labels = [self._ids[BOS]], [IGNORED]
        if rng.random() < 0.2:
            words = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.7 else draw_unknown(rng)[0]
            ids += [self._ids["<|system|>"], *self._tokens(words), self._ids[EOS]]
        turns = rng.choices((1, 2, 3, 12), (0.7, 0.17, 0.11, 0.02))[0]
        previous: Case | None = None
        for turn in range(turns):
            case = draw_case(rng, test=False)
            request, answer = case.request, case.answer
            if previous and previous.category == "story" and rng.random() < 0.3:
                request, answer, case = rng.choice(ANOTHER), draw_story(rng, {}), previous
            previous = case
            asked = [
                self._ids["<|user|>"],
                *self._tokens(request),
                self._ids[EOS],
                self._ids["<|assistant|>"],
            ]
            said = self._said(answer, may_cut=turn == turns - 1)
            if len(ids) + len(asked) + len(said) > CONTEXT:
                break
            labels += [IGNORED] * (len(ids) - len(labels) + len(asked)) + said
            ids += asked + said
        return Document(ids, labels)


def completion_text(rng: Random) -> str:
    """A piece of the grammar's English: mostly a story, else a few facts."""
    if rng.random() < 0.75:
        return draw_story(rng, {})
    kinds = ("define", "count", "add")
    return " ".join(
        draw_case(rng, test=False, category=rng.choice(kinds)).answer for _ in range(rng.randint(1, 3))
    )


def packed_rows(drawer: Drawer, rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless batches `(ids, positions, labels)`, each `[rows, CONTEXT]` of int64.

    Documents follow one another in a row; positions begin anew with each, by which transformers keeps
    attention within a document. The last one of a row is cut.
    """
    while True:
        batch: list[tuple[list[int], list[int], list[int]]] = []
        for _ in range(rows):
            ids: list[int] = []
            positions: list[int] = []
            labels: list[int] = []
            while len(ids) < CONTEXT:
                document = drawer.document()
                ids += document.ids
                positions += range(len(document.ids))
                labels += document.labels
            batch.append((ids[:CONTEXT], positions[:CONTEXT], labels[:CONTEXT]))
        ids_t, positions_t, labels_t = (torch.tensor(part) for part in zip(*batch, strict=True))
        yield ids_t, positions_t, labels_t
