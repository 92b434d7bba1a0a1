"""The command says what is wrong before anything is started."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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


def run(*arguments: str) -> Result:
    settings.cache_clear()
    result = CliRunner().invoke(app, arguments)
    settings.cache_clear()
    assert "Traceback" not in result.output
    return result


def test_plan_says_who_goes_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_PROFILE", "standard")
    made = json.loads(run("plan", "--gpus", "1x24GiB", "--json").stdout)
    assert [each["cards"] for each in made["runners"]] == [[0], [0], [0]]
    assert made["runners"][0]["cache_tokens"] > 100_000
    two = json.loads(run("plan", "--gpus", "2x24GiB", "--replicas", "image=2", "--json").stdout)
    assert [each["replica"] for each in two["runners"] if each["runner"] == "image"] == [0, 1]
    said = run("plan", "--gpus", "1x24GiB").stdout
    assert "stable-diffusion-v1-5 bfloat16" in said
    assert "Everything fits." in said


def test_the_plan_in_the_readme_is_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PROFILE", "DEVICE"):
        monkeypatch.delenv(f"TRIPTYCH_{variable}", raising=False)
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    told = readme[readme.index("runner  where ") :].split("\n```")[0].splitlines()
    said = run("plan", "--gpus", "1x24GiB", "--profile", "standard").stdout.splitlines()
    rows = {
        line.split()[0]: line.split()[:-1]
        for line in said
        if line.startswith(("runner", "text ", "im", "sp"))
    }
    assert [line.split() for line in told] == list(rows.values())


def test_a_plan_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_PROFILE", "standard")
    monkeypatch.setenv("TRIPTYCH_DEVICE", "cuda")
    result = run("plan", "--gpus", "1x2GiB")
    assert result.exit_code == 1
    assert "It would with 1 card of" in result.stderr


@pytest.mark.parametrize(
    "wrong",
    [("--gpus", "24GiB"), ("--replicas", "image=0"), ("--replicas", "video=2"), ("--profile", "huge")],
)
def test_a_wrong_plan_is_a_wrong_command_line(wrong: tuple[str, str]) -> None:
    assert run("plan", *wrong).exit_code == 2


def test_an_ipv6_address_is_one_for_the_commands_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    class Drained(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    class Server(HTTPServer):
        address_family = socket.AF_INET6

    with Server(("::1", 0), Drained) as server:
        monkeypatch.setenv("HOST", "::1")
        monkeypatch.setenv("PORT", str(server.server_port))
        monkeypatch.setenv("TRIPTYCH_STATE_DIR", str(tmp_path))
        told = {each["what"]: each["said"] for each in json.loads(run("doctor", "--json").stdout)["findings"]}
        assert "Address already in use" in told["address"]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert run("drain").exit_code == 0
        server.shutdown()
    assert asked == ["/drain"]
    assert "is free" in run("doctor").stdout


def test_doctor_tells_what_is_chosen_and_why() -> None:
    result = run("doctor", "--json")
    told = {each["what"]: each for each in json.loads(result.stdout)["findings"]}
    assert {"Python", "machine", "text engine", "tiny-llama", "address", "disk"} <= set(told)
    assert told["tiny-llama"]["state"] == "good"
    assert result.exit_code == 0


def test_doctor_fails_on_what_keeps_the_service_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TRIPTYCH_DEVICE", "cuda")
    result = run("doctor")
    assert result.exit_code == 1
    assert "none that the driver shows" in result.stdout


@pytest.mark.parametrize(
    ("family", "source", "said"),
    [
        ("text.decoder", "embedded:tiny-llama", "vLLM serves one model a runner, and the profile has a, b;"),
        ("text.seq2seq", "embedded:tiny-llama", "b is an encoder-decoder, which vLLM does not serve;"),
        ("text.decoder", "folder:/not/there", "folder:/not/there is not here"),
    ],
)
def test_doctor_says_what_a_catalog_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, source: str, said: str
) -> None:
    first = {"family": "text.decoder", "source": "embedded:tiny-llama", "licence": "none"}
    models = {"a": first, "b": {**first, "family": family, "source": source, "load": "use"}}
    catalog = {"models": models, "profiles": {"default": {"text": ["a", "b"]}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(catalog))
    monkeypatch.setenv("TRIPTYCH_PROFILE", str(tmp_path / "mine.yaml"))
    monkeypatch.setenv("TRIPTYCH_TEXT_ENGINE", "vllm")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    bad = [each["said"] for each in json.loads(result.stdout)["findings"] if each["state"] == "bad"]
    assert any(said in each for each in bad), bad


@pytest.mark.parametrize(
    ("engine", "said"), [("auto", "quantized by awq, which only vLLM reads"), ("vllm", "not installed")]
)
def test_doctor_says_which_engine_cannot_read_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, said: str
) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    made = {"family": "text.decoder", "source": f"folder:{tmp_path}", "licence": "none"}
    catalog = {"models": {"mine": made}, "profiles": {"default": {"text": ["mine"]}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(catalog))
    for name, value in {
        "PROFILE": str(tmp_path / "mine.yaml"),
        "TEXT_ENGINE": engine,
        "DEVICE": "cpu",
    }.items():
        monkeypatch.setenv(f"TRIPTYCH_{name}", value)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    bad = [each["said"] for each in json.loads(result.stdout)["findings"] if each["state"] == "bad"]
    assert any(said in each for each in bad)


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
