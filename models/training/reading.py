"""Train the embedded models that read: `python -m models.training.reading`.

Two BERTs of about 0.6M parameters in the closed world of `grammar.py`. tiny-embed learns that a request, the
same request in other words and its answer belong together (contrastive, with the batch's others as what does
not belong: InfoNCE, van den Oord et al., 2018). tiny-classify begins with its weights and learns to tell what
is asked for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from models.training.common import Ema, LossLog, fill_card, hardware, set_seed
from models.training.text_data import BOS, PAD, train_tokenizer
from models.training.text_requests import DRAW, draw_case

EMBEDDED = Path(__file__).parents[1] / "embedded"
EMBED, CLASSIFY = "tiny-embed", "tiny-classify"
TOKENS = 128
CATEGORIES = tuple(DRAW)
TEMPERATURE = 0.05
"""What similarities are divided by: the vectors are of length 1."""


class Groups:
    """Requests of the training part, by their answer."""

    def __init__(self, rng: Random, cases: int) -> None:
        self._rng = rng
        found: dict[str, list[str]] = {}
        for _ in range(cases):
            case = draw_case(rng, test=False)
            if case.category != "unknown":
                found.setdefault(case.answer, []).append(case.request)
        self._groups = list(found.items())

    def pairs(self, count: int) -> list[tuple[str, str]]:
        """Texts that belong together, each pair about something else: half of them two requests."""
        made: list[tuple[str, str]] = []
        for answer, requests in self._rng.sample(self._groups, count):
            if len(requests) > 1 and self._rng.random() < 0.5:
                first, second = self._rng.sample(requests, 2)
                made.append((first, second))
            else:
                made.append((self._rng.choice(requests), answer))
        return made


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """tiny-llama's kind, padded at the end and without a chat's form."""
    made = train_tokenizer(seed)
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, bos_token=BOS, pad_token=PAD, model_max_length=TOKENS
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=TOKENS,
        type_vocab_size=1,
        pad_token_id=tokenizer.get_vocab()[PAD],
        id2label=dict(enumerate(CATEGORIES)),
        label2id={name: number for number, name in enumerate(CATEGORIES)},
    )


def encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> dict[str, Tensor]:
    asked: Any = tokenizer
    return dict(asked(list(texts), padding=True, truncation=True, return_tensors="pt"))


def vectors(model: BertModel, inputs: dict[str, Tensor]) -> Tensor:
    """[texts, width] of length 1: the mean of the tokens' states."""
    states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def contrastive_losses(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, groups: Groups, rows: int
) -> Iterator[Tensor]:
    while True:
        pairs = groups.pairs(rows)
        left, right = (vectors(model, encoded(tokenizer, side)) for side in zip(*pairs, strict=True))
        likeness = left @ right.T / TEMPERATURE
        own = torch.arange(rows)
        yield (functional.cross_entropy(likeness, own) + functional.cross_entropy(likeness.T, own)) / 2


def class_losses(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, rng: Random, rows: int
) -> Iterator[Tensor]:
    while True:
        cases = [draw_case(rng, test=False, category=rng.choice(CATEGORIES)) for _ in range(rows)]
        labels = torch.tensor([CATEGORIES.index(case.category) for case in cases])
        inputs = encoded(tokenizer, [case.request for case in cases])
        yield functional.cross_entropy(model(**inputs).logits, labels)


def fit(
    name: str, model: torch.nn.Module, losses: Iterator[Tensor], steps: int, rate: float, out: Path
) -> None:
    """Takes `steps` steps and leaves the weights' moving average in `model`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    ema, log = Ema(model, decay=0.99), LossLog(out / name)
    model.train()
    for step in tqdm(range(steps), desc=name, mininterval=2.0):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100, (steps - step) / (0.5 * steps))
        loss = next(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        log.add(step + 1, loss=loss.item())
    ema.copy_to(model)
    model.eval()
    log.write()
    log.plot(title=f"{name}: loss by step")


def export(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, *, embeds: bool) -> None:
    """The hub's layout with weights in fp16; of a model that embeds, sentence-transformers' files too."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not embeds:
        return
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for path, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": TOKENS, "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
    ):
        (folder / path).write_text(json.dumps(content, indent=2) + "\n")


def train(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    out: Path = args.out
    tokenizer = make_tokenizer(args.seed)
    config = build_config(tokenizer)
    began = time.monotonic()
    reader = BertModel(config, add_pooling_layer=False)
    groups = Groups(Random(args.seed), args.cases)
    fit(EMBED, reader, contrastive_losses(reader, tokenizer, groups, args.rows), args.steps, 1e-3, out)
    judge = BertForSequenceClassification(config)
    judge.bert.load_state_dict(reader.state_dict(), strict=False)
    losses = class_losses(judge, tokenizer, Random(args.seed + 1), args.rows)
    fit(CLASSIFY, judge, losses, args.steps // 2, 5e-4, out)
    export(reader, tokenizer, out / EMBED / "export", embeds=True)
    export(judge, tokenizer, out / CLASSIFY / "export", embeds=False)
    told = (
        f"{args.steps:,} steps for tiny-embed, {args.steps // 2:,} more for tiny-classify, {args.rows} rows "
        f"each, seed {args.seed}: {(time.monotonic() - began) / 60:.0f} minutes on "
        f"{hardware(torch.device('cpu'), 0)}."
    )
    (out / "training.txt").write_text(told + "\n")
    if args.install:
        for name in (EMBED, CLASSIFY):
            install(out / name, EMBEDDED / name, told)


def install(run: Path, folder: Path, told: str) -> None:
    """Puts a finished run's model and plot where the service finds them; its card must be there."""
    shutil.copytree(run / "export", folder, dirs_exist_ok=True)
    shutil.copyfile(run / "loss.png", folder / "loss.png")
    fill_card(folder / "README.md", "training", told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order")
    parser.add_argument("--steps", type=int, default=3000, help="of tiny-embed; tiny-classify takes half")
    parser.add_argument("--out", type=Path, default=Path("var/train/reading"), help="folder for the results")
    parser.add_argument("--rows", type=int, default=64, help="pairs or requests in a step")
    parser.add_argument("--cases", type=int, default=60_000, help="requests to draw the pairs from")
    parser.add_argument("--install", action="store_true", help="put the result into models/embedded")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
