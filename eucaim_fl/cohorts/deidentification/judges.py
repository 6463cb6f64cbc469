"""Whether one value of a header can name a person: from its bytes to the rule that it breaks, or "".

Each judge is a function of the stored bytes alone. Slices of a series share most values, so answers are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, wraps

from eucaim_fl.cohorts.deidentification import patterns
from eucaim_fl.cohorts.deidentification.names import looks_like_person
from eucaim_fl.cohorts.deidentification.words import is_imaging_word, tokens

__all__ = [
    "Judge",
    "address",
    "age",
    "birth_date",
    "code",
    "date",
    "description",
    "detail",
    "device",
    "free_text",
    "institution",
    "is_study_code",
    "making_date",
    "patient_id",
    "person",
    "plain_text",
    "staff",
    "text_of",
    "time",
    "uid",
]

Judge = Callable[[bytes], str]

_LONGEST_REMEMBERED = 512
_LONGEST_READ = 64 * 1024
_NOTHING_TEXT = """
anonymized anonymised anonymous anonym anon anonymisiert anonimo anonimizado anonimizzato removed deleted withheld
deidentified de identified none na n a no not unknown undefined unspecified dummy empty null xxx x patient name
subject test phantom redacted masked pseudonymized pseudonymised
"""
_NOTHING = frozenset(_NOTHING_TEXT.split())
_CODE = re.compile(r"[A-Za-z0-9]{1,24}(?:[-_. /^][A-Za-z0-9]{1,24}){0,5}")
_SIX_DIGITS = re.compile(r"\d{6}")
_PADDED = re.compile(r"(?<!\d)0+(\d{1,5})(?!\d)")
_DUMMY_DAYS = frozenset({"00010101", "19000101", "00000000"})


def _remembered(judge: Judge) -> Judge:
    """Answers for short values are kept; the long ones that matter are rare and would fill the memory."""
    kept = lru_cache(maxsize=16384)(judge)

    @wraps(judge)
    def ask(value: bytes) -> str:
        return kept(value) if len(value) <= _LONGEST_REMEMBERED else judge(value[:_LONGEST_READ])

    return ask


def text_of(value: bytes) -> str:
    """A stored text without padding: UTF-8 where it is that, else Latin-1; enough to tell words from numbers."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip(" \0\t\r\n")


def _says_nothing(text: str) -> bool:
    """Empty, a placeholder such as `ANONYMIZED`, or long and random (hash, UUID, UID, pseudonym)."""
    rest = patterns.without_opaque(text).replace("\x1f", " ")
    return all(token in _NOTHING or not token.strip("0") for token in tokens(rest, _LONGEST_READ))


def is_study_code(text: str) -> bool:
    """Whether a text looks like the code of a study's subject or site: `PAT123`, `ProstateX-0000`, `sub-01`, a hash.

    It has a digit, no number of six digits or more (leading zeros aside), no day, and nothing of a person's shape.
    """
    if _says_nothing(text):
        return True
    rest = patterns.without_opaque(text).replace("\x1f", "0")
    if not any(letter.isdigit() for letter in rest) or _CODE.fullmatch(rest) is None:
        return False
    if rest.isdecimal() and len(rest) > 4:
        return False
    padded = _PADDED.sub(r"\1", rest)
    return not (
        _SIX_DIGITS.search(padded) or patterns.days(rest) or patterns.long_numbers(rest) or looks_like_person(rest)
    )


@_remembered
def patient_id(value: bytes) -> str:
    """Clean: empty or `EUCAIM-<hash>`. `deid.patient_pseudonym`: a study's code or a hash. Else a number or name."""
    text = text_of(value)
    if not text or patterns.is_pseudonym(text):
        return ""
    return "deid.patient_pseudonym" if is_study_code(text) else "deid.patient_number"


@_remembered
def code(value: bytes) -> str:
    """Numbers of visits, orders and requests: clean if empty, random, a study's code or at most four digits."""
    return "" if is_study_code(text_of(value)) else "deid.patient_number"


def _is_no_person(value: bytes) -> bool:
    text = text_of(value).replace("^", " ").replace("=", " ").strip()
    return is_study_code(text) or all(len(token) < 2 for token in tokens(text))


