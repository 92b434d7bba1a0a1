"""What memory a model takes, counted from its files, and files that are made to break the counting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file

from models.catalog import Entry, read_catalog
from models.footprint import measure, memory_of
from models.loading import EMBEDDED
from models.manifest import BrokenFileError, read_header
from models.quantize import quantize
from models.quantized import quantized_by
from tests.unit.tiny_text import write_model
from tests.unit.tiny_xl import write_xl


def numbers(folder: Path) -> int:
    return sum(each.numel() for file in folder.rglob("*.safetensors") for each in load_file(file).values())


def test_all_parts_of_a_picture_checkpoint_count(tmp_path: Path) -> None:
    folder = write_xl(tmp_path)
    assert (folder / "text_encoder_2").is_dir()
    assert measure(folder, "image.stable_diffusion_xl").parameters == numbers(folder)


def test_of_a_unet_the_layers_that_shrink_count() -> None:
    folder = EMBEDDED / "tiny-sd"
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    quantize(unet, "int8", torch.float32)
    shrunk = {name for name, each in unet.named_modules() if type(each).__name__ == "Linear8bitLt"}
    weights = sum(
        each.numel() for name, each in unet.named_parameters() if name.removesuffix(".weight") in shrunk
    )
    assert measure(folder, "image.stable_diffusion").quantizable == weights > 0


def test_the_safety_checker_is_fetched_with_its_weights() -> None:
    """Its configuration alone would make the checkpoint one that cannot be loaded."""
    entry = read_catalog().models["stable-diffusion-v1-5"]
    assert "*/*.json" in entry.files
    assert "safety_checker/model.safetensors" in entry.files


@pytest.mark.parametrize(
    "config",
    [
        "[1]",
        '"text"',
        '{"text_config": 7}',
        '{"num_attention_heads": 0, "hidden_size": 8}',
        '{"num_attention_heads": "a", "hidden_size": 8}',
        '{"num_attention_heads": 1, "hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": -1}',
        "[" * 100_000,
        "\0",
    ],
)
def test_a_configuration_that_is_none_is_an_error_of_one_kind(tmp_path: Path, config: str) -> None:
    folder = write_model(tmp_path)
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config|Memory"):
        measure(folder, "text.decoder")
    assert memory_of(Entry(family="text.decoder", source=f"folder:{folder}", licence="none")) is None
    assert quantized_by(folder) is None


@pytest.mark.parametrize("header", ["[" * 100_000, "[]", '{"a": {"data_offsets": [0, -1], "dtype": 1}}'])
def test_a_header_that_is_none_is_said_to_be_broken(tmp_path: Path, header: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(BrokenFileError, match=r"model\.safetensors"):
        read_header(file)


def test_a_quantization_that_is_no_mapping_is_no_quantization(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": "awq"}))
    assert quantized_by(tmp_path) is None
