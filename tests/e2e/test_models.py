"""`triptych models` against a hub of the test's own, over HTTP, each command a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.sources import EMBEDDED
from tests.e2e.hub import Hub
from tests.e2e.process import ROOT

WEIGHTS = "model.safetensors"


@dataclass
class Machine:
    """Runs `triptych` with a hub, a cache, a model store and a catalog of its own."""

    home: Path
    hub: Hub

    def run(self, *arguments: str, code: int = 0, **environment: str) -> tuple[Any, str]:
        """What it printed, read as JSON if it is, and what it said; `code` is how it must end."""
        own = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hub"),
            "BENTOML_HOME": str(self.home / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "true",
            "TRIPTYCH_PROFILE": str(self.home / "mine.yaml"),
        }
        done = subprocess.run(
            [sys.executable, "cli.py", *arguments],
            cwd=ROOT,
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return (json.loads(done.stdout) if done.stdout.startswith(("[", "{")) else done.stdout), done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """The hub has tiny-llama under another name."""
    (tmp_path / "mine.yaml").write_text(
        "models:\n"
        "  llama: {family: text.decoder, source: 'hub:owner/llama', licence: Apache-2.0}\n"
        "  stored: {family: text.decoder, source: 'store:stored', licence: Apache-2.0}\n"
        "profiles:\n  default: {text: [llama]}\n",
        encoding="utf-8",
    )
    names = ("config.json", "tokenizer.json", WEIGHTS)
    files = {name: (EMBEDDED / "tiny-llama" / name).read_bytes() for name in names}
    with Hub("owner/llama", {**files, "pytorch_model.bin": b"never fetched"}).serving() as hub:
        yield Machine(tmp_path, hub)


def test_a_pull_that_broke_off_goes_on_where_it_stopped(machine: Machine) -> None:
    """And what it fetched is the hub's, verifies, serves offline, shows, and can be removed."""
    machine.hub.breaks_after = 2 << 20
    machine.hub.answers = 2
    machine.run("models", "pull", "llama", code=3)
    machine.hub.answers = None
    machine.hub.asked.clear()
    (pulled,), said = machine.run("models", "pull", "--json")
    assert "to fetch" in said
    ranges = [range for method, path, range in machine.hub.asked if method == "GET" and WEIGHTS in path]
    assert ranges == [f"bytes={4 << 20}-"], "it began anew"
    folder = Path(pulled["folder"])
    assert {name: (folder / name).read_bytes() for name in machine.hub.files if (folder / name).exists()} == {
        name: data for name, data in machine.hub.files.items() if name != "pytorch_model.bin"
    }

    machine.hub.asked.clear()
    offline, _ = machine.run("models", "pull", "--json", HF_HUB_OFFLINE="1")
    assert offline[0]["folder"] == str(folder)
    assert not machine.hub.asked
    shown, _ = machine.run("models", "show", "llama", "--json")
    assert shown["verified_by"] == "sha256"
    machine.run("models", "verify", "llama")

    weights = (folder / WEIGHTS).resolve()
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    wrong, _ = machine.run("models", "verify", "--json", code=1)
    assert wrong == [
        {
            "name": "llama",
            "by": "sha256",
            "wrong": [f"{WEIGHTS} has changed: its SHA-256 is not the manifest's"],
        }
    ]
    machine.run("models", "remove", "llama", "--yes")
    listed, _ = machine.run("models", "list", "--json")
    assert [each["folder"] for each in listed] == [None, None]


def test_a_gated_model_says_what_to_do_and_comes_with_a_token(machine: Machine) -> None:
    machine.hub.token = "hf_secret"  # noqa: S105 - the test's own
    _, said = machine.run("models", "pull", "llama", code=3)
    assert "gated" in said
    assert "HF_TOKEN" in said
    machine.run("models", "pull", "llama", HF_TOKEN="hf_secret")  # noqa: S106


def test_the_configuration_of_a_single_file_is_pulled_too(machine: Machine, tmp_path: Path) -> None:
    catalog = tmp_path / "single.yaml"
    catalog.write_text(
        "models:\n"
        "  one: {family: image.stable_diffusion, source: 'file:/one.safetensors', config: 'hub:owner/llama', "
        "licence: MIT, loras: 'folder:/no/loras'}\n"
        "profiles:\n  default: {image: [one]}\n",
        encoding="utf-8",
    )
    machine.run("models", "pull", TRIPTYCH_PROFILE=str(catalog))
    told, _ = machine.run("models", "list", "--json")
    assert told[0]["folder"] is not None
    told, _ = machine.run("doctor", "--json", code=1, TRIPTYCH_PROFILE=str(catalog))
    bad = {each["said"] for each in told["findings"] if each["state"] == "bad"}
    assert bad == {"file:/one.safetensors is not here", "folder:/no/loras is not here"}


def test_what_cannot_be_pulled_is_one_line(machine: Machine) -> None:
    _, said = machine.run("models", "pull", "llama", code=3, HF_HUB_OFFLINE="1")
    assert said.count("\n") == 1
    assert "TRIPTYCH_PROFILE=embedded" in said
    machine.hub.repository = "owner/other"
    _, said = machine.run("models", "pull", "llama", code=3)
    assert "The hub has no owner/llama" in said
    _, said = machine.run("models", "pull", "lama", code=2)
    assert "There are: llama, stored." in said


def test_a_folder_is_imported_into_the_store(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in machine.hub.files.items():
        (folder / name).write_bytes(data)
    arguments = ("models", "import", str(folder), "--name", "stored", "--family", "text.decoder")
    _, said = machine.run(*arguments, "--licence", "MIT", code=1)
    assert "pytorch_model.bin: pickled weights are refused" in said
    (folder / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin")
    for name, place in (("notes.txt", "/etc/passwd"), ("more", tmp_path), ("again", "."), ("gone", "gone")):
        (folder / name).symlink_to(place)
        _, said = machine.run(*arguments, "--licence", "MIT", code=1)
        assert f"{name}: links" in said
        (folder / name).unlink()
    os.mkfifo(folder / "pipe")
    _, said = machine.run(*arguments, "--licence", "MIT", code=1)
    assert "pipe: links" in said
    (folder / "pipe").unlink()
    (folder / "same.safetensors").symlink_to(WEIGHTS)
    (folder / "config.json").rename(folder / "config")
    (folder / "config.json").write_text("[1]")
    _, said = machine.run(*arguments, "--licence", "MIT", code=2)
    assert "is no model of family text.decoder" in said
    (folder / "config").rename(folder / "config.json")
    (folder / "same.safetensors").unlink()
    made, _ = machine.run(*arguments, "--licence", "MIT", "--json")
    assert made["models"]["stored"]["source"] == "store:stored"
    assert made["models"]["stored"]["memory"]["parameters"] > 1_000_000
    machine.run("models", "verify", "stored")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    _, said = machine.run(*arguments, "--licence", "MIT", code=1)
    assert "is not whole" in said
    machine.run("models", "remove", "stored", "--yes")
    machine.run("models", "verify", "stored", code=1)
