"""Score the embedded text model on cases kept from its training: `python -m models.training.score_text`.

The judge is the grammar's own recogniser. Each run draws its cases with a fresh seed unless one is given.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.training import grammar
from models.training.common import fill_card
from models.training.text_judge import grammatical
from models.training.text_requests import DRAW, Case, draw_case
from models.training.text_stories import draw_story, parse_story

EMBEDDED = Path(__file__).parents[1] / "embedded" / "tiny-llama"
SPEED_PROMPT = "Tell me a story about a red fox named Otto in the forest."


@dataclass(frozen=True)
class Row:
    """One line of the score table; shares are 0 to 1, None where a column has no meaning."""

    what: str
    cases: int
    right: float | None
    grammatical: float | None


class Speaker:
    """The shipped model, loaded as anyone would load it."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Any: the stubs of transformers refuse `generate` on the classes that have it.
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self.model.eval()

    def chat_form(self, request: str) -> str:
        """The text of a conversation of one request, ready for the answer."""
        messages = [{"role": "user", "content": request}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    @torch.inference_mode()
    def say(self, texts: list[str], *, chat: bool, temperature: float = 0.0, batch: int = 50) -> list[str]:
        """Go on from each text until the model ends by itself or 128 tokens; greedy at temperature 0."""
        if chat:
            texts = [self.chat_form(text) for text in texts]
        how = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        said: list[str] = []
        for start in range(0, len(texts), batch):
            some = texts[start : start + batch]
            # The chat form brings its own beginning-of-text token.
            inputs = self.tokenizer(some, return_tensors="pt", padding=True, add_special_tokens=not chat)
            out = self.model.generate(**inputs, **how, max_new_tokens=128)
            fresh = out[:, inputs["input_ids"].shape[1] :]
            said += self.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return said


def completion_prompts(rng: Random, count: int) -> list[str]:
    """Beginnings of stories about held-out combinations, cut between two words of the first two sentences."""
    prompts: list[str] = []
    while len(prompts) < count:
        choices = (("animal", grammar.ANIMALS), ("colour", grammar.COLOURS), ("place", grammar.PLACES))
        given = {slot: rng.choice(words) for slot, words in choices}
        if grammar.held_out("story", *given.values()):
            parts = grammar.sentences(draw_story(rng, given))[:2]
            words = " ".join(parts).split(" ")
            prompts.append(" ".join(words[: rng.randint(2, len(words))]))
    return prompts


def score(speaker: Speaker, seed: int, count: int, misses: Console | None = None) -> list[Row]:
    """The score table: each kind of request, then completions, then both sampled at temperature 0.7."""
    rng = Random(seed)
    torch.manual_seed(seed)
    rows: list[Row] = []
    cases: list[Case] = []
    totals: Counter[str] = Counter()
    for category in DRAW:
        some = [draw_case(rng, test=True, category=category) for _ in range(count)]
        answers = speaker.say([case.request for case in some], chat=True)
        right = [case.is_right(answer) for case, answer in zip(some, answers, strict=True)]
        good, total = _grammatical(answers)
        rows.append(Row(f"chat: {category}", count, sum(right) / count, good / total))
        totals.update(right=sum(right), good=good, total=total)
        cases += some
        for case, answer, ok in zip(some, answers, right, strict=True):
            if misses and not ok:
                misses.print(f"{category}: {case.request!r} -> {answer!r}", markup=False, highlight=False)
    rows.append(Row("chat: all", len(cases), totals["right"] / len(cases), totals["good"] / totals["total"]))
    prompts = completion_prompts(rng, 2 * count)
    for what, temperature in (("completion", 0.0), ("completion at temperature 0.7", 0.7)):
        said = speaker.say(prompts, chat=False, temperature=temperature)
        texts = [prompt + more for prompt, more in zip(prompts, said, strict=True)]
        right = [parse_story(text) is not None for text in texts]
        good, total = _grammatical(texts)
        rows.append(Row(what, len(texts), sum(right) / len(texts), good / total))
        for text, ok in zip(texts, right, strict=True):
            if misses and not ok:
                misses.print(f"{what}: {text!r}", markup=False, highlight=False)
    sampled = rng.sample(cases, min(len(cases), 2 * count))
    answers = speaker.say([case.request for case in sampled], chat=True, temperature=0.7)
    right = [case.is_right(answer) for case, answer in zip(sampled, answers, strict=True)]
    good, total = _grammatical(answers)
    return [*rows, Row("chat at temperature 0.7", len(sampled), sum(right) / len(right), good / total)]


def _grammatical(texts: list[str]) -> tuple[int, int]:
    counts = [grammatical(text) for text in texts]
    return sum(good for good, _ in counts), sum(total for _, total in counts)


def seconds_for_20_words(speaker: Speaker, threads: int = 2) -> float:
    """The median of five measurements: seconds for a 20-word answer, prompt included, warm, alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times: list[float] = []
        for _ in range(6):
            began = time.perf_counter()
            words = len(speaker.say([SPEED_PROMPT], chat=True)[0].split())
            times.append((time.perf_counter() - began) * 20 / words)
        return sorted(times[1:])[2]
    finally:
        torch.set_num_threads(before)


def as_markdown(rows: list[Row], seconds: float, seed: int) -> str:
    """The table as the model card shows it."""
    lines = ["| held-out cases | how many | right | sentences of the grammar |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.cases} | {_percent(r.right)} | {_percent(r.grammatical)} |" for r in rows]
    return "\n".join(
        [*lines, "", f"A 20-word answer: {seconds:.2f} s on 2 CPU cores. Cases drawn with seed {seed}."]
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def show(rows: list[Row], seconds: float, seed: int) -> None:
    """Print the table to the terminal."""
    table = Table(
        "held-out cases", "how many", "right", "sentences of the grammar", title=f"tiny-llama, seed {seed}"
    )
    for row in rows:
        table.add_row(row.what, str(row.cases), _percent(row.right), _percent(row.grammatical))
    Console().print(table)
    Console().print(f"A 20-word answer: {seconds:.2f} s on 2 threads")


def main() -> None:
    """Score, show, and write the table to the model card unless told otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder in the hub's layout")
    parser.add_argument("--seed", type=int, default=None, help="of the cases; a fresh one when left out")
    parser.add_argument("--count", type=int, default=200, help="cases of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--misses", action="store_true", help="print every wrong answer")
    parser.add_argument("--no-card", action="store_true", help="leave the model card alone")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    speaker = Speaker(args.model)
    rows = score(speaker, seed, args.count, Console(stderr=True) if args.misses else None)
    seconds = seconds_for_20_words(speaker)
    if not args.no_card:
        fill_card(args.model / "README.md", "score", as_markdown(rows, seconds, seed))
    if args.json:
        result = {"seed": seed, "seconds_for_20_words": seconds, "rows": [asdict(row) for row in rows]}
        print(json.dumps(result, indent=2))
    else:
        show(rows, seconds, seed)


if __name__ == "__main__":
    main()
