"""LoRAs in one batch: each row has its own, as diffusers would have drawn it, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from jobs import Done, ErrorKind, ImageJob, ImageResult, JobError, LoraChoice
from models.image.stable_diffusion import StableDiffusion, load
from models.lora import bank, files
from models.protocol import ModelSpec
from runners.engine import Engine
from runners.metrics import EngineMetrics
from tests.unit.drawing import admit, apart, draw, image_job, pixels_of, run
from tests.unit.test_engine import last_of
from tests.unit.tiny_checkpoint import write_checkpoint

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WITH_CONVOLUTIONS = [
    *ATTENTION,
    "conv1",
    "conv2",
    "conv_shortcut",
    "proj_in",
    "ff.net.0.proj",
    "downsamplers.0.conv",
]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    loader: Any = StableDiffusionPipeline
    pipe = loader.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_lora(
    pipe: Any, seed: int, rank: int, layers: list[str], text_layers: list[str] | None = None
) -> tuple[Tensors, Tensors]:
    """Random LoRA weights by peft, for the UNet and for the text encoder, strong enough to be seen."""
    torch.manual_seed(seed)
    made: list[Tensors] = []
    for module, targets in ((pipe.unet, layers), (pipe.text_encoder, text_layers)):
        if targets is None:
            made.append({})
            continue
        adapted = deepcopy(module)
        adapted.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        weights = get_peft_model_state_dict(adapted)
        made.append({key: torch.randn_like(value) * 0.2 for key, value in weights.items()})
    return made[0], made[1]


@pytest.fixture(scope="module")
def loras(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four LoRAs of different ranks, layers and layouts."""
    target = tmp_path_factory.mktemp("loras")
    save: Any = StableDiffusionPipeline.save_lora_weights

    def diffusers_file(name: str, unet: Tensors, text: Tensors, **extra: Any) -> None:
        save(target, unet, text or None, weight_name=f"{name}.safetensors", **extra)

    diffusers_file("plain", *make_lora(pipeline, 1, 4, ATTENTION))
    diffusers_file("speaking", *make_lora(pipeline, 2, 8, ATTENTION, TEXT))
    diffusers_file("filtering", *make_lora(pipeline, 3, 24, WITH_CONVOLUTIONS))
    save_file(
        as_kohya(*make_lora(pipeline, 4, 6, WITH_CONVOLUTIONS, TEXT), alpha=3.0), target / "kohya.safetensors"
    )
    return target


def as_kohya(unet: Tensors, text: Tensors, alpha: float) -> Tensors:
    named: Tensors = {}
    for prefix, tensors in (("lora_unet_", unet), ("lora_te_text_model_", text)):
        for key, tensor in tensors.items():
            layer, _, role = key.removesuffix(".weight").rpartition(".lora_")
            stem = prefix + layer.replace(".", "_")
            named[f"{stem}.lora_{'down' if role == 'A' else 'up'}.weight"] = tensor.contiguous()
            named[f"{stem}.alpha"] = torch.tensor(alpha)
    return named


@pytest.fixture
def folder(loras: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(loras, tmp_path / "loras"))


@pytest.fixture
def model(checkpoint: Path, folder: Path) -> StableDiffusion:
    return load(ModelSpec(name="tiny", folder=checkpoint, loras=folder))


def choices(**weights: float) -> tuple[LoraChoice, ...]:
    return tuple(LoraChoice(name=name, weight=weight) for name, weight in weights.items())


def by_diffusers(pipe: Any, folder: Path, job: ImageJob) -> Any:
    for choice in job.loras:
        pipe.load_lora_weights(folder, weight_name=f"{choice.name}.safetensors", adapter_name=choice.name)
    pipe.set_adapters([c.name for c in job.loras], [c.weight for c in job.loras])
    generator = torch.Generator("cpu").manual_seed(job.seed)
    picture = pipe(
        job.prompt,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=generator,
    ).images[0]
    pipe.unload_lora_weights()
    return np.asarray(picture).astype(np.int16)


