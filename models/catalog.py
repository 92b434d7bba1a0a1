"""The catalog: which models there are, where they come from, and which of them a profile serves.

Knows names and sources, loads nothing; `loading.py` does that.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

SHIPPED = Path(__file__).with_name("catalog.yaml")


class CatalogError(Exception):
    """A catalog that cannot be used; the message names the file and the entry."""


class Modality(StrEnum):
    TEXT = "text"
    IMAGE = "image"
    SPEECH = "speech"


QUANTIZED = ("int8", "int4", "fp8")
"""Precisions of linear layers; the rest of a model stays in 16 or 32 bits."""

TAKES_LORAS = ("text.decoder", "text.seq2seq")
"""Beside all image families."""
STEPS_BESIDE = ("speech.bark",)
"""Families that on a CPU have lanes whose steps run on a second thread (`protocol.Lane.beside`)."""
WHOLE_CALLS = {"text.embedder": "embed", "text.classifier": "classify"}
"""Families that answer a job by one stateless call, without an engine, and the kind of job."""

Source = Annotated[str, StringConstraints(pattern=r"^(embedded|file|folder|hub|store):\S+$")]
"""`embedded:NAME` ships with the service, `folder:PATH` is on this machine, `hub:OWNER/NAME[@REVISION]`,
`store:NAME[:VERSION]` is in BentoML's model store, `file:PATH` one `.safetensors` file."""


class Memory(BaseModel):
    """What a model takes, as counts of numbers; `runners.placement` makes bytes of them, by precision.

    All of them follow from a model's published configuration, but for `work_values`, which is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: Annotated[int, Field(ge=0)]
    """All of its weights, but for those that `packed_bytes` has."""
    quantizable: Annotated[int, Field(ge=0)] = 0
    """Those of them that int8 and int4 shrink (linear layers, not embeddings); 0 where there is no such."""
    packed_bytes: Annotated[int, Field(ge=0)] = 0
    """Of weights that the checkpoint itself has quantized: they are that large at any precision."""
    cache_values_per_token: Annotated[int, Field(ge=0)] = 0
    """Keys and values kept of each token: 2 x layers x key heads x head size."""
    context: Annotated[int, Field(ge=1)] = 1
    """The most tokens of one request."""
    cache_rows: Annotated[int, Field(ge=1)] = 1
    """On a CPU its cache is for a multiple of so many requests."""
    work_values: Annotated[int, Field(ge=0)] = 0
    """Numbers alive at once in its largest forward, for each row of that forward."""


class Entry(BaseModel):
    """One model of the catalog."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Annotated[str, StringConstraints(pattern=r"^(text|image|speech)\.[a-z][a-z0-9_]*$")]
    """The file in `models/` that loads it, its modality first: `image.stable_diffusion`."""
    source: Source
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4", "fp8"] = "auto"
    """`auto` is bfloat16 on a GPU, and for pictures on a CPU with AMX, else float32.

    int8 and int4 are by bitsandbytes; fp8 is vLLM's (`text.decoder`), which has int8 for experts.
    """
    config: Source | None = None
    """For a `file:` source: the checkpoint in the hub's layout whose configuration and tokenizer it has."""
    offload: bool = False
    """Bring weights to the device only when needed (slow): an image model's all, from memory; of a language
    model (`text.decoder`) what its device has no room for, from memory or, on a CPU, from its files."""
    safety_checker: bool = True
    """Let the checkpoint's safety checker, where it brings one, look at each picture (image families)."""
    watermark: bool = True
    """Put an invisible mark into pictures, which says that they were made here."""
    metadata: bool = True
    """Write the parameters that a picture was made with into its metadata."""
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    """Of pictures whose request names none; 1 for distilled checkpoints, which take none (image families)."""
    max_rows: Annotated[int, Field(ge=1, le=256)] = 16
    """The most requests in flight on it at once."""
    lora_memory_mib: Annotated[int, Field(ge=1)] = 1024
    """Memory of the LoRAs that are ready to be mixed; beyond it the least recently used make room."""
    load: Literal["start", "use"] = "start"
    """When it comes into memory: before the runner is ready, or at its first use."""
    keep_alive_s: Annotated[float, Field(ge=-1)] = -1
    """Seconds without a request after which it leaves memory; 0 at once, below 0 never by itself."""
    loras: Source | None = None
    """The folder that LoRAs are taken from, read anew for each request that names one."""
    aliases: tuple[str, ...] = ()
    """Other names it answers to at the doors in other people's words (`tts-1`, `gpt-image-1`)."""
    voice_aliases: dict[str, str] = Field(default_factory=dict[str, str])
    """Other people's names of its voices (`alloy`), each to one of its own."""
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")] = "en"
    """Of a speech model's voices whose names do not tell it, as ISO 639-1."""
    loudness_lufs: Annotated[float, Field(ge=-40, le=-5)] | None = None
    """The loudness (ITU-R BS.1770) that speech is levelled to; left out, it stays as the model makes it."""
    prompts: dict[str, str] = Field(default_factory=dict[str, str])
    """Words before a text to embed, by what it is for (`query`), beside those that the checkpoint has."""
    licence: str
    """The licence's name, and its page where a hub asks for agreement."""
    gated: bool = False
    """Its hub asks for agreement to the licence, and for a token of who agreed (HF_TOKEN)."""
    memory: Memory | None = None
    """What it takes; without it `triptych plan` goes by the size of its files."""
    files: tuple[str, ...] = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
    """What to download of a hub's repository."""

    @model_validator(mode="after")
    def _goes_together(self) -> Entry:
        if self.offload and self.family != "text.decoder" and self.modality is not Modality.IMAGE:
            raise ValueError(f"offload is for text.decoder and image families, which {self.family} is not")
        if self.loras and self.family not in TAKES_LORAS and self.modality is not Modality.IMAGE:
            raise ValueError(
                f"loras are for {', '.join(TAKES_LORAS)} and image families, which {self.family} is not"
            )
        if self.offload and self.modality is Modality.TEXT and self.precision in QUANTIZED:
            raise ValueError(
                f"a language model with offload keeps its whole precision, so not {self.precision}"
            )
        return self

    @model_validator(mode="after")
    def _fp8_is_vllms(self) -> Entry:
        if self.precision == "fp8" and self.family != "text.decoder":
            raise ValueError(f"fp8 is for text.decoder (on vLLM), which {self.family} is not")
        return self

    @property
    def modality(self) -> Modality:
        return Modality(self.family.partition(".")[0])

    @property
    def job_kind(self) -> str:
        """The jobs it takes: its modality's, or of the stateless kinds `embed` and `classify`."""
        return WHOLE_CALLS.get(self.family, self.modality.value)


