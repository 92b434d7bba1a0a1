"""The CLIP tokenizer and text encoder of the picture model.

The encoder is trained before the UNet and on captions alone: it must tell, linearly readable in its states,
what stands at each of the five places and what the background is. Binding a colour to its shape and place is
thereby solved where it is cheap. The end token tells all of it; each padding token tells one place (its
position modulo six) or the background, so that a spot of the picture can attend to the tokens that speak of
it. The heads are thrown away.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.training import common
from models.training.image_captions import Caption, full_caption, partial_caption
from models.training.scenes import COLOURS, POSITIONS, SHAPES, SIZES, sample_scene

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
PARTIAL_SHARE, EMPTY_SHARE = 0.15, 0.03

_UNTOLD = 1  # class 0 is "nothing here"
_SLOT_CLASSES = (2 + len(COLOURS), 2 + len(SHAPES), 1 + len(SIZES))
_SLOTS = len(POSITIONS) + 1
_OUTPUTS = len(POSITIONS) * sum(_SLOT_CLASSES) + 1 + len(COLOURS)


def build_tokenizer(folder: Path, seed: int = 0) -> CLIPTokenizer:
    """Make a byte-level BPE in CLIP's form in which every word of the captions is one token; save it in
    `folder`."""
    rng = random.Random(seed)
    texts = [sample_caption(rng).text for _ in range(5000)]
    make: Any = CLIPTokenizer  # its stub wants merges as strings, itself it wants pairs
    blank = make()
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = blank.backend_tokenizer.normalizer
    bpe.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    # CLIP's order: the bytes, the bytes that end a word, the merges, the two specials.
    words = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = make(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    # The two files that tools for the older tokenizer format read.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return tokenizer


def build_text_encoder(tokenizer: Any) -> CLIPTextModel:
    """The untrained text encoder, about 0.6M parameters."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def sample_caption(rng: random.Random) -> Caption:
    """A caption of a scene from the training split, now and then a partial one."""
    scene = sample_scene(rng)
    return partial_caption(rng, scene) if rng.random() < PARTIAL_SHARE else full_caption(rng, scene)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids padded to 77, (n, 77)."""
    return tokenizer(
        list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def slot_targets(captions: Sequence[Caption | None]) -> torch.Tensor:
    """The classes that the heads are to tell, (n, 16): colour, shape and size of five places, the background.

    None stands for the empty caption.
    """
    targets = torch.zeros(len(captions), 3 * len(POSITIONS) + 1, dtype=torch.long)
    for row, caption in zip(targets, captions, strict=True):
        if caption is None:
            continue
        for thing, colour, shape in zip(caption.scene.things, caption.colours, caption.shapes, strict=True):
            slot = 3 * list(POSITIONS).index(thing.position)
            row[slot] = 2 + list(COLOURS).index(thing.colour) if colour else _UNTOLD
            row[slot + 1] = 2 + SHAPES.index(thing.shape) if shape else _UNTOLD
            row[slot + 2] = 1 + list(SIZES).index(thing.size)
        row[-1] = 1 + list(COLOURS).index(caption.scene.background) if caption.background else 0
    return targets


def parsing_loss(outputs: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor, end: int) -> torch.Tensor:
    """Cross-entropy of all slots at the end token, and of one slot at each padding token.

    Args:
        outputs: The heads' outputs at every token, (n, 77, classes of all slots).
        targets: From `slot_targets`.
        ids: Token ids, (n, 77); everything from the first `end` on is end and padding.
        end: Id of the end token.
    """
    is_end = ids == end
    first = is_end & (is_end.cumsum(1) == 1)
    slots = torch.arange(ids.shape[1], device=ids.device) % _SLOTS
    loss, offset, column = outputs.new_zeros(()), 0, 0
    for slot in range(_SLOTS):
        mask = first | (is_end & (slots == slot))
        # The end token has to tell six times as much as a padding token, and there is only one of it.
        weight = torch.where(first, 4.0, 1.0)[mask]
        rows = mask.nonzero()[:, 0]
        for classes in _SLOT_CLASSES if slot < len(POSITIONS) else (1 + len(COLOURS),):
            logits = outputs[..., offset : offset + classes][mask]
            each = functional.cross_entropy(logits, targets[rows, column], reduction="none")
            loss = loss + (each * weight).sum() / weight.sum()
            offset, column = offset + classes, column + 1
    return loss


def train_text(args: argparse.Namespace, device: torch.device) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Train (or go on training) the text encoder; its state is `text.pt` in `args.out`."""
    tokenizer: Any = build_tokenizer(Path(args.out) / "tokenizer", args.seed)
    encoder: Any = build_text_encoder(tokenizer)
    encoder.to(device)
    head = torch.nn.Linear(encoder.config.hidden_size, _OUTPUTS).to(device)
    both = torch.nn.ModuleDict({"encoder": encoder, "head": head})
    optimizer = torch.optim.AdamW(both.parameters(), args.text_lr, betas=(0.9, 0.98), weight_decay=0.01)
    path, start, seconds = Path(args.out) / "text.pt", 0, 0.0
    rng = random.Random(args.seed)
    if args.resume and path.exists():
        state = common.load_state(path, device)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds, rng = state["step"], state["seconds"], state["rng"]
    log = common.LossLog(Path(args.out), "text", resume_from=start)
    began = time.monotonic() - seconds
    bar = tqdm(
        range(start, args.text_steps), initial=start, total=args.text_steps, desc="text", mininterval=5
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = args.text_lr * min(1.0, (step + 1) / 100) * (1 - step / args.text_steps) + 1e-5
        captions = [
            None if rng.random() < EMPTY_SHARE else sample_caption(rng) for _ in range(args.text_batch)
        ]
        ids = tokenize(tokenizer, [caption.text if caption else "" for caption in captions]).to(device)
        # Most steps stop at 32 tokens, a few places past the longest caption: half the work.
        length = MAX_TOKENS if step % 8 == 0 or step > 0.9 * args.text_steps else 32
        ids = ids[:, :length]
        outputs = head(encoder(ids).last_hidden_state)
        loss = parsing_loss(outputs, slot_targets(captions).to(device), ids, tokenizer.eos_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            log.add(step, parsing=loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 100 == 0 or step + 1 == args.text_steps:
            state = {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            common.save_state(path, state | {"seconds": time.monotonic() - began, "rng": rng})
            log.write()
    log.plot(title="text encoder: parsing loss")
    return tokenizer, encoder.eval()