@_remembered
def person(value: bytes) -> str:
    """A patient's or unknown person's name: clean if empty, a placeholder or a code with digits."""
    return "" if _is_no_person(value) else "deid.person_name"


@_remembered
def staff(value: bytes) -> str:
    """The name of a physician, operator or reader."""
    return "" if _is_no_person(value) else "deid.staff"


@_remembered
def institution(value: bytes) -> str:
    """A hospital's name, department or address: clean if empty, a placeholder, a hash or a code with digits."""
    return "" if is_study_code(text_of(value)) else "deid.institution"


@_remembered
def device(value: bytes) -> str:
    """What tells one machine from others: clean if empty, a placeholder, a hash, or at most two letters or digits."""
    text = text_of(value)
    return "" if _says_nothing(text) or sum(map(len, tokens(text))) <= 2 else "deid.device"


@_remembered
def address(value: bytes) -> str:
    """An address, telephone number or position on the globe."""
    return "" if _says_nothing(text_of(value)) else "deid.address_phone"


@_remembered
def detail(value: bytes) -> str:
    """What is said of a patient beyond age and sex."""
    return "" if _says_nothing(text_of(value)) else "deid.patient_detail"


def _has_day(value: bytes) -> bool:
    """Whether a DA or DT says more than a year: not 1 January, and not the placeholders of the anonymizers."""
    for part in text_of(value[:1024]).replace(".", "").replace("-", "\\").split("\\"):
        day = part.strip()[:8]
        if len(day) > 4 and day not in _DUMMY_DAYS and day[4:8] not in ("0101", "01"):
            return True
    return False


@_remembered
def date(value: bytes) -> str:
    """A date or time of day with date of more than year precision."""
    return "deid.date" if _has_day(value) else ""


@_remembered
def making_date(value: bytes) -> str:
    """A day on which an object was made or changed, which for derived objects isn't a day of the patient's care."""
    return "deid.date_made" if _has_day(value) else ""


@_remembered
def birth_date(value: bytes) -> str:
    """A date of birth of more than year precision."""
    return "deid.birth_date" if _has_day(value) else ""


@_remembered
def time(value: bytes) -> str:
    """A time of day that is not midnight."""
    return "deid.time" if value.strip(b" \0.:0\\") else ""


@_remembered
def age(value: bytes) -> str:
    """An age above 89 years, which few people of a region have. 90 stands for all of them."""
    text = text_of(value)
    return "deid.age_over_89" if text[-1:] == "Y" and text[:-1].isdecimal() and int(text[:-1]) > 90 else ""


def uid(value: bytes) -> str:
    """UIDs not under 2.25, the root of random ones; those of the standard itself don't count."""
    if value[:5] == b"2.25." and b"\\" not in value:
        return ""
    for part in value[:_LONGEST_READ].split(b"\\"):
        stripped = part.strip(b" \0")
        if stripped and not stripped.startswith((b"2.25.", b"1.2.840.10008.")):
            return "deid.uid"
    return ""


def plain_text(text: str) -> bool:
    """Whether every word of a text is an imaging word, and no number is longer than four digits."""
    return all(is_imaging_word(token) for token in tokens(text, _LONGEST_READ))


def _has_shape(text: str) -> bool:
    rest = patterns.without_opaque(text)
    return bool(patterns.emails(rest) or patterns.days(rest) or patterns.phones(rest) or patterns.long_numbers(rest))


@_remembered
def description(value: bytes) -> str:
    """Text that EUCAIM keeps: `deid.text_pattern` for a day, e-mail, telephone or long number in it, else
    `deid.description_words` for words that aren't imaging words.
    """
    text = text_of(value)
    if _says_nothing(text):
        return ""
    if _has_shape(text):
        return "deid.text_pattern"
    return "" if plain_text(text) else "deid.description_words"


@_remembered
def free_text(value: bytes) -> str:
    """Text that the profiles remove: `deid.text_kept` if it holds imaging words only, else `deid.free_text`."""
    text = text_of(value)
    if _says_nothing(text):
        return ""
    return "deid.text_kept" if plain_text(text) and not _has_shape(text) else "deid.free_text"
