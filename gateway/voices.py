"""GET /voices: who can speak, in which language, and what each sounds like."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from gateway.doors import Call, Door
from gateway.speech import answer_speech
from jobs import SpeechJob

SAMPLE_SEED = 1
SAMPLE_TEMPERATURE = 0.6
_SAMPLES = {
    "en": "One, two, three, four.",
    "de": "Eins, zwei, drei, vier.",
    "es": "Uno, dos, tres, cuatro.",
    "fr": "Un, deux, trois, quatre.",
    "hi": "एक, दो, तीन, चार।",
    "it": "Uno, due, tre, quattro.",
    "ja": "いち、に、さん、し。",
    "ko": "하나, 둘, 셋, 넷.",
    "pl": "Jeden, dwa, trzy, cztery.",
    "pt": "Um, dois, três, quatro.",
    "ru": "Один, два, три, четыре.",
    "tr": "Bir, iki, üç, dört.",
    "zh": "一，二，三，四。",
}
"""What a voice says for a sample; in any other language the English one."""


class VoiceCard(BaseModel):
    name: str
    model: str
    language: str = Field(description="ISO 639-1.")
    sample: str = Field(description="Where its sample is: a WAV file, spoken when it is asked for.")


class VoicesAnswer(BaseModel):
    """The voices of every speech model, the default's first."""

    voices: list[VoiceCard]


async def all_voices(_: None, call: Call) -> Response:
    cards = [
        VoiceCard(
            name=voice["name"],
            model=voice["model"],
            language=voice["language"],
            sample=f"/voices/{quote(voice['model'], safe='')}/{quote(voice['name'])}",
        )
        for voice in await call.runners["speech"].voices()
    ]
    return JSONResponse(VoicesAnswer(voices=cards).model_dump())


async def one_sample(_: None, call: Call) -> Response:
    """The same few words from every voice of a language; an unknown model or voice is the runner's 404."""
    model, voice = call.path["model"], call.path["voice"]
    language = next(
        (
            known["language"]
            for known in await call.runners["speech"].voices()
            if (known["model"], known["name"]) == (model, voice)
        ),
        "en",
    )
    job = SpeechJob(
        id=call.ticket.job_id,
        model=model,
        timeout_s=call.options.timeout_s,
        seed=SAMPLE_SEED,
        text=_SAMPLES.get(language, _SAMPLES["en"]),
        voice=voice,
        temperature=SAMPLE_TEMPERATURE,
    )
    return await answer_speech(job, call.runners["speech"])


DOORS = (
    Door(
        method="GET",
        path="/voices",
        summary="Lists the voices, each with its language and where its sample is.",
        answer=all_voices,
        answers=VoicesAnswer,
    ),
    Door(
        method="GET",
        path="/voices/{model}/{voice:path}",
        summary="A voice's sample: a few words in its language.",
        answer=one_sample,
        media=("audio/wav",),
    ),
)
