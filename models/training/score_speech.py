"""Score the embedded speech model: `python -m models.training.score_speech`.

Says held-out sentences, drawn with a seed of their own, with the model and with espeak-ng; has both judged
by pocketsphinx with the same closed grammars; measures pitch, length, loudness and speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import BarkModel, BarkProcessor

from models.training.judge_speech import HIGH_PITCH_HZ, SAMPLE_RATE, Heard, Listener, compare, pitch_hz
from models.training.speech_assemble import write_section
from models.training.speech_data import VOICES, synthesize
from models.training.speech_grammar import ALL_KINDS, Case, draw_cases
from models.training.speech_text import words_of

Speaker = Callable[[str, str], NDArray[np.float32]]
"""From text and voice to sound [samples] at 16 kHz."""

_FADE = 0.999  # a sample at or above it counts as clipped
_SILENT_RMS = 0.01
EXAMPLE = "one two three four"
GOALS = {"digits": 0.95, "whole vocabulary": 0.85}
"""Least word recall, as a share of what espeak-ng gets from the same judge."""


class BarkSpeaker:
    """The model as plain transformers run it: greedy, one sentence at a time."""

    def __init__(self, folder: Path) -> None:
        self.processor = BarkProcessor.from_pretrained(folder)
        self.model = BarkModel.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(self, text: str, voice: str) -> NDArray[np.float32]:
        """Say `text` in a preset's voice."""
        inputs = self.processor(text, voice_preset=voice)
        return self.model.generate(**inputs)[0].float().numpy()


@dataclass(frozen=True)
class Line:
    """What one sentence came to.

    Attributes:
        kind: The kind of sentence.
        voice: The voice asked for.
        own: How the judge heard the model.
        espeak: How the judge heard espeak-ng.
        right_pitch: Whether the pitch is on the voice's side of `HIGH_PITCH_HZ`.
        length_ratio: The sound's length over espeak-ng's.
        clipped: Whether any sample is at full scale.
        silent: Whether the sound is next to nothing.
        seconds: Length of the sound.
        took_s: Time it took to make, by the clock.
        cpu_s: Seconds of computing that took, all threads together.
    """

    kind: str
    voice: str
    own: Heard
    espeak: Heard
    right_pitch: bool
    length_ratio: float
    clipped: bool
    silent: bool
    seconds: float
    took_s: float
    cpu_s: float


def score(speaker: Speaker, cases: Iterable[Case]) -> list[Line]:
    """Say and judge every case, the voices in turn."""
    listeners: dict[str, Listener] = {}
    voices = list(VOICES)
    lines: list[Line] = []
    for index, case in enumerate(track(list(cases), description="score")):
        voice = voices[index % len(voices)]
        if case.rules not in listeners:
            listeners[case.rules] = Listener(case.rules)
        listener = listeners[case.rules]
        started, computed = time.monotonic(), time.process_time()
        wave = speaker(case.text, voice)
        took, cpu = time.monotonic() - started, time.process_time() - computed
        reference = synthesize(case.text, voice)
        pitch = pitch_hz(wave)
        lines.append(
            Line(
                kind=case.kind,
                voice=voice,
                own=compare(words_of(case.text), listener.hear(wave)),
                espeak=compare(words_of(case.text), listener.hear(reference)),
                right_pitch=pitch is not None and (pitch > HIGH_PITCH_HZ) == VOICES[voice].high,
                length_ratio=len(wave) / len(reference),
                clipped=bool(np.abs(wave).max() >= _FADE),
                silent=bool(np.sqrt(np.mean(wave**2)) < _SILENT_RMS),
                seconds=len(wave) / SAMPLE_RATE,
                took_s=took,
                cpu_s=cpu,
            )
        )
    return lines


@dataclass(frozen=True)
class Recall:
    """Word recall over some lines.

    Attributes:
        words: Words said.
        own: Share of them heard from the model.
        espeak: Share of them heard from espeak-ng.
        extra: Words heard from the model that were not said, over the words said.
    """

    words: int
    own: float
    espeak: float
    extra: float

    @property
    def relative(self) -> float:
        """The model's recall over espeak-ng's."""
        return self.own / self.espeak if self.espeak else 0.0


def recall(lines: Iterable[Line]) -> Recall:
    """Sum the lines up."""
    chosen = list(lines)
    own = sum((line.own for line in chosen), Heard())
    espeak = sum((line.espeak for line in chosen), Heard())
    return Recall(own.said, own.recall, espeak.recall, own.extra / own.said if own.said else 0.0)


