"""Shapes of identifiers in any text: e-mail addresses, days, telephone and other long numbers, bank accounts."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["days", "emails", "ibans", "is_pseudonym", "long_numbers", "phones", "without_days", "without_opaque"]

_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}")
_YEAR = r"(?P<y>1[89]\d\d|20\d\d)"
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mai|ago|set|okt|dez|dic|gen|mag|giu|lug|ott|ene|abr"
_JANUARY = {"jan", "gen", "ene"}
_DAYS = (
    re.compile(rf"(?<!\d){_YEAR}(?P<m>0[1-9]|1[0-2])(?P<d>0[1-9]|[12]\d|3[01])(?=(?:\d{{4}}|\d{{6}})?(?!\d))"),
    re.compile(rf"(?<!\d)(?P<d>0[1-9]|[12]\d|3[01])(?P<m>0[1-9]|1[0-2]){_YEAR}(?!\d)"),
    re.compile(rf"(?<!\d){_YEAR}(?P<s>[-_./ ])(?P<m>0?[1-9]|1[0-2])(?P=s)(?P<d>0?[1-9]|[12]\d|3[01])(?!\d)"),
    re.compile(rf"(?<![\d.])(?P<d>0?[1-9]|[12]\d|3[01])(?P<s>[-_./ ])(?P<m>0?[1-9]|1[0-2])(?P=s){_YEAR}(?!\d)"),
    re.compile(rf"(?<![\d.])(?P<m>0?[1-9]|1[0-2])(?P<s>[-_./ ])(?P<d>1[3-9]|2\d|3[01])(?P=s){_YEAR}(?!\d)"),
    re.compile(
        rf"(?<!\d)(?P<d>0?[1-9]|[12]\d|3[01])[-_./ ]{{0,2}}(?P<m>{_MONTHS})[a-z]{{0,7}}[-_./ ,]{{0,2}}{_YEAR}(?!\d)",
        re.IGNORECASE,
    ),
)
_PHONE = re.compile(
    r"(?<![\w.])(?:"
    r"(?:\+[1-9]\d{0,2}[ ()./_-]{0,2}|00[1-9]\d{0,2} )\d{1,4}(?:[ ()./_-]{0,2}\d{2,4}){2,4}"
    r"|\(?0[1-9]\d{0,3}\)?[ /]{1,2}\d{2,4}(?:[ -]?\d{2,4}){1,3}"
    r")(?![\w.])"
)
_LONG_NUMBER = re.compile(r"(?<!\d)\d{7,15}(?!\d)")
_NATIONAL = re.compile(
    r"(?<![0-9A-Za-z])(?:"
    r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"  # Italy
    r"|\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[-+]\d{4}"  # Sweden, Finland
    r"|(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d{2}-\d{4}"  # Denmark
    r")(?![0-9A-Za-z])"
)
_COUNTER = re.compile(r"00+\d{1,5}")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,4})?(?!\w)")
_OPAQUE = re.compile(
    r"(?<!\d)(?<!\d\.)(?:2\.25\.\d+|[0-2](?:\.(?:0|[1-9]\d*)){3,})(?!\w)"  # a UID
    r"|(?<![0-9A-Za-z])EUCAIM[-_][0-9A-Fa-f]{6,64}(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Za-z])"  # a UUID
    r"|(?<![0-9A-Za-z])(?=(?:[0-9]*[A-Fa-f]){3})[0-9A-Fa-f]{8,15}(?![0-9A-Za-z])"  # the beginning of a hash
    r"|(?<![0-9A-Za-z])[0-9A-Fa-f]{16,128}(?![0-9A-Za-z])"  # a hash
    r"|(?<![\d.])\d{1,9}\.000000(?!\d)"  # a series number as some archives write it
    r"|(?<!\d)\d{16,}(?!\d)"  # a UUID as a decimal number
)
_PSEUDONYM = re.compile(r"EUCAIM-[0-9A-Fa-f]{6,64}")


def without_opaque(text: str) -> str:
    """The text without UIDs, UUIDs, hashes and EUCAIM pseudonyms: what is long and random and says nothing."""
    return _OPAQUE.sub("\x1f", text)


def is_pseudonym(text: str) -> bool:
    """Whether a text is a patient's identifier as EUCAIM's de-identification writes it: `EUCAIM-<hash>`."""
    return _PSEUDONYM.fullmatch(text) is not None


def emails(text: str) -> int:
    """How many e-mail addresses stand in a text."""
    return len(_EMAIL.findall(text)) if "@" in text else 0


def _found_days(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _DAYS:
        for match in pattern.finditer(text):
            month = match["m"].lower()
            first = month in _JANUARY if month.isalpha() else int(month) == 1
            if not (first and int(match["d"]) == 1):
                yield match.span()


def days(text: str) -> int:
    """How many days of a calendar stand in a text, in any usual order of day, month and year (four digits).

    1 January does not count: dates that are cut to years are written so.
    """
    taken: list[tuple[int, int]] = []
    for start, end in _found_days(text):
        if all(end <= a or start >= b for a, b in taken):
            taken.append((start, end))
    return len(taken)


def without_days(text: str) -> str:
    """The text without any day of a calendar, 1 January included."""
    for pattern in _DAYS:
        text = pattern.sub("\x1f", text)
    return text


def phones(text: str) -> int:
    """How many telephone numbers, with + or a leading 0 and groups, stand in a text."""
    return len(_PHONE.findall(text))


def long_numbers(text: str) -> int:
    """How many numbers of 7 to 15 digits, or national numbers with a date of birth in them, stand in a text.

    Counters padded with zeros (`0000012`) don't count.
    """
    numbers = sum(_COUNTER.fullmatch(number) is None for number in _LONG_NUMBER.findall(text))
    return numbers + len(_NATIONAL.findall(text))


def ibans(text: str) -> int:
    """How many bank accounts (IBAN) stand in a text."""
    return len(_IBAN.findall(text))
