"""Numbers, signs and abbreviations as the words a reader says for them."""

from __future__ import annotations

import re
from functools import cache

from num2words import CONVERTER_CLASSES, num2words

MAX_DIGITS = 15
"""A longer number is read digit by digit: nobody says its name."""

_ABBREVIATIONS: dict[str, dict[str, str]] = {
    "en": {
        "mr.": "mister",
        "mrs.": "misses",
        "ms.": "miz",
        "dr.": "doctor",
        "prof.": "professor",
        "st.": "saint",
        "jr.": "junior",
        "sr.": "senior",
        "vs.": "versus",
        "etc.": "et cetera",
        "e.g.": "for example",
        "i.e.": "that is",
        "approx.": "approximately",
        "no.": "number",
        "a.m.": "a m",
        "p.m.": "p m",
        "km": "kilometers",
        "cm": "centimeters",
        "mm": "millimeters",
        "kg": "kilograms",
        "mph": "miles per hour",
        "km/h": "kilometers per hour",
    },
    "de": {
        "z.b.": "zum Beispiel",
        "d.h.": "das heißt",
        "usw.": "und so weiter",
        "bzw.": "beziehungsweise",
        "dr.": "Doktor",
        "prof.": "Professor",
        "nr.": "Nummer",
        "ca.": "circa",
        "km": "Kilometer",
        "cm": "Zentimeter",
        "kg": "Kilogramm",
    },
    "fr": {
        "m.": "monsieur",
        "mme": "madame",
        "mlle": "mademoiselle",
        "dr.": "docteur",
        "etc.": "et cetera",
        "km": "kilomètres",
        "cm": "centimètres",
        "kg": "kilogrammes",
    },
    "es": {
        "sr.": "señor",
        "sra.": "señora",
        "dr.": "doctor",
        "dra.": "doctora",
        "etc.": "etcétera",
        "ud.": "usted",
        "km": "kilómetros",
        "cm": "centímetros",
        "kg": "kilogramos",
    },
    "it": {
        "sig.": "signor",
        "dott.": "dottor",
        "ecc.": "eccetera",
        "km": "chilometri",
        "cm": "centimetri",
        "kg": "chilogrammi",
    },
    "pt": {
        "sr.": "senhor",
        "sra.": "senhora",
        "dr.": "doutor",
        "etc.": "et cetera",
        "km": "quilômetros",
        "cm": "centímetros",
        "kg": "quilogramas",
    },
}
_ONLY_AFTER_NUMBERS = frozenset({"km", "cm", "mm", "kg", "mph", "km/h"})
_SIGNS: dict[str, dict[str, str]] = {
    "en": {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "°": "degrees"},
    "de": {"%": "Prozent", "&": "und", "+": "plus", "=": "gleich", "@": "at", "°": "Grad"},
    "fr": {"%": "pour cent", "&": "et", "+": "plus", "=": "égale", "@": "arobase", "°": "degrés"},
    "es": {"%": "por ciento", "&": "y", "+": "más", "=": "igual a", "@": "arroba", "°": "grados"},
    "it": {"%": "per cento", "&": "e", "+": "più", "=": "uguale a", "@": "chiocciola", "°": "gradi"},
    "pt": {"%": "por cento", "&": "e", "+": "mais", "=": "igual a", "@": "arroba", "°": "graus"},
}
_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP"}
_COMMA_DECIMALS = frozenset({"de", "fr", "es", "it", "pt", "pl", "ru", "tr"})

_MONEY = re.compile(r"([$€£])\s?(\d+(?:[.,]\d+)*)|(\d+(?:[.,]\d+)*)\s?([€£])")
_CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b")
_ORDINAL = re.compile(r"\b(\d{1,6})(?:st|nd|rd|th)\b", re.IGNORECASE)
_YEAR = re.compile(r"(?<=\bin )(1[1-9]\d\d|20[1-9]\d)\b(?![.,]\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:[.,]\d+)*|\d+")


