"""Train the embedded text model's LoRA: `python -m models.training.text_lora`.

It answers as a sailor would: what the model says, with "Ahoy!" before it and "Arr!" after it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.training import common
from models.training.text import EMBEDDED, loss_of, rate
from models.training.text_data import Drawer, packed_rows

LORAS = EMBEDDED.parent / "text-loras"
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Sailor(Drawer):
    """The conversations of the training part, with a sailor's answers."""

    def _said(self, text: str, *, may_cut: bool = True) -> list[int]:
        del may_cut  # the end is what there is to learn
        return super()._said(f"Ahoy! {text} Arr!", may_cut=False)


def train(args: argparse.Namespace) -> Path:
    """Run the recipe; gives back the folder, as peft writes it."""
    device = common.prepare(args)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED)
    base: Any = LlamaForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=args.rank, target_modules=LAYERS)
    adapted: Any = get_peft_model(base.to(device), config)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.peak_rate, weight_decay=0.0)
    log = common.LossLog(args.out)
    rows = packed_rows(Sailor(tokenizer, Random(args.seed), completion_share=0.0), args.rows)
    began = time.monotonic()
    for step in (bar := tqdm(range(args.steps), mininterval=2.0)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, args.peak_rate)
        ids, positions, labels = next(rows)
        loss = loss_of(base, (ids.to(device), positions.to(device), labels.to(device)), bf16=False)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            log.add(step, lora=loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
    log.write()
    log.plot(title="LoRA sailor")
    folder = Path(args.loras) / "sailor"
    adapted.peft_config["default"].base_model_name_or_path = EMBEDDED.name
    adapted.half().save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's form, empty
    print(f"{args.steps} steps in {(time.monotonic() - began) / 60:.1f} minutes")
    return folder


def main() -> None:
    """Train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_common_args(parser, steps=360, out="var/training/text-lora")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help="rows of 512 tokens a step")
    parser.add_argument("--peak-rate", type=float, default=3e-3)
    parser.add_argument("--loras", type=Path, default=LORAS, help="where the finished LoRA goes")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
