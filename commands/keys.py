"""`triptych keys`: who may come in, to what, and how much."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from commands.terminal import AsJson, CommandError, Commands, Exit, say, show, table
from gateway.books import spent_by
from gateway.keys import Key, Terms, all_keys, create_key, revoke_key, server_secret
from gateway.store import Store, StoreError
from settings import settings

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Keys: who may come in, to what, and how much.")


@contextmanager
def opened_store() -> Generator[Store]:
    """The settings' store. Raises `CommandError`."""
    store = Store(settings().store)
    try:
        yield store
    except StoreError as error:
        raise CommandError(str(error), Exit.UNREACHABLE) from None
    finally:
        store.close()


def valid_keys() -> list[Key]:
    """Raises `CommandError` when the store cannot be read."""
    with opened_store() as store, store.begin() as connection:
        return [key for key in all_keys(connection) if key.revoked_at is None]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; for people.")],
    route: Annotated[list[str] | None, typer.Option(help="A path it may ask, /v1/* with a star.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may ask.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Most requests at once.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Most tokens a period.")] = None,
    pixel_steps: Annotated[float | None, typer.Option(help="Most width x height x steps a period.")] = None,
    audio_s: Annotated[float | None, typer.Option(help="Most seconds of sound a period.")] = None,
    period: Annotated[str, typer.Option(help="What quotas are for: day, month or ever.")] = "day",
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once.

    Limits that are not given do not exist; --route and --model may be given several times.
    """
    for each in route or ():
        if not each.startswith(("/", "*")):
            raise CommandError(f"--route {each} is no path: /{each} would be.", Exit.USAGE)
    terms = _terms(
        routes=tuple(route or ()),
        models=tuple(model or ()),
        requests_per_minute=requests_per_minute,
        concurrency=concurrency,
        tokens=tokens,
        pixel_steps=pixel_steps,
        audio_s=audio_s,
        period=period,
    )
    options = settings()
    with opened_store() as store:
        secret = server_secret(options.secret, Path(options.state_dir, "secret"))
        key, text = create_key(store, secret, name, terms)
    say("This is the only time that the key is shown. From now on every request needs one.")
    show({**_told(key, {}), "key": text}, as_json, text)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, their terms, and what they have spent in this period."""
    with opened_store() as store, store.begin() as connection:
        found = [_told(key, spent_by(connection, key)) for key in all_keys(connection)]
    rows = [
        (each["id"], each["name"], each["created"], each["revoked"] or "", _in_words(each)) for each in found
    ]
    show(found, as_json, table(("id", "name", "created", "revoked", "terms"), rows))


@app.command("revoke")
def revoke(id: Annotated[str, typer.Argument(help="The key's id, from `triptych keys list`.")]) -> None:
    """Revoke a key: within a second nobody comes in with it."""
    with opened_store() as store:
        if not revoke_key(store, id):
            raise CommandError(f"There is no key {id} that is valid; `triptych keys list` shows them.")
    say(f"The key {id} is revoked.")


def _terms(**given: Any) -> Terms:
    try:
        return Terms(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise CommandError(f"{option}: {first['msg']}.", Exit.USAGE) from None


def _told(key: Key, spent: dict[str, float]) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "created": _time(key.created_at),
        "revoked": _time(key.revoked_at),
        **key.terms.model_dump(mode="json"),
        "spent": spent,
    }


def _in_words(told: dict[str, Any]) -> str:
    words = [*told["routes"], *told["models"]]
    for name, per in (("requests_per_minute", "requests a minute"), ("concurrency", "at once")):
        words += [f"{told[name]} {per}"] if told[name] is not None else []
    for unit in ("tokens", "pixel_steps", "audio_s"):
        if told[unit] is not None:
            words.append(f"{told['spent'].get(unit, 0):g} of {told[unit]:g} {unit} ({told['period']})")
    return ", ".join(words)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