@pytest.mark.filterwarnings("ignore:.*peft_config:UserWarning")  # diffusers' own, with several adapters
@pytest.mark.parametrize(
    "weights",
    [
        {"plain": 1.0},
        {"speaking": 0.7},
        {"filtering": -0.5},
        {"kohya": 1.3},
        {"plain": 0.6, "speaking": 0.4, "filtering": 0.5, "kohya": 0.8},
    ],
    ids="+".join,
)
def test_a_lora_draws_what_diffusers_draws_with_it(
    model: StableDiffusion, pipeline: Any, folder: Path, weights: dict[str, float]
) -> None:
    job = image_job(num_inference_steps=3, loras=choices(**weights))
    (ours,) = draw(model, job)
    assert apart(ours, by_diffusers(pipeline, folder, job)) <= 1
    assert apart(ours, draw(model, image_job(num_inference_steps=3))[0]) > 5


def test_eight_rows_with_four_loras_are_each_as_if_alone(model: StableDiffusion) -> None:
    jobs = [
        image_job(num_inference_steps=3, loras=choices(plain=1.0)),
        image_job(num_inference_steps=3, loras=choices(plain=-0.5, kohya=1.0), guidance_scale=1.0),
        image_job(num_inference_steps=3),
        image_job(num_inference_steps=3, loras=choices(filtering=0.7), scheduler="euler_ancestral"),
        image_job(num_inference_steps=3, loras=choices(speaking=1.0, kohya=0.3)),
        image_job(num_inference_steps=3, guidance_scale=1.0, seed=11),
        image_job(num_inference_steps=3, loras=choices(plain=0.4, speaking=0.3, filtering=0.2, kohya=0.1)),
        image_job(num_inference_steps=3, loras=choices(speaking=0.5), scheduler="dpmpp_2m"),
    ]
    together = draw(model, *jobs)
    for job, picture in zip(jobs, together, strict=True):
        assert apart(picture, draw(model, job)[0]) <= 2


