"""Score the embedded models that read: `python -m models.training.score_reading`.

They are loaded as the service loads them, and asked cases that were kept from their training.
"""

from __future__ import annotations

import argparse
from random import Random
from typing import Any

import torch

from jobs import ClassifyJob, EmbedJob
from models.protocol import ModelSpec
from models.text import classifier, embedder
from models.training.common import fill_card
from models.training.reading import CATEGORIES, CLASSIFY, EMBED, EMBEDDED
from models.training.text_requests import Case, draw_case


def answers_found(model: embedder.Embedder, categories: tuple[str, ...], count: int, rng: Random) -> float:
    """Of `count` requests the share whose own answer is the nearest of all `count`, which differ."""
    cases: dict[str, Case] = {}
    while len(cases) < count:
        case = draw_case(rng, test=True, category=rng.choice(categories))
        cases.setdefault(case.answer, case)
    asked, told = (_vectors(model, texts) for texts in ([c.request for c in cases.values()], list(cases)))
    nearest = (asked @ told.T).argmax(dim=1)
    return float((nearest == torch.arange(count)).float().mean())


def _vectors(model: embedder.Embedder, texts: list[str]) -> torch.Tensor:
    row = model.prepare(EmbedJob(id="score", timeout_s=60, texts=tuple(texts)))
    return torch.tensor(model.answer([row])[0].vectors)


def told_right(model: Any, category: str, count: int, rng: Random) -> float:
    """Of `count` requests of a category the share that is labelled so."""
    texts = tuple(draw_case(rng, test=True, category=category).request for _ in range(count))
    row = model.prepare(ClassifyJob(id="score", timeout_s=60, texts=texts, top_k=1))
    return sum(each.labels[0].label == category for each in model.answer([row])[0].findings) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=20261125, help="seed of the cases")
    parser.add_argument("--cases", type=int, default=200, help="cases a row")
    args = parser.parse_args()
    rng, count = Random(args.seed), args.cases
    reader = embedder.load(ModelSpec(name=EMBED, folder=EMBEDDED / EMBED))
    kinds = {"of stories": ("story",), "of all else": ("define", "count", "add")}
    rows = [
        f"| {what} | {count} | {answers_found(reader, categories, count, rng):.1%} |"
        for what, categories in kinds.items()
    ]
    head = "| held-out requests | how many | own answer nearest |\n|---|---|---|\n"
    fill_card(EMBEDDED / EMBED / "README.md", "score", head + "\n".join(rows))
    judge = classifier.load(ModelSpec(name=CLASSIFY, folder=EMBEDDED / CLASSIFY))
    rows += [f"| {name} | {count} | {told_right(judge, name, count, rng):.1%} |" for name in CATEGORIES]
    head = "| held-out requests | how many | told right |\n|---|---|---|\n"
    fill_card(EMBEDDED / CLASSIFY / "README.md", "score", head + "\n".join(rows[2:]))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
