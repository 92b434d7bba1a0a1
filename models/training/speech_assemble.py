"""Put the trained parts, the voices and the model card's facts into the folder that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BarkModel, BarkProcessor

from models.training.common import LossLog
from models.training.judge_speech import pitch_hz
from models.training.speech_data import VOICES, Corpus
from models.training.speech_model import Preset, build_generation_config, make_preset, save_folder
from models.training.speech_stages import TokenCorpus

TRAINED = ("codec", "decoder", "semantic", "coarse", "fine")
_PROMPT_TEXT_WORDS = 4  # a voice is cut from a sentence of at least so many words: it has settled by its end
_CANDIDATES = 4
_TRIAL_TEXTS = ("one two six", "the blue star")


def choose_presets(model: BarkModel, tokens: TokenCorpus, corpus: Corpus) -> dict[str, Preset]:
    """For each voice, the sentence end after which the model keeps nearest to that voice's pitch.

    Tries the first few sentences of the voice that are long enough and no questions, whose pitch rises.
    """
    presets: dict[str, Preset] = {}
    for voice in VOICES:
        fitting = [
            index
            for index, said in enumerate(tokens.utterances)
            if said.voice == voice and len(said.text.split()) >= _PROMPT_TEXT_WORDS and "?" not in said.text
        ][:_CANDIDATES]
        tried = {index: make_preset(tokens.semantic[index], tokens.codes[index]) for index in fitting}
        best = min(fitting, key=lambda index: _pitch_error(model, tokens, tried[index], corpus.wave(index)))
        presets[voice] = tried[best]
    return presets


def _pitch_error(model: BarkModel, tokens: TokenCorpus, preset: Preset, wave: NDArray[np.float32]) -> float:
    """Mean distance in octaves between the pitch of what is said after the preset and of the voice itself."""
    wanted = pitch_hz(wave)
    if wanted is None:
        return float("inf")
    processor = BarkProcessor(tokens.tokenizer)
    errors: list[float] = []
    for text in _TRIAL_TEXTS:
        said = model.generate(**processor(text, voice_preset=dict(preset)))[0].numpy()
        pitch = pitch_hz(said)
        errors.append(2.0 if pitch is None else abs(float(np.log2(pitch / wanted))))
    return float(np.mean(errors))


def assemble(model: BarkModel, tokens: TokenCorpus, corpus: Corpus, out: Path, folder: Path) -> None:
    """Write the trained model to `folder`, with the plot of its losses and what the training took."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for layer in model.codec_model.quantizer.layers:
            # Only training moves codebooks; their counts would not fit fp16.
            layer.codebook.cluster_size.zero_()
            layer.codebook.embed_avg.zero_()
    model = model.cpu().float().eval()
    model.generation_config = build_generation_config(len(tokens.tokenizer))
    save_folder(folder, model, choose_presets(model, tokens, corpus))
    plot_losses(out, folder / "loss.png")
    write_section(folder / "README.md", "training", training_table(model, out))


def training_table(model: BarkModel, out: Path) -> str:
    """The model card's table of parts: parameters, steps and time."""
    parts = {
        "codec": model.codec_model,
        "decoder": model.codec_model.decoder,
        "semantic": model.semantic,
        "coarse": model.coarse_acoustics,
        "fine": model.fine_acoustics,
    }
    lines = [
        "| part | parameters | steps | CPU minutes | minutes by the clock |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, part in parts.items():
        size = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        if not (out / f"{name}.json").exists():
            lines.append(f"| {name} | {size:.2f}M | kept as it was | | |")
            continue
        spent = json.loads((out / f"{name}.json").read_text())
        times = f"{spent['cpu_s'] / 60:.0f} | {spent['wall_s'] / 60:.0f}"
        lines.append(f"| {name} | {size:.2f}M | {spent['steps']} | {times} |")
    return "\n".join(lines)


def plot_losses(out: Path, path: Path) -> None:
    """All parts' losses in one picture, each over its own steps."""
    joined = LossLog(out, "all")
    for name in TRAINED:
        log = LossLog(out, name, resume_from=1 << 30)
        for row in log.rows:
            joined.add(int(row["step"]), **{name: row["loss"]})
    joined.rows.sort(key=lambda row: row["step"])
    joined.plot(path, title="tiny-bark")


def write_section(card: Path, name: str, body: str) -> None:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->` in a model card.

    Raises:
        ValueError: the card has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = card.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{card} has no section {name!r}")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    card.write_text(f"{head}{begin}\n{body}\n{end}{tail}", encoding="utf-8")
