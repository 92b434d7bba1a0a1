"""What is written is not what is said: sentences, numbers, abbreviations, and the language they are in."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from num2words import CONVERTER_CLASSES
from transformers import BarkConfig, GenerationConfig

from jobs import ErrorKind, JobError
from models.catalog import Modality, models_served
from models.speech.generation import read_rules
from models.speech.language import guess_language, voice_language
from models.speech.listing import list_voices
from models.speech.reading import read_out
from models.speech.sentences import split_sentences
from models.speech.voices import PARTS, Voices


def test_an_abbreviation_ends_no_sentence() -> None:
    text = "Dr. Smith paid $5.20, e.g. for tea.\nReally? Yes!\n\nThe U.S. is big. ..."
    assert [sentence.text for sentence in split_sentences(text, "en")] == [
        "Dr. Smith paid $5.20, e.g. for tea.",
        "Really?",
        "Yes!",
        "The U.S. is big.",
    ]


@pytest.mark.parametrize(
    ("language", "written", "said"),
    [
        ("en", "Dr. No has 3.5 kg.", "doctor No has three point five kilograms."),
        (
            "en",
            "$5.20, $1,000,000 or £5",
            "five dollars, twenty cents, one million dollars or five pounds sterling",
        ),
        ("en", "at 10:30 or 9:05 or 7:00", "at ten thirty or nine oh five or seven o'clock"),
        ("en", "the 22nd in 1999", "the twenty second in nineteen ninety nine"),
        ("en", "5% & more", "five percent and more"),
        ("en", "-0.25 or -3", "minus zero point two five or minus three"),
        ("it", "-0,5", "meno zero virgola cinque"),
        ("en", "agent 007", "agent zero zero seven"),
        ("en", "No. 5, no. No", "number five, no. No"),
        ("en", "9" * 20, " ".join(["nine"] * 20)),
        ("en", "tea etc.", "tea et cetera."),
        (
            "de",
            "3,50 € bzw. 1.234 km",
            "drei Euro und fünfzig Cent beziehungsweise eintausendzweihundertvierunddreißig Kilometer",
        ),
        ("fr", "21 ans etc. ici", "vingt et un ans et cetera ici"),
        ("de", "5 €, €1.234,50", "fünf Euro, eintausendzweihundertvierunddreißig Euro und fünfzig Cent"),
        ("de", "£1,234.50", "eintausendzweihundertvierunddreißig Pfund und fünfzig Pence"),
        ("fr", "5 €", "cinq euros"),
        ("es", "$3", "tres dólares"),
        ("pt", "3 €", "três euros"),
        ("pl", "-1 i -0,5", "minus jeden i minus zero przecinek pięć"),
        ("tr", "$5 ve 3 €", "$beş ve üç €"),
        ("ar", "€5", "€خمسة"),
        ("de", "am 25.11.2026", "am fünfundzwanzig elf zweitausendsechsundzwanzig"),
        ("en", "1.2.3 and 0,125", "one two three and zero point one two five"),
        ("en", "5km, 3 kg and 1st.", "five kilometers, three kilograms and first."),
        ("en", "$1.5 million", "one point five million dollars"),
        ("en", "\N{MINUS SIGN}5", "minus five"),
        ("zh", "你好 3", "你好 3"),
    ],
)
def test_a_sentence_is_put_into_words(language: str, written: str, said: str) -> None:
    assert read_out(written, language) == said


WRITTEN = (
    *("", "1" * 4096, "1," * 2000, "$" * 4096, "-" * 100 + "1", "1.2.3.4", "٣²½", "0", "-1", "-0.5", "-12.5"),
    *("1,5", "1,000", "1.000.000", "1234567890123", "9" * 15, "0.123456789012345", "007", "1e5", "１２"),
    *("$5", "$5.50", "€3", "3 €", "£1,000", "$0.05", "$" + "9" * 15, "$0.999", "12:30", "0:00", "3rd", "1-2"),
)


@pytest.mark.parametrize("language", sorted(code for code in CONVERTER_CLASSES if len(code) == 2))
def test_nothing_written_breaks_the_reader(language: str) -> None:
    for text in WRITTEN:
        assert isinstance(read_out(text, language), str)


def test_a_text_of_digits_is_read_at_once() -> None:
    """The processor's time: it is taken from the engine, which shares the interpreter."""
    for text in ("1" * 4096, "1," * 2048, "1.1," * 1024, "9." * 2048):
        read_out(text, "en")  # what is made once
        begun = time.process_time()
        read_out(text, "en")
        assert time.process_time() - begun < 0.1


def test_a_language_is_guessed_among_those_spoken() -> None:
    assert guess_language("Guten Morgen, wie geht es Ihnen heute?", ["en", "de", "fr"]) == "de"
    assert guess_language("Bonjour, comment allez-vous aujourd'hui ?", ["en", "de", "fr"]) == "fr"
    assert guess_language("Guten Morgen", ["en"]) == "en"
    assert [voice_language(name, "en") for name in ("v2/pt_speaker_3", "ann")] == ["pt", "en"]


def test_the_voices_of_a_catalog_are_listed_without_loading_it() -> None:
    voices = list_voices(models_served("embedded", Modality.SPEECH))
    assert voices[0] == {"name": "ada", "model": "tiny-bark", "language": "en"}
    assert {voice["name"] for voice in voices} == {"ada", "vera", "otto", "hugo"}


def test_the_voice_follows_the_language_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    codes = np.zeros((8, 4), int)
    parts = dict(zip(PARTS, (np.zeros(5, int), codes[:2], codes), strict=True))
    for name in ("de_speaker_1", "en_speaker_1", "en_speaker_2"):
        np.savez(tmp_path / f"voices/{name}.npz", **parts)
    voices = Voices(tmp_path, read_rules(BarkConfig(), GenerationConfig()))
    assert voices.spoken() == ["de", "en"]
    assert voices.in_language("en") == "en_speaker_1"
    found = voices.get("en_speaker_2")
    assert found is not None
    assert found.language == "en"
    with pytest.raises(JobError, match="It speaks: de, en") as refused:
        voices.in_language("xx")
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "language")
