"""Numbers, signs and abbreviations as the words a reader says for them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

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
_MANY = {"$": "dollars", "€": "euros", "£": "pounds"}
_MINUS = {"cs": "minus", "pl": "minus", "sk": "mínus"}
"""Where num2words breaks on the sign."""
_LANGUAGES = frozenset(CONVERTER_CLASSES) - {"am"}
"""Amharic's never ends on a number of 13 digits."""
_GIVES_UP = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""What num2words raises where a language lacks a case; it has no error of its own."""
_COMMA_DECIMALS = frozenset({"de", "fr", "es", "it", "pt", "pl", "ru", "tr"})

_MONEY = re.compile(r"([$€£])\s?(\d+(?:[.,]\d+)*)|(?<![\d.,])(\d+(?:[.,]\d+)*)\s?([€£])")
_MUCH_MONEY = re.compile(r"([$€£])\s?(\d+(?:[.,]\d+)*)\s(thousand|million|billion|trillion)\b", re.IGNORECASE)
_CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b")
_ORDINAL = re.compile(r"\b(\d{1,6})(?:st|nd|rd|th)\b", re.IGNORECASE)
_YEAR = re.compile(r"(?<=\bin )(1[1-9]\d\d|20[1-9]\d)\b(?![.,]\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:[.,]\d+)*|\d+")
_POINTS = re.compile(r"[.,]")


def read_out(text: str, language: str) -> str:
    """A sentence with what is not spelled as it is spoken put into words.

    Numbers in every language that num2words knows; abbreviations and signs in those of the tables here. What
    neither knows stays as it is, for the model to make of it what it can.

    Args:
        text: One sentence.
        language: ISO 639-1.
    """
    text = _expand(text.replace("\N{MINUS SIGN}", "-"), language)
    if language in _LANGUAGES:
        if language == "en":
            text = _MUCH_MONEY.sub(lambda found: f"{found[2]} {found[3]} {_MANY[found[1]]}", text)
        text = _MONEY.sub(lambda found: _money(found, language), text)
        text = _CLOCK.sub(lambda found: _clock(found, language), text)
        if language == "en":
            text = _ORDINAL.sub(lambda found: _words(found[1], int(found[1]), language, "ordinal"), text)
            text = _YEAR.sub(lambda found: _words(found[1], int(found[1]), language, "year"), text)
        text = _NUMBER.sub(lambda found: _number(found[0], language), text)
    for sign, word in _SIGNS.get(language, {}).items():
        text = text.replace(sign, f" {word} ")
    return " ".join(text.split())


@cache
def _pattern(language: str) -> re.Pattern[str]:
    every = sorted(_ABBREVIATIONS[language], key=len, reverse=True)
    return re.compile(rf"(?:(?<![\w.])|(?<=\d))(?:{'|'.join(map(re.escape, every))})(?!\w)", re.IGNORECASE)


def _expand(text: str, language: str) -> str:
    table = _ABBREVIATIONS.get(language)
    if table is None:
        return text

    def expanded(found: re.Match[str]) -> str:
        short = found[0].lower()
        before, after = text[: found.start()], text[found.end() :].lstrip()
        glued = before[-1:].isdigit()  # as in 5km, where only a unit may be
        if short in _ONLY_AFTER_NUMBERS:
            if not before.rstrip()[-1:].isdigit():
                return found[0]
        elif glued:
            return found[0]
        if short in ("no.", "nr.") and not after[:1].isdigit():
            return found[0]
        # A point that also ends the sentence stays: the reader's voice falls there.
        ends = short.endswith(".") and not after
        return " " * glued + table[short] + ("." if ends else "")

    return _pattern(language).sub(expanded, text)


def _value(written: str, language: str) -> tuple[str, str] | None:
    """A number's whole digits and its decimals; None of what is no number, such as a date or a version."""
    parts, signs = _POINTS.split(written), _POINTS.findall(written)
    if not signs:
        return written, ""
    thousands = [len(part) == 3 for part in parts[1:]]
    if len(set(signs)) == 2:  # the last one is before the decimals, whatever the language
        right = signs.count(signs[-1]) == 1 and all(thousands[:-1])
        return ("".join(parts[:-1]), parts[-1]) if right else None
    if len(signs) > 1:
        return ("".join(parts), "") if all(thousands) else None
    groups = signs[0] == ("." if language in _COMMA_DECIMALS else ",")
    if groups and thousands[0] and parts[0].lstrip("-") != "0":
        return "".join(parts), ""
    return parts[0], parts[1]


def _number(written: str, language: str) -> str:
    value = _value(written, language)
    if value is None:
        return " ".join(_number(part, language) for part in _POINTS.split(written))
    whole, decimals = value
    digits = whole.lstrip("-")
    if len(digits) > MAX_DIGITS or len(decimals) > MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return " ".join(_digit(mark, language) for mark in written if mark.isdigit())
    exact = float(f"{whole}.{decimals}") if decimals else int(whole)
    return _words(written, exact, language, "cardinal")


@cache
def _digit(mark: str, language: str) -> str:
    return _words(mark, int(mark), language, "cardinal")


def _money(found: re.Match[str], language: str) -> str:
    sign, written = (found[1], found[2]) if found[1] else (found[4], found[3])
    value = _value(written, language)
    if value is None or len(value[0]) > MAX_DIGITS:
        return found[0]
    whole, decimals = value
    amount = float(f"{whole}.{decimals[:2] or 0}")  # num2words takes a whole number for cents
    currency: dict[str, Any] = {"lang": language, "to": "currency", "currency": _CURRENCIES[sign]}
    try:
        # "five dollars, zero cents": nobody says the second half. Each language has its own word before it.
        units: str = num2words(amount, separator="|", **currency)
        return num2words(amount, **currency) if decimals.strip("0") else units.partition("|")[0].strip()
    except _GIVES_UP:
        return found[0]


def _clock(found: re.Match[str], language: str) -> str:
    hours, minutes = int(found[1]), int(found[2])
    if language == "en":
        rest = "" if minutes == 0 else f"{'oh ' if minutes < 10 else ''}{minutes}"
        return f"{hours} {rest}".strip() if rest else f"{hours} o'clock"
    return f"{hours} {minutes}" if minutes else str(hours)


def _words(written: str, value: float, language: str, to: str) -> str:
    """`value` in words; as it is `written` where num2words cannot say it."""
    if value < 0 and language in _MINUS:
        return f"{_MINUS[language]} {_words(written.lstrip('-'), -value, language, to)}"
    try:
        words: str = num2words(value, lang=language, to=to)
        if -1 < value < 0:  # most languages forget the sign, which the zero before the point has not
            minus: str = num2words(-1, lang=language).removesuffix(num2words(1, lang=language))
            words = minus + words.removeprefix(minus)
    except _GIVES_UP:
        return written
    return words.replace("-", " ")
