"""What of a description may be kept: known imaging words and short numbers, and nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache

from eucaim_fl.cohorts.deidentification.vocabulary import AFFIXES, WORDS

__all__ = ["is_imaging_word", "plain_words", "tokens"]

_LONGEST = 1024
_TOKEN = re.compile(r"[^\W_]+")
_NUMBER = re.compile(
    r"\d{1,4}(?:x\d{1,4}){0,2}"
    r"(?:mm|cm|um|ms|s|sec|secs|min|mins|t|tesla|k|kv|kvp|kev|ma|mas|hz|ml|cc|mg|mgy|gy|mbq|deg|d|p|ph|pct|bval|bvals|nex|nsa|"
    r"fov|st|nd|rd|th|w|x|ax|sag|cor|tra|dyn|ps|phase)?"
)
_LED = re.compile(
    r"(?:a|b|s|pe|ca|ss|id|wip|bval|bvalue|te|tr|ti|fa|tt|kv|ma|st|sl|thk|th|p|n|e|no|nr|ph|phase|dyn|run|se|ser|im|acq|vol|v|x|r|f|g|z|fov|nex|i|"
    r"mb|ipat|sense|sms|cs|ph|pass|echo|part|seg|label|dis|ga|tc|asir|idose|gk)\d{1,4}"
    r"(?:x\d{1,4})?(?:mm|ms|t|s|f|d|cc|min|sec|a|b|c)?"
)
_KERNEL = re.compile(r"(?:b|bf|bl|br|bv|c|d|e|fl|h|hc|hf|hn|hp|hr|hv|i|j|q|qr|sa|t|u|ur|ub|uc|fc|fr)\d{1,3}[fhmsdu]?")
_FIVE_DIGITS = re.compile(r"\d{5}")
_NUMBERS = re.compile(r"(?<![^\W_])\d+(?:[\W_]{1,3}\d+)+(?![^\W_])")


def _folded(text: str, longest: int = _LONGEST) -> str:
    """Lower case without accents, so that `Próstata` and `prostata` are one word."""
    parts = unicodedata.normalize("NFKD", text[:longest])
    return "".join(letter for letter in parts if not unicodedata.combining(letter)).casefold()


def tokens(text: str, longest: int = _LONGEST) -> list[str]:
    """Runs of letters and digits of a text (its first `longest` characters), in lower case without accents."""
    return _TOKEN.findall(_folded(text, longest))


@lru_cache(maxsize=65536)
def is_imaging_word(token: str) -> bool:
    """Whether a token (lower case, no accents) is an imaging word, a number of at most 4 digits, or such a number with
    a unit or a usual letter (`b800`, `3mm`, `1400bval`, `b30f`, `512x512`); words may be glued (`t2tsetra`) or
    numbered (`chest2`).

    A person's name that happens to be an imaging word passes.
    """
    if token in WORDS or _NUMBER.fullmatch(token) or _LED.fullmatch(token) or _KERNEL.fullmatch(token):
        return True
    stem = token.rstrip("0123456789")
    if len(stem) > 2 and len(token) - len(stem) <= 4 and stem in WORDS:
        return True
    return 5 <= len(token) <= 48 and not _FIVE_DIGITS.search(token) and _is_glued(token)


def _is_glued(token: str) -> bool:
    """Whether a token is a row of words that scanners glue together, b-values among them."""
    reached = [True] + [False] * len(token)
    for end in range(2, len(token) + 1):
        for length in range(2, min(end, 12) + 1):
            if reached[end - length]:
                part = token[end - length : end]
                if part in AFFIXES or (part.isdecimal() and length <= 4) or _LED.fullmatch(part):
                    reached[end] = True
                    break
    return reached[-1]


def _without_long_numbers(text: str) -> str:
    """The text without numbers that belong together and have seven digits or more: dates, telephone and other numbers.
    Lists of b-values (0 and multiples of 50) stay.
    """

    def kept(match: re.Match[str]) -> str:
        parts = re.findall(r"\d+", match[0])
        if sum(map(len, parts)) < 5 or all(len(p) <= 4 and int(p) % 50 == 0 for p in parts):
            return match[0]
        day_like = len(parts) >= 3 and max(map(len, parts[:3])) <= 4 and all(0 < int(p) < 2100 for p in parts[:3])
        return " " if day_like or sum(map(len, parts)) >= 7 else match[0]

    return _NUMBERS.sub(kept, text)


def plain_words(text: str, extra: Collection[str] = ()) -> str:
    """The known imaging words of a text, separated by single spaces: `T2w TSE, Sig. Rossi, 3mm` → `t2w tse 3mm`.

    Tokens (split at anything but letters and digits; lower case, accents removed) stay if they are imaging words,
    numbers or numbers with a unit of at most 4 digits, or in `extra` (lower case). All others are left out, and so are
    numbers that stand together like a date or a telephone number. Only the first 1,024 characters count.

    >>> plain_words("AX T2 FLAIR  Müller 12.03.1953 b-800")
    'ax t2 flair b 800'
    """
    kept, before = _folded(text), ""
    while kept != before:  # numbers may come together only when what stood between them is gone
        before = kept
        found = _TOKEN.findall(_without_long_numbers(kept))
        kept = " ".join(token for token in found if token in extra or is_imaging_word(token))
    return kept
