"""What the validation's page tells beside the numbers: when the plan was fixed, what was changed, who signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["About", "Signature"]


@dataclass(frozen=True)
class Signature:
    """What is known of a site's signature on its record. verified: it fits, by the key that the coordinator has on
    file. broken: it was checked and does not fit. unchecked: there is one, and no key was at hand. missing: there is
    none. key: fingerprint of the key. said: a sentence more.
    """

    site: str
    state: Literal["verified", "broken", "unchecked", "missing"]
    key: str = ""
    said: str = ""


@dataclass(frozen=True)
class About:
    """Circumstances of a validation; everything is in words and escaped on the page.

    fixed_at: when the plan was fixed; fixed_by: how that is known, such as a signed approval. first_seen_at: when the
    first record came. changes: what speaks against a plan that was fixed before any result was seen, a sentence each:
    something was changed, or a site had told of the model before; empty says that nothing does.
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
