"""What the validation's page tells beside the numbers: when the plan was fixed, what was changed, who signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["About", "Signature"]


@dataclass(frozen=True)
class Signature:
    """What is known of a site's signature on its record. verified: it was checked against the key that is on file.

    broken: it was checked and does not fit. unchecked: there is one, and no key was at hand. missing: there is none.
    key: fingerprint of the key. said: a sentence more.
    """

    site: str
    state: Literal["verified", "broken", "unchecked", "missing"]
    key: str = ""
    said: str = ""


@dataclass(frozen=True)
class About:
    """Circumstances of a validation; everything is in words and escaped on the page.

    fixed_at: when the plan was fixed; fixed_by: how that is known, such as a signed approval. first_seen_at: when the
    first record came. changes: what was changed after the plan was fixed, a sentence each; empty says that nothing was.
    signatures: of the sites. data: facts of the sites' data: site, what, words. provenance: what and value.
    synthetic: sites whose data is made up, so that nothing is shown for patients.
    """

    fixed_at: str = ""
    fixed_by: str = ""
    first_seen_at: str = ""
    changes: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()
    data: tuple[tuple[str, str, str], ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    synthetic: tuple[str, ...] = ()
