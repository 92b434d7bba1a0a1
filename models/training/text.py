"""Train the embedded text model: `python -m models.training.text`.

A Llama of about 5M parameters learns the closed world of `grammar.py` from nothing: conversations with loss
on the answers alone, and completions with loss on every token, packed into rows of 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from random import Random

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.training.common import (
    Ema,
    LossLog,
    add_common_args,
    fill_card,
    hardware,
    load_state,
    prepare,
    save_state,
)
from models.training.text_data import BOS, CONTEXT, EOS, IGNORED, PAD, Drawer, packed_rows, train_tokenizer

EMBEDDED = Path(__file__).parents[1] / "embedded" / "tiny-llama"


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama, every width a multiple of 128 so that bitsandbytes' 4-bit blocks fit."""
    ids = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    model = LlamaForCausalLM(config)
    # The library's fixed 0.02 is for wide layers; at 256 it leaves attention all but off for long, and the
    # embeddings below what the first layers add to them.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    for name, weight in model.model.layers.named_parameters():
        if weight.dim() == 2:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.5 * (2 * config.num_hidden_layers) ** -0.5 if into_residual else 1.0
            torch.nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)
    return model


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate: 50 steps' rise, level, then over the last two fifths a straight fall to a hundredth.

    Level, so that a run can be resumed with more `--steps` before the fall begins.
    """
    return peak * min(1.0, (step + 1) / 50, max(0.01, (steps - step) / (0.4 * steps)))


def loss_of(
    model: LlamaForCausalLM, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], *, bf16: bool
) -> torch.Tensor:
    """Mean cross-entropy over the labelled tokens of a packed batch.

    The output layer runs only where a label is: with loss on answers alone that saves half of its work.
    """
    ids, positions, labels = batch
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        # A document's first label is IGNORED, so none is predicted from the one before it.
        targets = labels[:, 1:]
        wanted = targets != IGNORED
        logits = model.lm_head(hidden[:, :-1][wanted])
    return functional.cross_entropy(logits.float(), targets[wanted])


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the hub's layout: fp16 safetensors, configuration, generation defaults, tokenizer."""
    ids = tokenizer.get_vocab()
    model.generation_config = GenerationConfig(
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
        max_new_tokens=128,
        do_sample=False,
    )
    weights = {name: value.detach().to(torch.float16) for name, value in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).half()
    copy.load_state_dict(weights)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(args: argparse.Namespace) -> None:
    """Run the recipe; with `--resume` from where it was left, on the very same data it would have seen."""
    device = prepare(args)
    out: Path = args.out
    state_path, bf16 = out / "state.pt", args.precision == "bf16"
    resumed = args.resume and state_path.exists()
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(out / "export") if resumed else train_tokenizer(args.seed)
    )
    model = build_model(tokenizer)
    torch.nn.Module.to(model, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.peak_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    ema = Ema(model, decay=0.99)
    rng, start, seconds = Random(args.seed), 0, 0.0
    if resumed:
        state = load_state(state_path, device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        rng.setstate(state["rng"])
        start, seconds = state["step"], state["seconds"]
    log = LossLog(out, resume_from=start)
    rows = packed_rows(Drawer(tokenizer, rng), args.rows)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters on {device}, from step {start}"
    )
    model.train()
    began = time.monotonic()
    for step in (bar := tqdm(range(start, args.steps), initial=start, total=args.steps, mininterval=2.0)):
        ids, positions, labels = next(rows)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, args.peak_rate)
        loss = loss_of(model, (ids.to(device), positions.to(device), labels.to(device)), bf16=bf16)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        log.add(step + 1, loss=loss.item())
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            spent = seconds + time.monotonic() - began
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
            }
            save_state(state_path, {**state, "rng": rng.getstate(), "step": step + 1, "seconds": spent})
            log.write()
            export_average(model, ema, tokenizer, out / "export")
            how = {"steps": step + 1, "tokens": (step + 1) * args.rows * CONTEXT, "seconds": round(spent)}
            how |= {"seed": args.seed, "hardware": hardware(device, args.threads)}
            (out / "training.json").write_text(json.dumps(how) + "\n")
    log.plot(title="tiny-llama: cross-entropy by step")
    if args.install:
        install(out, EMBEDDED)


def install(out: Path, folder: Path) -> None:
    """Put a finished run's model, loss plot and history where the service finds them."""
    for path in (*(out / "export").iterdir(), out / "loss.png"):
        shutil.copyfile(path, folder / path.name)
    how = json.loads((out / "training.json").read_text())
    fill_card(
        folder / "README.md",
        "training",
        f"{how['steps']:,} steps, {how['tokens'] / 1e6:.1f}M tokens, seed {how['seed']}: "
        f"{how['seconds'] / 60:.0f} minutes on {how['hardware']}.",
    )


def export_average(
    model: LlamaForCausalLM, ema: Ema, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Export the moving average of the weights and leave `model` as it is."""
    averaged = LlamaForCausalLM(model.config)
    ema.copy_to(averaged)
    export(averaged, tokenizer, folder)


def main() -> None:
    """Parse the options, train, and with `--install` put the result where the service finds it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_args(parser, steps=1800, out="var/train/text")
    parser.add_argument("--rows", type=int, default=2, help="rows of 512 tokens in a step")
    parser.add_argument("--peak-rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward and backward"
    )
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--install", action="store_true", help="put the result into models/embedded")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