def test_rows_that_agree_run_on_merged_weights(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a LoRA costs nothing, as when one caller is alone; and the layers' own weights come back."""
    styled = [image_job(num_inference_steps=2, loras=choices(plain=1.0), seed=seed) for seed in (1, 2)]
    before = draw(model, image_job(num_inference_steps=2))[0]

    def unused(*_: Any) -> None:
        raise AssertionError("a layer's output was added to")

    monkeypatch.setattr(bank, "added", unused)
    draw(model, *styled)
    assert apart(draw(model, image_job(num_inference_steps=2))[0], before) == 0
    with pytest.raises(AssertionError, match="added to"):
        draw(model, styled[0], image_job(num_inference_steps=2))


def test_a_full_bank_asks_to_wait_and_evicts_the_least_recently_used(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "SLOTS", {128: 2})
    model = load(ModelSpec(name="tiny", folder=checkpoint, loras=folder))
    plain, speaking, kohya = (image_job(loras=choices(**{n: 1.0})) for n in ("plain", "speaking", "kohya"))
    alone = {job.loras: draw(model, job)[0] for job in (plain, speaking, kohya)}
    held = admit(model, [plain, speaking])
    waiting = model.prepare(kohya)
    assert not model.reserve(waiting)
    model.release(held[0])
    assert model.reserve(waiting)
    run(model, [held[1], waiting])
    for row in (held[1], waiting):
        model.release(row)
    # What is left of an evicted LoRA must not show in the one that took its slot.
    for job in (plain, kohya, speaking):
        assert apart(draw(model, job)[0], alone[job.loras]) <= 1


def test_the_memory_budget_bounds_the_bank(checkpoint: Path, folder: Path) -> None:
    for name in "abcde":
        shutil.copy(folder / "plain.safetensors", folder / f"{name}.safetensors")
    jobs = [image_job(loras=choices(**{name: 1.0})) for name in "abcde"]
    roomy = load(ModelSpec(name="tiny", folder=checkpoint, loras=folder))
    admit(roomy, jobs)
    tight = load(ModelSpec(name="tiny", folder=checkpoint, loras=folder, lora_memory_bytes=1))
    held = admit(tight, jobs[:4])  # as many as one row may name, whatever the budget
    fifth = tight.prepare(jobs[4])
    assert not tight.reserve(fifth)
    tight.release(held[0])
    assert tight.reserve(fifth)


def test_a_lora_of_the_highest_rank_is_mixed_beside_a_small_one(
    model: StableDiffusion, pipeline: Any, folder: Path
) -> None:
    save: Any = StableDiffusionPipeline.save_lora_weights
    save(folder, make_lora(pipeline, 5, 128, ATTENTION)[0], weight_name="wide.safetensors")
    jobs = [
        image_job(num_inference_steps=2, loras=choices(**weights))
        for weights in ({"wide": 0.05}, {"plain": 1.0}, {"wide": 0.05, "plain": 0.5}, {})
    ]
    together = draw(model, *jobs)
    for job, picture in zip(jobs, together, strict=True):
        assert apart(picture, draw(model, job)[0]) <= 2
    assert apart(together[0], together[3]) > 5


def test_a_new_or_replaced_file_is_seen_at_once(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    model = load(ModelSpec(name="tiny", folder=checkpoint, loras=watched))
    job = image_job(num_inference_steps=2, loras=choices(new=1.0))
    with pytest.raises(JobError) as unknown:
        model.prepare(job)
    assert unknown.value.kind is ErrorKind.NOT_FOUND
    assert unknown.value.param == "loras"
    assert "none" in unknown.value.message
    tensors = load_file(folder / "plain.safetensors")
    save_file(tensors, watched / "new.safetensors")
    (first,) = draw(model, job)
    save_file({key: tensor * 3 for key, tensor in tensors.items()}, watched / "next")
    (watched / "next").replace(watched / "new.safetensors")
    assert apart(first, draw(model, job)[0]) > 5


def test_what_the_file_says_of_its_alpha_counts(model: StableDiffusion, folder: Path) -> None:
    tensors = load_file(folder / "plain.safetensors")
    stated = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2.0, "unet.r": 4})}
    save_file(tensors, folder / "half.safetensors", metadata=stated)
    by_file = draw(model, image_job(num_inference_steps=2, loras=choices(half=1.0)))[0]
    by_weight = draw(model, image_job(num_inference_steps=2, loras=choices(plain=0.5)))[0]
    assert apart(by_file, by_weight) == 0


@pytest.mark.parametrize("rename", ["peft", "old"])
def test_other_layouts_are_the_same_lora(model: StableDiffusion, folder: Path, rename: str) -> None:
    tensors = load_file(folder / "speaking.safetensors")
    names = {"peft": _peft_name, "old": _old_name}
    save_file(
        {names[rename](key): tensor for key, tensor in tensors.items()}, folder / f"{rename}.safetensors"
    )
    same = draw(model, image_job(num_inference_steps=2, loras=choices(**{rename: 1.0})))[0]
    assert apart(same, draw(model, image_job(num_inference_steps=2, loras=choices(speaking=1.0)))[0]) == 0


def _peft_name(key: str) -> str:
    return key.replace("unet.", "base_model.model.").replace("text_encoder.", "base_model.model.text_model.")


def _old_name(key: str) -> str:
    for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
        key = key.replace(f".{new}.lora_A.", f".{old}_lora.down.").replace(
            f".{new}.lora_B.", f".{old}_lora.up."
        )
    for layer in ("to_q", "to_k", "to_v", "to_out"):
        for new, old in (("A", "down"), ("B", "up")):
            for tail in ("", ".0"):
                key = key.replace(f".{layer}{tail}.lora_{new}.", f".processor.{layer}_lora.{old}.")
    return key


