"""What the README tells a reader to type works as it stands, against the running service."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from settings import Settings
from tests.e2e.process import ROOT, Served

README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CURLS = [text for language, text in BLOCKS if language == "bash" and text.startswith("curl")]
PYTHON = [text for language, text in BLOCKS if language == "python"]


def here(text: str, service: Served) -> str:
    assert "http://127.0.0.1:3000" in text
    return text.replace("http://127.0.0.1:3000", service.url)


@pytest.mark.parametrize("command", CURLS)
def test_its_curl_commands(service: Served, command: str, tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", "-euc", here(command, service)], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert '"error"' not in run.stdout
    for written in tmp_path.iterdir():
        if written.suffix == ".png":
            with Image.open(written) as picture:
                assert picture.size == (128, 128)
        else:
            assert soundfile.info(written).duration > 0.3
    assert run.stdout or list(tmp_path.iterdir())


def test_its_first_screen_has_the_three_endpoints() -> None:
    assert [re.search(r"3000/(\w+)", command)[1] for command in CURLS[:3]] == ["text", "image", "speech"]  # type: ignore[index]


def test_its_story_is_what_the_model_says(service: Served) -> None:
    told = next(text for language, text in BLOCKS if language == "json" and '"text"' in text)
    said = subprocess.run(
        ["bash", "-euc", here(CURLS[0], service)], capture_output=True, check=True, text=True
    ).stdout
    story = re.compile(r'"text": ?"([^"]*)"')
    assert story.findall(told) == story.findall(said)


def test_its_python(service: Served) -> None:
    assert PYTHON
    for code in PYTHON:
        scope: dict[str, object] = {}
        exec(compile(here(code, service), "README.md", "exec"), scope)  # noqa: S102 - the README's own code
        assert scope["story"]


def test_its_settings_are_all_there_are() -> None:
    named = set(re.findall(r"^\| `(?:TRIPTYCH_)?([A-Z_]+)`", README, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_its_links_lead_somewhere(link: str) -> None:
    assert ROOT.joinpath(link).exists()
