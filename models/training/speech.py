"""Train the embedded speech model: `python -m models.training.speech`.

A real Bark with its codec, on nothing but what espeak-ng says. The stages, each kept in `--out` and skipped
when it is done: corpus, codec, tokens, decoder, semantic, coarse, fine, assemble. An interrupted stage goes
on from its last checkpoint; delete its file to have it anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from transformers import BarkModel

from models.training.common import prepare, processes
from models.training.speech_assemble import assemble
from models.training.speech_attention import align_positions, alike, fused_attention
from models.training.speech_codec import CodecLoss, DecoderLoss, without_mkldnn_lstm
from models.training.speech_data import Corpus, build_corpus
from models.training.speech_espeak import EspeakMissingError
from models.training.speech_loop import Plan, StepLoss, train
from models.training.speech_model import SEMANTIC_VOCAB, build_config, build_tokenizer
from models.training.speech_stages import CoarseLoss, FineLoss, SemanticLoss, TokenCorpus
from models.training.speech_start import start_from
from models.training.speech_tokens import codec_tokens, semantic_tokens

STAGES = ("corpus", "codec", "tokens", "decoder", "semantic", "coarse", "fine", "assemble")
UTTERANCES = 8_000
CODED_UTTERANCES = 4_000
"""Of these, the first that the coarse and the fine stage see: two hours of sound, and encoding takes time."""

CODEC_PLAIN_STEPS = 450
"""Of the codec's steps, those as a plain autoencoder."""

PLANS = {
    "codec": Plan(steps=6_000, rate=1.5e-3, betas=(0.8, 0.99), weight_decay=1e-4, bf16=False),
    "decoder": Plan(steps=6_500, rate=1e-3, betas=(0.8, 0.99), weight_decay=1e-4, average=0.995, bf16=False),
    "semantic": Plan(steps=4_000, rate=2e-3, average=0.995),
    "coarse": Plan(steps=4_000, rate=2e-3, average=0.995),
    "fine": Plan(steps=900, rate=1.5e-3, average=0.99),
}
"""Batches are 6 crops of 0.5 s, 6 crops of 0.6 s, 32 sentences, 16 windows and 16 windows."""


class Recipe:
    """The stages, each of which loads what it needs of the earlier ones."""

    def __init__(self, out: Path, seed: int, device: torch.device, scale: float, start: Path | None) -> None:
        self.out, self.seed, self.device, self.scale = out, seed, device, scale
        self.start = start
        self.tokenizer = build_tokenizer()

    @cached_property
    def model(self) -> BarkModel:
        """The whole model with new weights; each stage fills in its own part."""
        torch.manual_seed(self.seed)
        model = BarkModel(build_config(len(self.tokenizer)))
        for layer in (
            model.semantic.input_embeds_layer,
            model.semantic.lm_head,
            model.coarse_acoustics.input_embeds_layer,
        ):
            alike(layer.weight[:SEMANTIC_VOCAB])
        align_positions(model.coarse_acoustics)
        if self.start is not None:
            start_from(self.start, model)
        torch.nn.Module.to(model, self.device)
        return model

    @cached_property
    def corpus(self) -> Corpus:
        """What espeak-ng said."""
        return build_corpus(self.out, max(100, round(UTTERANCES * self.scale)), self.seed)

    def semantic_only(self) -> TokenCorpus:
        """The corpus with its semantic tokens alone: the semantic stage needs no codec."""
        semantic = [semantic_tokens(said) for said in self.corpus.utterances]
        return TokenCorpus(self.corpus.utterances, semantic, [], self.tokenizer)

    @cached_property
    def tokens(self) -> TokenCorpus:
        """The corpus with both kinds of tokens."""
        count = min(len(self.corpus.utterances), round(CODED_UTTERANCES * self.scale))
        known = self.semantic_only()
        codes = codec_tokens(self.corpus, count, self.model.codec_model, self.out)
        return replace(
            known, utterances=known.utterances[:count], semantic=known.semantic[:count], codes=codes
        )

    def train_stage(self, name: str, module: torch.nn.Module, loss: StepLoss) -> None:
        """Train one part by its plan, or load it if it is done, and note what it took."""
        plan = PLANS[name]
        steps = max(2, round(plan.steps * self.scale))
        with fused_attention(module):
            spent = train(name, module, loss, replace(plan, steps=steps), self.out, self.seed)
        if spent.steps:  # of processes that train together, the first one has kept the books
            (self.out / f"{name}.json").write_text(json.dumps(asdict(spent)))

    def codec(self) -> None:
        """Train or load the codec; the one of a model to start from is kept, and so are its tokens."""
        codec = self.model.codec_model
        if self.start is not None:
            return
        handles = without_mkldnn_lstm(codec)
        plain = max(1, round(CODEC_PLAIN_STEPS * self.scale))
        self.train_stage("codec", codec, CodecLoss(codec, self.corpus, plain, self.seed))
        for handle in handles:
            handle.remove()

    def decoder(self) -> None:
        """Train the codec's decoder further, or load it."""
        codec = self.model.codec_model
        handles = without_mkldnn_lstm(codec)
        self.train_stage("decoder", codec.decoder, DecoderLoss(codec, self.corpus, self.tokens.codes))
        for handle in handles:
            handle.remove()

    def semantic(self) -> None:
        """Train or load the semantic stage."""
        model = self.model.semantic
        self.train_stage(
            "semantic", model, SemanticLoss(model, self.semantic_only(), batch=-(-32 // processes()[1]))
        )

    def coarse(self) -> None:
        """Train or load the coarse stage."""
        model = self.model.coarse_acoustics
        self.train_stage("coarse", model, CoarseLoss(model, self.tokens, batch=-(-16 // processes()[1])))

    def fine(self) -> None:
        """Train or load the fine stage."""
        model = self.model.fine_acoustics
        self.train_stage("fine", model, FineLoss(model, self.tokens, batch=16))

    def run(self, stage: str, folder: Path) -> None:
        """Run one stage, or with `all` every one; `folder` is where the model is put together."""
        steps: dict[str, Callable[[], object]] = {
            "corpus": lambda: self.corpus,
            "codec": self.codec,
            "tokens": lambda: self.tokens,
            "decoder": self.decoder,
            "semantic": self.semantic,
            "coarse": self.coarse,
            "fine": self.fine,
            "assemble": lambda: assemble(self.model, self.tokens, self.corpus, self.out, folder),
        }
        needs_codec = {"tokens", "decoder", "coarse", "fine"}
        for name in STAGES if stage == "all" else _with_needs(stage, needs_codec):
            steps[name]()


def _with_needs(stage: str, needs_codec: set[str]) -> Sequence[str]:
    # Finished stages only load their checkpoint, so running them again is how a part gets its weights.
    if stage == "assemble":
        return ("codec", "decoder", "semantic", "coarse", "fine", "assemble")
    return ("codec", stage) if stage in needs_codec else (stage,)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train the embedded speech model.")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="one stage, or all in turn")
    parser.add_argument("--scale", type=float, default=1.0, help="share of data and steps, for a quick try")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("var/train/speech"), help="checkpoints and logs")
    parser.add_argument(
        "--earlier", type=Path, default=None, help="go on from the model in this folder, as far as it fits"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("models/embedded/tiny-bark"), help="the model's folder"
    )
    args = parser.parse_args()
    device = prepare(args)
    try:
        Recipe(args.out, args.seed, device, args.scale, args.earlier).run(args.stage, args.folder)
    except EspeakMissingError as error:
        Console(stderr=True).print(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