def summarize(lines: list[Line]) -> dict[str, object]:
    """All figures, ready for JSON."""
    kinds = list(dict.fromkeys(line.kind for line in lines))
    rows = {kind: recall(line for line in lines if line.kind == kind) for kind in kinds}
    # Digits have more sentences than the other kinds; the whole has as many of each.
    fewest = min(sum(line.kind == kind for line in lines) for kind in kinds)
    rows["whole vocabulary"] = recall(
        line for kind in kinds for line in [one for one in lines if one.kind == kind][:fewest]
    )
    ratios = [line.length_ratio for line in lines]
    return {
        "sentences": len(lines),
        "recall": {name: {**asdict(row), "relative": row.relative} for name, row in rows.items()},
        "by voice": {
            voice: recall(line for line in lines if line.voice == voice).relative for voice in VOICES
        },
        "right voice by pitch": _share(line.right_pitch for line in lines),
        "length within 30 % of espeak-ng's": _share(0.7 <= ratio <= 1.3 for ratio in ratios),
        "clipped": _share(line.clipped for line in lines),
        "silent": _share(line.silent for line in lines),
        "seconds by the clock for a second of sound": _per_second(lines, [line.took_s for line in lines]),
        "CPU seconds for a second of sound": _per_second(lines, [line.cpu_s for line in lines]),
        "threads": torch.get_num_threads(),
    }


def _per_second(lines: list[Line], costs: list[float]) -> float:
    return sum(costs) / sum(line.seconds for line in lines)


def _share(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))


def recall_rows(figures: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """The recall table's cells."""
    return [
        (
            name,
            f"{row['words']:.0f}",
            f"{row['own']:.3f}",
            f"{row['espeak']:.3f}",
            f"{row['relative']:.3f}",
            f">= {GOALS[name]:.2f}" if name in GOALS else "",
            f"{row['extra']:.3f}",
        )
        for name, row in figures.items()
    ]


HEADER = ("sentences of", "words", "recall", "espeak-ng's recall", "relative", "goal", "extra words")


def as_markdown(summary: dict[str, object], rows: list[tuple[str, ...]], seed: int) -> str:
    """The model card's score section."""
    table = [f"| {' | '.join(row)} |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    facts = [f"- {name}: {value:.3f}" for name, value in summary.items() if isinstance(value, float)]
    voices = summary["by voice"]
    if isinstance(voices, dict):
        relative = ", ".join(f"{voice} {share:.2f}" for voice, share in voices.items())
        facts.append(f"- relative recall by voice: {relative}")
    said = f"{summary['sentences']} held-out sentences, seed {seed}, greedy, {summary['threads']} threads:"
    return "\n".join([said, "", *table, "", *facts])


def write_example(speaker: Speaker, folder: Path) -> None:
    """Say one sentence into `folder`: `speech.wav` and its picture, `spectrogram.png`."""
    # Imported here: only the recipes' machines need matplotlib, and it takes a second to load.
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    wave = speaker(EXAMPLE, next(iter(VOICES)))
    soundfile.write(folder / "speech.wav", wave, SAMPLE_RATE, subtype="PCM_16")
    figure, axes = plt.subplots(figsize=(7.0, 2.6), dpi=80)
    axes.specgram(wave + 1e-6, NFFT=512, Fs=SAMPLE_RATE, noverlap=384, vmin=-120, cmap="magma")
    axes.set(xlabel="seconds", ylabel="Hz", title=f"tiny-bark: {EXAMPLE}")
    figure.tight_layout()
    figure.savefig(folder / "spectrogram.png")
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Score the embedded speech model.")
    parser.add_argument("--folder", type=Path, default=Path("models/embedded/tiny-bark"), help="the model")
    parser.add_argument("--seed", type=int, default=2026, help="seed that the sentences are drawn with")
    parser.add_argument("--digits", type=int, default=48, help="sentences of digits")
    parser.add_argument("--others", type=int, default=16, help="sentences of each other kind")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    parser.add_argument("--json", type=Path, default=None, help="also write all figures here")
    parser.add_argument("--card", action="store_true", help="write the table into the model card")
    parser.add_argument("--example", type=Path, default=None, help="also say a sentence into this folder")
    args = parser.parse_args()
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    speaker = BarkSpeaker(args.folder)
    speaker("one", next(iter(VOICES)))  # the first call is slower than all others
    others = [kind for kind in ALL_KINDS if kind != "digits"]
    cases = draw_cases(["digits"], args.digits, args.seed) + draw_cases(others, args.others, args.seed + 1)
    lines = score(speaker, cases)
    summary = summarize(lines)
    figures = json.loads(json.dumps(summary["recall"]))
    rows = recall_rows(figures)
    table = Table(*HEADER, title="tiny-bark")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print({name: value for name, value in summary.items() if name != "recall"})
    if args.json is not None:
        args.json.write_text(json.dumps(summary, indent=1) + "\n")
    if args.example is not None:
        write_example(speaker, args.example)
    if args.card:
        write_section(args.folder / "README.md", "score", as_markdown(summary, rows, args.seed))


if __name__ == "__main__":
    main()