def test_a_file_of_no_use_is_named_and_the_others_go_on(model: StableDiffusion, folder: Path) -> None:
    tensors = load_file(folder / "plain.safetensors")
    key = next(iter(tensors))
    (folder / "torn.safetensors").write_bytes((folder / "plain.safetensors").read_bytes()[:200])
    (folder / "pickle.safetensors").write_bytes(b"cbuiltins\nexit\n(tR.")
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 2)}, folder / "stranger.safetensors")
    save_file({**tensors, key: tensors[key][:, :3].contiguous()}, folder / "misshapen.safetensors")
    save_file({**tensors, key: tensors[key] * torch.nan}, folder / "poison.safetensors")
    save_file({**tensors, "unet.x.dora_scale": torch.ones(1)}, folder / "dora.safetensors")
    save_file({k: v for k, v in tensors.items() if k != key}, folder / "half.safetensors")
    deep = {
        k: torch.zeros((129, v.shape[1]) if "lora_A" in k else (v.shape[0], 129)) for k, v in tensors.items()
    }
    save_file(deep, folder / "deep.safetensors")
    save_file({}, folder / "empty.safetensors")
    for name in ("torn", "pickle", "stranger", "misshapen", "poison", "dora", "half", "deep", "empty"):
        with pytest.raises(JobError, match=f"LoRA '{name}'") as refused:
            model.prepare(image_job(loras=choices(**{name: 1.0})))
        assert refused.value.kind is ErrorKind.INVALID
        assert refused.value.param == "loras"
    draw(model, image_job(num_inference_steps=2, loras=choices(plain=1.0)))


def test_only_plain_files_of_the_folder_have_names(
    model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((folder / "plain.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "nested.safetensors").mkdir()
    (folder / "pickle.bin").write_bytes(b"")
    relative = os.path.relpath(outside, folder).removesuffix(".safetensors")
    outsiders = ("link", "nested", "pickle", "pickle.bin", relative, str(outside), "../loras/plain", "")
    for name in outsiders:
        with pytest.raises(JobError) as refused:
            model.prepare(image_job(loras=(LoraChoice(name=name),)))
        assert (refused.value.kind, refused.value.code) == (ErrorKind.NOT_FOUND, "lora_not_found")
        assert "filtering, kohya, plain, speaking" in refused.value.message


def test_more_loras_than_a_row_takes_are_refused(model: StableDiffusion) -> None:
    with pytest.raises(JobError, match="at most 4") as refused:
        model.prepare(image_job(loras=choices(plain=1, speaking=1, filtering=1, kohya=1) * 2))
    assert refused.value.param == "loras"


def test_a_forward_without_loras_adds_to_no_layer(model: StableDiffusion) -> None:
    before = draw(model, image_job())[0]
    draw(model, image_job(loras=choices(filtering=1.0)))
    assert apart(draw(model, image_job())[0], before) == 0


async def test_a_lora_is_read_beside_the_steps_of_others(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that takes long to read holds up neither who has no LoRA nor who wants another one."""
    (warm,) = draw(model, image_job(num_inference_steps=2, loras=choices(kohya=1.0)))
    may_read = threading.Event()
    read = files.safe_open

    def slow(path: Any, *args: Any, **options: Any) -> Any:
        assert may_read.wait(60)
        return read(path, *args, **options)

    shutil.copy(folder / "plain.safetensors", folder / "slow.safetensors")
    monkeypatch.setattr(files, "safe_open", slow)
    engine = Engine({model.name: model}, EngineMetrics("image", CollectorRegistry()))
    engine.start()
    try:
        slowly = engine.submit(image_job(id="slow", num_inference_steps=2, loras=choices(slow=1.0)))
        for id, loras in (("without", ()), ("another", choices(kohya=1.0))):
            done = await last_of(engine.submit(image_job(id=id, num_inference_steps=2, loras=loras)))
            assert isinstance(done, Done), done
        assert isinstance(done.result, ImageResult)
        assert apart(pixels_of(done.result.data), warm) <= 2
        may_read.set()
        assert isinstance(await last_of(slowly), Done)
    finally:
        may_read.set()
        await asyncio.to_thread(engine.close)