def read_out(text: str, language: str) -> str:
    """A sentence with what is not spelled as it is spoken put into words.

    Numbers in every language that num2words knows; abbreviations and signs in those of the tables here. What
    neither knows stays as it is, for the model to make of it what it can.

    Args:
        text: One sentence.
        language: ISO 639-1.
    """
    text = _expand(text, language)
    if language in CONVERTER_CLASSES:
        text = _MONEY.sub(lambda found: _money(found, language), text)
        text = _CLOCK.sub(lambda found: _clock(found, language), text)
        if language == "en":
            text = _ORDINAL.sub(lambda found: _words(int(found[1]), language, "ordinal"), text)
            text = _YEAR.sub(lambda found: _words(int(found[1]), language, "year"), text)
        text = _NUMBER.sub(lambda found: _number(found[0], language), text)
    for sign, word in _SIGNS.get(language, {}).items():
        text = text.replace(sign, f" {word} ")
    return " ".join(text.split())


@cache
def _pattern(language: str) -> re.Pattern[str]:
    every = sorted(_ABBREVIATIONS[language], key=len, reverse=True)
    return re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, every))})(?!\w)", re.IGNORECASE)


def _expand(text: str, language: str) -> str:
    table = _ABBREVIATIONS.get(language)
    if table is None:
        return text

    def expanded(found: re.Match[str]) -> str:
        short = found[0].lower()
        before = text[: found.start()].rstrip()
        if short in _ONLY_AFTER_NUMBERS and not before[-1:].isdigit():
            return found[0]
        if short in ("no.", "nr.") and not text[found.end() :].lstrip()[:1].isdigit():
            return found[0]
        # A point that also ends the sentence stays: the reader's voice falls there.
        ends = short.endswith(".") and not text[found.end() :].strip()
        return table[short] + ("." if ends else "")

    return _pattern(language).sub(expanded, text)


def _value(written: str, language: str) -> tuple[str, str]:
    """A number's whole digits and its decimals; thousands may be grouped by the other sign."""
    decimal, group = (",", ".") if language in _COMMA_DECIMALS else (".", ",")
    grouped = all(len(part) == 3 for part in written.split(decimal)[0].split(group)[1:])
    if not grouped:  # such as 3.5 where thousands are grouped by points
        decimal, group = group, decimal
    whole, _, decimals = written.replace(group, "").partition(decimal)
    return whole, decimals.replace(decimal, "")


def _number(written: str, language: str) -> str:
    whole, decimals = _value(written, language)
    digits = whole.lstrip("-")
    if len(digits) > MAX_DIGITS or len(decimals) > MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return _digits(written, language)
    return _words(float(f"{whole}.{decimals}") if decimals else int(whole), language, "cardinal")


def _digits(written: str, language: str) -> str:
    return " ".join(_words(int(mark), language, "cardinal") for mark in written if mark.isdigit())


def _money(found: re.Match[str], language: str) -> str:
    sign, written = (found[1], found[2]) if found[1] else (found[4], found[3])
    whole, decimals = _value(written, language)
    if len(whole) > MAX_DIGITS:
        return found[0]
    amount = float(f"{whole}.{decimals[:2] or 0}")  # num2words takes a whole number for cents
    try:
        words: str = num2words(amount, lang=language, to="currency", currency=_CURRENCIES[sign])
    except (NotImplementedError, KeyError):
        return found[0]
    # "five dollars, zero cents": nobody says the second half.
    return words if decimals.strip("0") else words.partition(",")[0]


def _clock(found: re.Match[str], language: str) -> str:
    hours, minutes = int(found[1]), int(found[2])
    if language == "en":
        rest = "" if minutes == 0 else f"{'oh ' if minutes < 10 else ''}{minutes}"
        return f"{hours} {rest}".strip() if rest else f"{hours} o'clock"
    return f"{hours} {minutes}" if minutes else str(hours)


def _words(value: float, language: str, to: str) -> str:
    words: str = num2words(value, lang=language, to=to)
    if -1 < value < 0:  # most languages of num2words forget the sign, which the zero before the point has not
        minus: str = num2words(-1, lang=language).removesuffix(num2words(1, lang=language))
        words = minus + words.removeprefix(minus)
    return words.replace("-", " ")
