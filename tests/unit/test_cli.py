"""The command says what is wrong before anything is started."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cli import app
from settings import settings


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    said = CliRunner().invoke(app, ["--help"]).output
    assert "serve" in said
    assert "Exit codes: 0 done" in said


def test_an_unknown_command_is_a_wrong_command_line() -> None:
    result = CliRunner().invoke(app, ["swerve"])
    assert result.exit_code == 2
    assert "serve" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TRIPTYCH_PORTS", "1", "There is no setting TRIPTYCH_PORTS"),
        ("PORT", "99999", "The setting port"),
        ("TRIPTYCH_PROFILE", "huge", "There is no profile huge. There are: embedded, standard."),
        ("TRIPTYCH_PROFILE", "none.yaml", "The catalog none.yaml cannot be read"),
    ],
)
def test_serve_names_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    settings.cache_clear()
    result = CliRunner().invoke(app, ["serve"])
    settings.cache_clear()
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output
