"""Every setting of the service, typed, in one place.

A setting is given as an environment variable (`TRIPTYCH_QUEUE_SIZE=128`; `HOST` and `PORT` work bare too) or
in a TOML file (`triptych.toml` in the working directory, or the file that `TRIPTYCH_SETTINGS` names). The
environment wins. A key that does not exist is an error that names it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "TRIPTYCH_"
FILE_VARIABLE = PREFIX + "SETTINGS"
_REPLICAS = "(text|image|speech)=([1-9]|[1-5][0-9]|6[0-4])"


class SettingsError(Exception):
    """A setting that does not exist or is out of bounds; the message names it."""


def _bare(name: str) -> AliasChoices:
    return AliasChoices(name, PREFIX + name.upper(), name.upper())


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: Annotated[str, Field(validation_alias=_bare("host"))] = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535, validation_alias=_bare("port"))] = 3000
    """The port to listen on."""
    profile: str = "embedded"
    """Which models to serve: `embedded`, `standard`, or the path of a catalog file of your own (`.yaml`)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; `auto` takes the GPUs that are there."""
    text_engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What steps text models; `auto` is vLLM on a GPU where it is installed, transformers elsewhere."""
    cpu_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of each runner on a CPU; 0 deals out the cores: all to one runner, half to each of several."""
    text_runner_url: str | None = None
    """Where the text runner is served on its own, several with commas; else it is beside the gateway."""
    image_runner_url: str | None = None
    """Where the image runner is served on its own."""
    speech_runner_url: str | None = None
    """Where the speech runner is served on its own."""
    runner_token: Annotated[str | None, Field(pattern=r"^([!-~]([ -~]*[!-~])?)?$")] = None
    """What a gateway shows to runners on other machines, and they ask for; the same for all of them."""
    runners: Annotated[str, Field(pattern=r"^((text|image|speech)(,(text|image|speech))*)?$")] = ""
    """Which runners this machine has, as in `text,image`; empty for those that have no address above."""
    replicas: Annotated[str, Field(pattern=rf"^({_REPLICAS}(,{_REPLICAS})*)?$")] = ""
    """Runners here that are several processes, as in `image=2,speech=3`: each on a card of its own."""
    memory_gib: Annotated[float, Field(ge=0)] = 0
    """GiB that each runner's models may take; the least recently used leaves for another. 0 sets no bound."""
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 64
    """How many jobs may wait in each runner; one more is refused at once. A gateway sends it 80 at most."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 300
    """Seconds a request may take from arrival to its last byte."""
    stall_s: Annotated[float, Field(gt=0, le=86_400)] = 120
    """Seconds in which a request at work must get on, or it is ended."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """The largest request body where only words go in."""
    max_media_body_bytes: Annotated[int, Field(ge=1024)] = 12 << 20
    """The largest request body where pictures or voices go in."""
    safety_checker: bool = True
    """Let a picture checkpoint's safety checker, where it brings one, withhold pictures."""
    watermark: bool = True
    """Put an invisible mark into pictures, which says that they were made here."""
    picture_metadata: bool = True
    """Write the parameters that a picture was made with into its metadata."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 20
    """Seconds that requests in flight get to end when the service stops."""
    state_dir: str = "var"
    """The folder of what is kept: the database and the keys' secret."""
    store_url: str | None = None
    """The database, by URL (`postgresql+psycopg://...`); left out, a file in the state folder."""
    secret: str | None = None
    """What keys are hashed with, one for all gateways; left out, the file `secret` in the state folder."""
    keyless: bool = False
    """Whether to listen on an address that others reach although there are no keys."""
    results_max_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    """The most that is kept of the answers of jobs and idempotent requests; the oldest go first."""
    results_max_age_s: Annotated[float, Field(gt=0)] = 86_400
    """Seconds that such an answer is kept."""
    vanished_clients: Literal["cancel", "finish"] = "cancel"
    """What becomes of the work of a client that has gone."""
    access_log: bool = True
    """Whether each request is told as a line of JSON on stdout."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may ask from a browser, as a JSON list; `["*"]` is all."""

    @field_validator("replicas")
    @classmethod
    def _of_runners_here(cls, value: str, info: ValidationInfo) -> str:
        names = [each.partition("=")[0] for each in value.split(",") if each]
        if len(names) > len(set(names)):
            raise ValueError("each runner once")
        for name in names:
            if info.data.get(f"{name}_runner_url") is not None:
                raise ValueError(f"the {name} runner is not here but at {PREFIX}{name.upper()}_RUNNER_URL")
        return value

    @property
    def url(self) -> str:
        """Where the service listens; an IPv6 address is in brackets."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def store(self) -> str:
        return self.store_url or f"sqlite:///{Path(self.state_dir).absolute()}/triptych.db"

    def runners_here(self) -> frozenset[str]:
        """The modalities whose runners share this machine."""
        away = {
            "text": self.text_runner_url,
            "image": self.image_runner_url,
            "speech": self.speech_runner_url,
        }
        named = frozenset(each.strip() for each in self.runners.split(",") if each.strip())
        return named or frozenset(each for each, url in away.items() if url is None)

    def processes(self, modality: str) -> int:
        """Of a runner that shares this machine."""
        counts = dict(each.split("=") for each in self.replicas.split(",") if each)
        return int(counts.get(modality, 1))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        file = TomlConfigSettingsSource(settings_cls, toml_file=_settings_file())
        return init_settings, env_settings, file


@cache
def settings() -> Settings:
    """The settings of this process. Raises `SettingsError` that names each wrong one."""
    _refuse_unknown_variables()
    try:
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{_settings_file()} is not a TOML file: {error}.") from None
    except ValidationError as error:
        lines = [_explain(str(part["loc"][0]), part["type"], part["msg"]) for part in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def _settings_file() -> Path:
    named = os.environ.get(FILE_VARIABLE)
    if named is not None and not Path(named).is_file():
        raise SettingsError(f"{FILE_VARIABLE} names {named}, which is not a file.")
    return Path(named or "triptych.toml")


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {FILE_VARIABLE}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            raise SettingsError(f"There is no setting {variable}.{_suggest(variable, known)}")


def _explain(name: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"There is no setting {name}.{_suggest(name, set(Settings.model_fields))}"
    return f"The setting {name} ({_variable(name)}): {message}."


def _variable(name: str) -> str:
    return name.upper() if name in ("host", "port") else PREFIX + name.upper()


def _suggest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {near[0]}?" if near else f" There are: {', '.join(sorted(known))}."
