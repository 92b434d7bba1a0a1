"""What the pages in docs/ tell a reader to type works as it stands; links and YAML too."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import soundfile
import yaml
from PIL import Image

from models.catalog import Catalog
from settings import PREFIX, Settings
from tests.e2e.process import ROOT, Served

PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
BLOCKS = [
    (name, language, text)
    for name, page in PAGES.items()
    for language, text in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
]


def blocks(language: str) -> list[tuple[str, str]]:
    return [(name, text) for name, known, text in BLOCKS if known == language]


def here(text: str, service: Served) -> str:
    assert "http://127.0.0.1:3000" in text
    return text.replace("http://127.0.0.1:3000", service.url)


ASKING = [(page, command) for page, command in blocks("bash") if "127.0.0.1:3000" in command]


@pytest.mark.parametrize(("page", "command"), ASKING)
def test_commands(service: Served, page: str, command: str, tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", "-euc", here(command, service)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, (page, run.stderr)
    assert '"error"' not in run.stdout
    for written in tmp_path.iterdir():
        if written.suffix == ".png":
            with Image.open(written) as picture:
                assert picture.size == (128, 128)
        else:
            assert soundfile.info(written).duration > 0.3
    assert run.stdout or list(tmp_path.iterdir())


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python(service: Served, page: str, code: str) -> None:
    exec(compile(here(code, service), page, "exec"), {})  # noqa: S102 - the page's own code


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_catalogs(page: str, text: str) -> None:
    catalog = Catalog.model_validate(yaml.safe_load(text))
    assert catalog.profiles["default"], page


@pytest.mark.parametrize("page", PAGES)
def test_links_and_settings(page: str) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert (ROOT / "docs" / link).exists(), link
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"TRIPTYCH_SETTINGS"}
    named = set(re.findall(r"\bTRIPTYCH_[A-Z_]+[A-Z]\b", PAGES[page]))
    assert named <= known, named - known
