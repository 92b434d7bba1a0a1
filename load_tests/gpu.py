"""What a GPU gives: pictures of Stable Diffusion 1.5, 512x512 in bf16, 1 to 32 at once, and the card's limit;
then Bark (`load_tests/gpu_speech.py`).

    make bench-gpu

Speed does not depend on weights, so the model is made from its published configuration with random ones:
nothing is downloaded. Needs torch, diffusers and transformers on a CUDA machine, and no BentoML.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from jobs import ImageJob
from load_tests.full_size import BARK_SIZES, SCHEDULE, sd15_modules
from load_tests.gpu_speech import COLUMNS as SPEECH_COLUMNS
from load_tests.gpu_speech import measure_speech, random_bark
from load_tests.report import Record, write_results
from models.image.parts import Parts
from models.image.row import Row
from models.image.stable_diffusion import StableDiffusion
from models.image.text_encoder import PromptTokenizer, TextEncoder
from models.image.vae import Vae
from models.protocol import ModelSpec
from models.sources import EMBEDDED

GUIDED_STEP_TFLOP = 1.606
"""Of SD 1.5 at 512x512: 401.6 GMAC a UNet row, two rows a guided step."""
DECODE_TFLOP = 2.51
LIMIT_TFLOPS = 790.0
"""Measured on one H200, bf16 products of matrices."""
SPEECH_BATCHES = (1, 8, 32, 64)
COLUMNS = ("batch", "guided_steps_per_s", "images_per_s", "tflops", "share_of_limit", "memory_gib")


def random_sd15(device: str, most_rows: int) -> StableDiffusion:
    """Stable Diffusion 1.5 by its published configuration, bf16, its UNet compiled."""
    where = torch.device(device)
    made = sd15_modules(device, torch.bfloat16)
    for module in (made.unet, made.vae):
        module.to(memory_format=torch.channels_last)
    parts = Parts(
        text_encoders=(
            TextEncoder("text_encoder", made.text_encoder, PromptTokenizer(made.tokenizer, 77), "last"),
        ),
        unet=made.unet,
        vae=Vae(made.vae, where),
        scheduler_config=dict(SCHEDULE),
        device=where,
        dtype=torch.bfloat16,
        compiled_unet=torch.compile(made.unet, dynamic=False),
    )
    spec = ModelSpec(name="sd15", folder=EMBEDDED, device=device, dtype="bfloat16", max_rows=2 * most_rows)
    return StableDiffusion(spec, parts)


def measure(model: StableDiffusion, batches: Sequence[int], steps: int) -> list[Record]:
    """Draws each batch once to compile what it needs, and once with a clock."""
    records: list[Record] = []
    for batch in batches:
        _draw(model, batch, 2)
        steps_s, whole_s = _draw(model, batch, steps)
        tflops = batch * (steps * GUIDED_STEP_TFLOP + DECODE_TFLOP) / whole_s
        records.append(
            {
                "batch": batch,
                "guided_steps_per_s": round(batch * steps / steps_s, 3),
                "images_per_s": round(batch / whole_s, 3),
                "tflops": round(tflops, 2),
                "share_of_limit": round(tflops / LIMIT_TFLOPS, 4),
                "memory_gib": round(_peak_gib(), 2),
            }
        )
    return records


def _draw(model: StableDiffusion, batch: int, steps: int) -> tuple[float, float]:
    """Seconds of the denoising steps, and of the whole: encoded, denoised, decoded."""
    began = _now_s()
    rows = [model.prepare(_job(seed, steps)) for seed in range(batch)]
    for row in rows:
        model.reserve(row)
    seconds = {"denoise": 0.0}
    while (lane := model.lane(rows[0])) is not None:
        started = _now_s()
        most = max(1, int(model.budget(lane) // model.cost(rows[0])))
        for at in range(0, batch, most):
            model.step(lane, rows[at : at + most])
        seconds[lane.stage] = seconds.get(lane.stage, 0.0) + _now_s() - started
    _release(model, rows)
    return seconds["denoise"], _now_s() - began


def _release(model: StableDiffusion, rows: Sequence[Row]) -> None:
    for row in rows:
        model.release(row)


def _job(seed: int, steps: int) -> ImageJob:
    return ImageJob(
        id=str(seed),
        timeout_s=600,
        seed=seed,
        prompt="a red circle",
        num_inference_steps=steps,
        guidance_scale=7.5,
        scheduler="ddim",
    )


def _now_s() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--speech-tokens", type=int, default=256, help="semantic tokens of a saying")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This machine shows no GPU: nothing was measured.")
    batches = [int(each) for each in args.batches.split(",")]
    records = measure(random_sd15("cuda:0", max(batches)), batches, args.steps)
    write_results("gpu-image", records, COLUMNS, gpu=torch.cuda.get_device_name())
    records = []
    for size in BARK_SIZES:
        lanes = random_bark(size, "cuda:0", torch.bfloat16, max(SPEECH_BATCHES))
        records += measure_speech(size, lanes, SPEECH_BATCHES, args.speech_tokens, _now_s, _peak_gib)
    write_results("gpu-speech", records, SPEECH_COLUMNS, gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
