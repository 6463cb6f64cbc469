"""Identifiers in the names of files and folders: people, days, numbers of records, addresses."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import lru_cache

from eucaim_fl.cohorts.deidentification import patterns
from eucaim_fl.cohorts.deidentification.vocabulary import CLINICAL_WORDS, LAYOUT_WORDS
from eucaim_fl.cohorts.deidentification.words import is_imaging_word, tokens

__all__ = ["identifiers_in_name", "looks_like_person", "masked", "masked_detail"]

_LONGEST_PATH = 4096
_ENDING = re.compile(
    r"(?:\.(?:dcm|dicom|ima|img|hdr|nii|gz|csv|tsv|json|txt|xml|zip|png|jpe?g|tiff?|mha|mhd|nrrd|bak|tmp))+$", re.I
)
_LETTERS = re.compile(r"[^\W\d_]+")
_CLAN = re.compile(r"(?:Mc|Mac|O|Di|De|La|Le|Van|Fitz)[A-Z][a-z]+")
_JOINTS = frozenset(" _^,.-'")
_STEPS = re.compile(r"([/'\"]+)")
_SLASHED_DAY = re.compile(r"\d/\d")


def _is_known(word: str) -> bool:
    folded = "".join(tokens(word))
    return folded in LAYOUT_WORDS or folded in CLINICAL_WORDS or is_imaging_word(folded)


def _is_name_shaped(word: str) -> bool:
    """`Rossi`, `Ek` and `McKenzie`, or three capitals or more."""
    if len(word) == 2:
        return word.istitle()
    return len(word) > 2 and (word.istitle() or word.isupper() or _CLAN.fullmatch(word) is not None)


def _split_camel(word: str) -> list[str]:
    parts, start = [], 0
    for at in range(1, len(word)):
        if word[at].isupper() and word[at - 1].islower():
            parts.append(word[start:at])
            start = at
    return [*parts, word[start:]]


def looks_like_person(text: str) -> bool:
    """Whether two neighbouring words of a text have the shape of a person's name and aren't imaging or layout words.

    The shape: capital initials, or all capitals (three letters or more), joined by at most two of space, `_`, `^`,
    `,`, `.`, `-` and `'`; or run together as in `RossiMaria`. A `^` between any two words that aren't imaging words
    also makes a name. One word alone can't be told from a code, and passes.
    """
    before: tuple[int, bool, bool, int] | None = None  # of the last word: its end, shaped, known, length
    for match in _LETTERS.finditer(text):
        word = match[0]
        known = _is_known(word)
        shaped = not known and _is_name_shaped(word)
        if not known and not word.isupper() and len(word) >= 6:
            parts = _split_camel(word)
            if len(parts) in (2, 3) and all(len(p) >= 3 and p.istitle() and not _is_known(p) for p in parts):
                return True
        if before is not None:
            joint = text[before[0] : match.start()]
            if len(joint) <= 2 and set(joint) <= _JOINTS:
                if shaped and before[1] and len(word) + before[3] > 4:
                    return True
                if "^" in joint and not known and not before[2] and len(word) >= 2:
                    return True
        before = (match.end(), shaped, known, len(word))
    return False


@lru_cache(maxsize=65536)
def _in_part(part: str) -> tuple[tuple[str, int], ...]:
    """Findings of one folder's or file's name."""
    text = patterns.without_opaque(_ENDING.sub("", part))
    found = {"deid.file_email": patterns.emails(text), "deid.file_date": patterns.days(text)}
    text = patterns.without_days(text)
    found["deid.file_phone"] = patterns.phones(text)
    if not found["deid.file_phone"]:
        found["deid.file_number"] = patterns.long_numbers(text)
    found["deid.file_person"] = int(looks_like_person(text))
    return tuple((rule, count) for rule, count in found.items() if count)


def identifiers_in_name(path: str) -> dict[str, int]:
    """Rule → how often a relative POSIX path (folders and file name) breaks it; empty if nothing in it names a person.

    `deid.file_date`: a day other than 1 January, also as folders `2018/07/04`. `deid.file_number`: 7 to 15 digits in a
    row. `deid.file_person`: two words of a name's shape. `deid.file_email`, `deid.file_phone`. UIDs, hashes, EUCAIM
    pseudonyms, counters with leading zeros, imaging words and the usual words of cohorts' folders don't count.
    A name of one word alone, or in lower case, can't be told from a code, and is not found.

    >>> identifiers_in_name("EUCAIM-00a1b2c3d4e5f607/1.2.840.113619.2.55/t2_tse_tra/IM00001.dcm")
    {}
    >>> identifiers_in_name("Rossi_Maria/19530312/1.dcm")
    {'deid.file_person': 1, 'deid.file_date': 1}
    """
    path = path[:_LONGEST_PATH]
    found: Counter[str] = Counter()
    for part in path.split("/"):
        for rule, count in _in_part(part):
            found[rule] += count
    if _SLASHED_DAY.search(path) and (days := patterns.days(patterns.without_opaque(path).replace("/", "."))):
        found["deid.file_date"] = max(found["deid.file_date"], days)
    return dict(found)


def masked(name: str) -> str:
    """A name for reports: itself if it has no finding, else `#` and the first eight digits of its SHA-256."""
    if not identifiers_in_name(name):
        return name
    return "#" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def masked_detail(text: str) -> str:
    """A local detail of an error for a log: every step of the paths in it is masked as `masked` does.

    >>> masked_detail("/srv/cohort/Rossi_Maria/IM00001.dcm: truncated")
    '/srv/cohort/#e596b942/IM00001.dcm: truncated'
    """
    return "".join(masked(part) for part in _STEPS.split(text))
