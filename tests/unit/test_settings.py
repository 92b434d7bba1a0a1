"""Settings come from the environment or a file, and a misspelt one is an error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import Settings, SettingsError, settings


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HOST", "PORT", "TRIPTYCH_PROFILE", "TRIPTYCH_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_defaults() -> None:
    assert (settings().host, settings().port, settings().profile) == ("127.0.0.1", 3000, "embedded")


@pytest.mark.parametrize("variable", ["PORT", "TRIPTYCH_PORT"])
def test_the_environment_sets(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "4000")
    monkeypatch.setenv("TRIPTYCH_QUEUE_SIZE", "7")
    assert (settings().port, settings().queue_size) == (4000, 7)


def test_a_file_sets_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "triptych.toml").write_text('port = 4001\nhost = "127.0.0.2"\n', encoding="utf-8")
    monkeypatch.setenv("HOST", "127.0.0.3")
    assert (settings().host, settings().port) == ("127.0.0.3", 4001)


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("timeout_s = 9.5\n", encoding="utf-8")
    monkeypatch.setenv("TRIPTYCH_SETTINGS", str(tmp_path / "mine.toml"))
    assert settings().timeout_s == 9.5


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "TRIPTYCH_QUEUE_SIZ",
            "7",
            "There is no setting TRIPTYCH_QUEUE_SIZ. Did you mean TRIPTYCH_QUEUE_SIZE?",
        ),
        ("TRIPTYCH_PORT", "70000", "The setting port (PORT): Input should be less than or equal to 65535."),
        (
            "TRIPTYCH_RUNNER_TOKEN",
            "from-a-file\n",  # no header can have it, so that no runner would ever be reached
            "The setting runner_token (TRIPTYCH_RUNNER_TOKEN): String should match "
            "pattern '^([!-~]([ -~]*[!-~])?)?$'.",
        ),
        ("TRIPTYCH_SETTINGS", "/nowhere.toml", "TRIPTYCH_SETTINGS names /nowhere.toml, which is not a file."),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        settings()
    assert str(error.value) == said


def test_a_wrong_key_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "triptych.toml").write_text("prot = 4000\nport = 0\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        settings()
    assert "There is no setting prot. Did you mean port?" in str(error.value)
    assert "The setting port (PORT): " in str(error.value)


@pytest.mark.parametrize("content", [b"port = = 4000\n", b"host = '\xff'\n"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "triptych.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"triptych\.toml is not a TOML file: "):
        settings()


def test_every_setting_is_documented() -> None:
    source = Path(__file__).parents[2].joinpath("settings.py").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        declared = source.index(f"\n    {name}: ")
        assert source[declared:].split("\n")[2].startswith('    """'), f"{name} has no documentation"