class Profile(BaseModel):
    """The models that a service has; of each modality the first is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    speech: tuple[str, ...] = ()

    def names(self, modality: Modality) -> tuple[str, ...]:
        return {Modality.TEXT: self.text, Modality.IMAGE: self.image, Modality.SPEECH: self.speech}[modality]


class Catalog(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, Entry]
    profiles: dict[str, Profile]

    @model_validator(mode="after")
    def _profiles_name_models(self) -> Catalog:
        for title, profile in self.profiles.items():
            for modality in Modality:
                for name in profile.names(modality):
                    if name not in self.models:
                        raise ValueError(f"profile {title} names {name}, which is not among the models")
                    if self.models[name].modality is not modality:
                        raise ValueError(f"profile {title} lists {name} under {modality}, which it is not")
        return self

    def served(self, profile: str, modality: Modality) -> dict[str, Entry]:
        """The models of a modality in a profile, its default first. Raises `CatalogError`."""
        if profile not in self.profiles:
            raise CatalogError(f"There is no profile {profile}. There are: {', '.join(self.profiles)}.")
        return {name: self.models[name] for name in self.profiles[profile].names(modality)}


def read_catalog(path: Path = SHIPPED) -> Catalog:
    """Raises `CatalogError` for a file that is missing or wrong."""
    try:
        return Catalog.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CatalogError(f"The catalog {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogError(f"The catalog {path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CatalogError(f"The catalog {path} is wrong at {where}: {first['msg']}.") from None


def catalog_of(profile: str) -> tuple[Catalog, str]:
    """The catalog that the setting `profile` means, and the profile's name in it. Raises `CatalogError`."""
    if profile.endswith((".yaml", ".yml")):
        own = read_catalog(Path(profile))
        if "default" not in own.profiles:
            raise CatalogError(
                f"The catalog {profile} needs a profile named default. It has: {', '.join(own.profiles)}."
            )
        return own, "default"
    return read_catalog(), profile


def models_served(profile: str, modality: Modality) -> dict[str, Entry]:
    """What the setting `profile` serves: a shipped profile, or the profile `default` of a catalog file."""
    catalog, name = catalog_of(profile)
    return catalog.served(name, modality)
