"""Identifiers in a DICOM file's header: every element at any depth, by the tables of PS3.15 and EUCAIM's profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from eucaim_fl.cohorts.deidentification import judges, patterns
from eucaim_fl.cohorts.deidentification.tags import BY_VR, DERIVED, SAFE_PRIVATE, SEQUENCES, judges_by_tag
from eucaim_fl.cohorts.deidentification.words import is_imaging_word, tokens
from eucaim_fl.cohorts.elements import UNDEFINED, Element, Elements

__all__ = ["identifiers_in_header"]

_PATIENT_NAME, _PATIENT_ID, _BIRTH_DATE = 0x00100010, 0x00100020, 0x00100030
_PN_TAGS_OF_PATIENT = frozenset({_PATIENT_NAME, 0x00101001, 0x00101005})
_CAPTURES = frozenset({"SC", "US", "OT", "XC", "ES", "GM", "IVUS", "DOC", "OP"})
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_TEXT_VRS = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "UR", "PN", "CS", "AE", "IS", "DS", "UN", ""})
_LONGEST_TEXT = 64 * 1024


def identifiers_in_header(elements: Elements, path: str = "") -> dict[str, int]:
    """Rule → how often the header breaks it; empty if nothing in it can name a person. `rules.RULES` explains them.

    Every element counts, at any depth of sequences, in private groups and in the file's meta information, by its tag
    (PS3.15 table E.1-1) and by what its value looks like. path: relative POSIX path of the file, to see whether the
    patient's name, number or date of birth stands in it. Which rules matter is the policy's choice, not made here.
    """
    found: Counter[str] = Counter()
    _judge(elements, elements.meta, found)
    _judge(elements, elements.entries, found)
    _settle_dates(elements, found)
    _look_for_own_values(elements, path, found)
    _look_at_statements(elements, found)
    return {rule: count for rule, count in found.items() if count}


def _judge(elements: Elements, entries: list[Element], found: Counter[str]) -> None:
    """Count what each element breaks. This loop runs over every element of millions of files."""
    by_tag, raw = judges_by_tag(), elements.raw
    overlays: set[int] = set()
    creators: dict[int, bytes] = {}
    for at, (tag, vr, start, length, depth) in enumerate(entries):
        judge = by_tag.get(tag)
        if judge is None:
            if tag & 0x10000:
                found["deid.private"] += _is_unsafe_private(entries[at], raw, creators)
                continue
            if tag in SEQUENCES and vr == "SQ":
                if at + 1 < len(entries) and entries[at + 1].depth > depth:
                    found[SEQUENCES[tag]] += 1
                continue
            if tag >> 24 in (0x50, 0x60) and length:
                overlays.add(tag >> 16)
                continue
            judge = BY_VR.get(vr)
            if judge is None:
                continue
        if length and length != UNDEFINED:
            rule = judge(raw[start : start + length])
            if rule:
                found[rule] += 1
    found["deid.overlay_curve"] += len(overlays)


def _is_unsafe_private(element: Element, raw: bytes, creators: dict[int, bytes]) -> bool:
    """Whether a private element holds a value that isn't on the list of safe ones. Notes the creators on its way."""
    tag, _, start, length, _ = element
    group, low = tag >> 16, tag & 0xFFFF
    if 0x10 <= low <= 0xFF:
        creators[tag] = raw[start : start + min(length, 64)]
        return False
    if low == 0 or not length:
        return False
    creator = SAFE_PRIVATE.get((group, low & 0xFF))
    if creator is None:
        return True
    return creators.get(group << 16 | low >> 8, b"").strip(b" \0") != creator.encode()


def _settle_dates(elements: Elements, found: Counter[str]) -> None:
    """Days of making count as the patient's, except in derived objects; shifted days are a rule of their own."""
    if found["deid.date_made"] and elements.text(0x00080060) not in DERIVED:
        found["deid.date"] += found.pop("deid.date_made")
    if found["deid.date"] and elements.text(0x00280303) == "MODIFIED":
        found["deid.date_shifted"] = found.pop("deid.date")


def _own_words(elements: Elements) -> frozenset[str]:
    """Words of the patient's name that are worth looking for elsewhere: three letters or more, no imaging words."""
    value = elements.bytes(_PATIENT_NAME)
    if not value or not judges.person(value):
        return frozenset()
    return frozenset(
        t for t in tokens(judges.text_of(value)) if len(t) >= 3 and not t.isdecimal() and not is_imaging_word(t)
    )


def _texts(elements: Elements) -> Iterator[bytes]:
    """Texts of elements that have no rule of their own but the shape of their value."""
    raw = elements.raw
    for tag, vr, start, length, _ in elements.entries:
        if vr in _TEXT_VRS and 0 < length <= _LONGEST_TEXT and tag not in _PN_TAGS_OF_PATIENT and not tag & 0x10000:
            yield raw[start : start + length]


def _look_for_own_values(elements: Elements, path: str, found: Counter[str]) -> None:
    """The patient's own name, number and date of birth in other places, and e-mail addresses anywhere."""
    words = _own_words(elements)
    born = elements.text(_BIRTH_DATE) if found["deid.birth_date"] else ""
    number = elements.text(_PATIENT_ID) if found["deid.patient_number"] else ""
    if path and (words or born or number):
        parts = set(tokens(path))
        found["deid.name_in_path"] += len(words & parts) + bool(born and born in path)
        found["deid.name_in_path"] += bool(len(number) >= 3 and number.lower() in path.lower())
    raw = elements.raw[: len(elements.raw) if elements.pixels is None else elements.pixels.start]
    # One look at all bytes at once, since most files hold none of these.
    mail, birth = b"@" in raw, born.encode() if born and raw.count(born.encode()) > 1 else b""
    names = words if words and _repeats(raw, words) else frozenset()
    if not (mail or birth or names):
        return
    for value in _texts(elements):
        broken = (birth and birth in value) or (b"@" in value and patterns.emails(judges.text_of(value)))
        if broken or (names and names & set(tokens(judges.text_of(value), _LONGEST_TEXT))):
            found["deid.text_pattern"] += 1


def _repeats(raw: bytes, words: frozenset[str]) -> bool:
    """Whether a word may stand more than once; words with letters outside ASCII always may."""
    lower = raw.lower()
    return any(not word.isascii() or lower.count(word.encode()) > 1 for word in words)


def _look_at_statements(elements: Elements, found: Counter[str]) -> None:
    """What the file says of itself: burned-in text, and whether identifiers were removed."""
    burned = elements.text(0x00280301).upper()
    if burned == "YES":
        found["deid.burned_in"] += 1
    elif burned != "NO":
        captured = elements.text(0x00080016).startswith(_SECONDARY_CAPTURE) or elements.text(0x00080060) in _CAPTURES
        found["deid.burned_in_unknown"] += captured and elements.pixels is not None
    found["deid.not_marked"] += elements.text(0x00120062).upper() != "YES"
