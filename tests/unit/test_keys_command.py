"""`triptych keys` and `triptych usage`, and the refusal to be open to others without a key."""

from __future__ import annotations

import asyncio
import csv
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from gateway.ledger import Ledger
from gateway.store import Store
from gateway.tickets import Taken, Ticket
from gateway.units import Units
from settings import settings
from tests.e2e.process import free_port

run = CliRunner()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TRIPTYCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("TRIPTYCH_SECRET", raising=False)
    settings.cache_clear()
    yield tmp_path / "state"
    settings.cache_clear()


def test_a_key_is_made_listed_and_revoked(state: Path) -> None:
    made = run.invoke(app, ["keys", "create", "ann", "--route", "/v1/*", "--tokens", "1000", "--json"])
    assert made.exit_code == 0, made.output
    key = json.loads(made.stdout)
    assert key["key"].startswith(f"tt_{key['id']}_")
    assert stat.S_IMODE((state / "secret").stat().st_mode) == 0o600
    listed = run.invoke(app, ["keys", "list", "--json"])
    (found,) = json.loads(listed.stdout)
    assert (found["name"], found["routes"], found["tokens"], found["revoked"]) == (
        "ann",
        ["/v1/*"],
        1000,
        None,
    )
    assert key["key"].rpartition("_")[2] not in listed.stdout
    assert "0 of 1000 tokens (day)" in run.invoke(app, ["keys", "list"]).stdout
    assert run.invoke(app, ["keys", "revoke", key["id"]]).exit_code == 0
    assert run.invoke(app, ["keys", "revoke", key["id"]]).exit_code == 1
    assert json.loads(run.invoke(app, ["keys", "list", "--json"]).stdout)[0]["revoked"]


@pytest.mark.parametrize(
    "option", [["--tokens", "-1"], ["--period", "week"], ["--concurrency", "0"], ["--route", "v1/*"]]
)
def test_bad_terms_are_named(option: list[str]) -> None:
    refused = run.invoke(app, ["keys", "create", "ann", *option])
    assert refused.exit_code == 2
    assert option[0] in refused.stderr


def test_usage_is_csv_or_json_lines() -> None:
    async def use() -> None:
        ledger = Ledger(Store(settings().store))
        taken = Taken(model="tiny", units=Units(3, 5), jobs=1)
        ledger.record(Ticket("mine", taken=taken), "/text", 200, "ok")
        ledger.record(Ticket("no jobs"), "/text", 400, "error")
        await ledger.close()

    asyncio.run(use())
    (row,) = csv.DictReader(run.invoke(app, ["usage"]).stdout.splitlines())
    assert (row["request_id"], row["model"], row["completion_tokens"]) == ("mine", "tiny", "5.0")
    (line,) = run.invoke(app, ["usage", "--format", "jsonl"]).stdout.splitlines()
    assert json.loads(line)["prompt_tokens"] == 3
    assert not run.invoke(app, ["usage", "--format", "jsonl", "--until", "2026-01-01"]).stdout


def test_an_open_address_needs_a_key_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr("commands.serve.supervise", lambda target, *_: started.append(target))
    for host in ("0.0.0.0", "192.168.1.7", "somewhere"):  # noqa: S104 - it is refused
        monkeypatch.setenv("HOST", host)
        settings.cache_clear()
        refused = run.invoke(app, ["serve"])
        assert refused.exit_code == 2
        assert "keys create" in refused.stderr
    assert not started
    monkeypatch.setenv("HOST", "0.0.0.0")  # noqa: S104 - nothing is started
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("TRIPTYCH_KEYLESS", "true")
    settings.cache_clear()
    assert run.invoke(app, ["serve"]).exit_code == 0
    monkeypatch.delenv("TRIPTYCH_KEYLESS")
    settings.cache_clear()
    assert run.invoke(app, ["keys", "create", "ann"]).exit_code == 0
    assert run.invoke(app, ["serve"]).exit_code == 0
    assert started == ["service:Triptych"] * 2


def test_a_store_that_cannot_be_opened_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIPTYCH_STATE_DIR", str(tmp_path / "file"))
    settings.cache_clear()
    refused = run.invoke(app, ["keys", "list"])
    assert refused.exit_code == 3
    assert "cannot be opened" in refused.stderr
