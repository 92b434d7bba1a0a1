"""Start from an earlier model of the same shape: codec, coarse and fine stage go on from its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import BarkModel
from transformers.models.bark import BarkCoarseModel

from models.training.speech_attention import alike
from models.training.speech_model import COARSE_SEMANTIC, SEMANTIC_VOCAB


@torch.no_grad()
def start_from(folder: Path, model: BarkModel) -> None:
    """Put the weights of the model in `folder` into `model`, but for the semantic stage's.

    Its semantic tokens and the lengths of its coarse windows may be others; the coarse stage then learns the
    tokens anew, from what the old ones were on average.

    Raises:
        RuntimeError: a part is of another shape.
    """
    given = BarkModel.from_pretrained(folder, dtype=torch.float32)
    model.codec_model.load_state_dict(given.codec_model.state_dict())
    model.fine_acoustics.load_state_dict(given.fine_acoustics.state_dict())
    window = given.generation_config.to_dict()["coarse_acoustics_config"]["max_coarse_input_length"]
    _start_coarse(given.coarse_acoustics, int(window), model.coarse_acoustics)


def _start_coarse(given: BarkCoarseModel, window: int, model: BarkCoarseModel) -> None:
    old = given.state_dict()
    new = model.state_dict()
    semantic = old["input_embeds_layer.weight"].shape[0] - new["input_embeds_layer.weight"].shape[0]
    semantic += SEMANTIC_VOCAB
    for name in ("input_embeds_layer.weight", "lm_head.weight"):
        rows: Tensor = old[name]
        mean, std = rows[:semantic].mean(dim=0), rows[:semantic].std(dim=0)
        fresh = torch.randn(SEMANTIC_VOCAB, rows.shape[1])
        alike(fresh)
        old[name] = torch.cat([mean + std * fresh, rows[semantic:]])
    places = old["position_embeds_layer.weight"]
    after = len(new["position_embeds_layer.weight"]) - COARSE_SEMANTIC
    old["position_embeds_layer.weight"] = torch.cat(
        [places[:COARSE_SEMANTIC], places[window : window + after]]
    )
    # The stored causal masks are as large as the windows, and need no learning.
    model.load_state_dict({name: new[name] if name.endswith("attn.bias") else old[name] for name in new})
