"""How a site's home comes to be: an invitation is read, keys are made here, and a request with their public halves."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from eucaim_fl.durable import flush_folder, write_atomically, write_json
from eucaim_fl.enrolment import Invitation, Request, read_invitation, request
from eucaim_fl.errors import EnrolmentError, JournalError, KeyFileError, ServiceStateError
from eucaim_fl.signing import PrivateKey, certificate_facts, fingerprint, load_document, new_node_key
from eucaim_fl.site.home import SiteHome
from eucaim_fl.sitefile import Layout, load_site_file

__all__ = ["LAYOUTS", "NO_COHORT", "CohortChoice", "make_home", "open_invitation", "read_joined", "to_compare"]

LAYOUTS: tuple[str, ...] = get_args(Layout)
NO_COHORT = Path("/replace/this/by/the/folder/of/the/cohort")
"""Stands in a new site file until the hospital writes the cohort's folder there."""
_TEMPLATES = Path(__file__).parent / "templates"
_FIELD = re.compile(r"\{(home|name|layout|folder|cache)\}")
_BEING_MADE, _COMPLETE = ".init", ".init-complete"


@dataclass(frozen=True)
class CohortChoice:
    """Where the cohort lies and how it is laid out."""

    folder: Path = NO_COHORT
    layout: str = LAYOUTS[0]


def open_invitation(path: Path, now: datetime) -> tuple[Invitation, object]:
    """The invitation in a file, and the document as it was signed.

    Raises EnrolmentError if the file can't be read, or the invitation is malformed, altered or expired.
    """
    document = load_document(path, "invitation", EnrolmentError)
    return read_invitation(document, now), document


def read_joined(home: SiteHome) -> Invitation:
    """The invitation by which this home was made; that it has expired since does not matter.

    Raises EnrolmentError if it is missing, malformed or altered.
    """
    return read_invitation(load_document(home.federation_file, "invitation", EnrolmentError))


def to_compare(invitation: Invitation) -> tuple[tuple[str, str], ...]:
    """What people read to each other before they trust an invitation: what it is, and its value.

    Raises EnrolmentError if the certificate authority in it can't be read.
    """
    try:
        authority = certificate_facts(invitation.ca_pem.encode())
    except KeyFileError:
        raise EnrolmentError(
            "The invitation's certificate authority can't be read.", fix="Ask the coordinator for another."
        ) from None
    return (
        ("federation", invitation.federation),
        ("this site's name", invitation.site),
        ("coordinator's address", invitation.address),
        ("coordinator's key", fingerprint(invitation.coordinator_key)),
        ("certificate authority", authority.fingerprint),
        ("valid until", f"{invitation.valid_until:%Y-%m-%d %H:%M} UTC"),
    )


def make_home(folder: Path, invitation: Invitation, document: object, cohort: CohortChoice) -> Path:
    """Make a site's home: keys, site file, policy, the invitation, and the request; returns the request's path.

    document: the invitation as it was signed. Whole or not at all: a home whose making was interrupted is made again
    (or, once its keys are in place, finished) by the next call with the same invitation.
    Raises ServiceStateError if the folder holds anything else already, lies inside the cohort's folder or can't be
    written, and SiteFileError if the site file would not be valid.
    """
    home = folder.absolute()
    if not str(home).isprintable():
        raise ServiceStateError("A site's home can't have such a name.", fix="Use printable characters only.")
    if home.resolve().is_relative_to(cohort.folder.resolve()):
        raise ServiceStateError(
            "The site's home would lie inside the cohort's folder.",
            fix="Choose a place outside it with --home; the cohort is only read.",
            local_detail=str(home),
        )
    wanted = f"{invitation.site}.request.json"
    try:
        if home.is_dir():
            if _finished(home, document):
                return home / wanted
            _refuse_unless_empty(home)
            _fill(_empty(home / _BEING_MADE), home, invitation, document, cohort)
            (home / _BEING_MADE).rename(home / _COMPLETE)
            _move(home)
        else:
            home.parent.mkdir(parents=True, exist_ok=True)
            beside = _empty(home.with_name(f".{home.name}{_BEING_MADE}"))
            _fill(beside, home, invitation, document, cohort)
            beside.rename(home)
        flush_folder(home.parent)
    except (OSError, JournalError, KeyFileError) as problem:
        why = f"{home}: {problem.strerror}" if isinstance(problem, OSError) else problem.local_detail
        raise ServiceStateError(
            "The site's home can't be made.",
            fix="Check that the folder above it exists and may be written, and that the disk is not full.",
            local_detail=why,
        ) from None
    return home / wanted


def _empty(folder: Path) -> Path:
    """A new private folder; what an interrupted attempt left there was never used and goes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def _refuse_unless_empty(home: Path) -> None:
    if SiteHome(home).federation_file.exists():
        raise ServiceStateError(
            "This folder is the home of a site already; nothing was changed.",
            fix="Send the request that lies in it, name another folder with --home, or move the old home away: its "
            "keys and its audit log can't be made again.",
            local_detail=str(home),
        )
    if any(entry.name != _BEING_MADE for entry in home.iterdir()):
        raise ServiceStateError(
            "The folder for the site's home is not empty; nothing was changed.",
            fix="Name a new or an empty folder with --home.",
            local_detail=str(home),
        )


def _finished(home: Path, document: object) -> bool:
    """Whether a home was complete but for the last renames, which are done now, and is that of this invitation."""
    if not (home / _COMPLETE).is_dir():
        return False
    _move(home)
    return load_document(SiteHome(home).federation_file, "invitation", EnrolmentError) == document


def _move(home: Path) -> None:
    """Bring a complete home to its place: a mounted folder can't be replaced as a whole."""
    parts = sorted((home / _COMPLETE).iterdir(), key=lambda part: part.name == SiteHome(home).federation_file.name)
    for part in parts:
        part.rename(home / part.name)
    flush_folder(home)
    (home / _COMPLETE).rmdir()
    with contextlib.suppress(PermissionError):  # of a mounted folder that belongs to somebody else; keys/ is private
        home.chmod(0o700)


def _fill(folder: Path, home: Path, invitation: Invitation, document: object, cohort: CohortChoice) -> None:
    """Everything of a new home, in a folder that will become it."""
    place = SiteHome(folder)
    values = {
        "home": str(home),
        "name": invitation.site,
        "layout": cohort.layout,
        "folder": json.dumps(str(cohort.folder)),  # a JSON string is a YAML string
        "cache": json.dumps(str(home / "cache")),
    }
    text = (_TEMPLATES / "site.yaml").read_text(encoding="utf-8")
    write_atomically(place.site_file, _FIELD.sub(lambda found: values[found[1]], text).encode())
    load_site_file(place.site_file)
    write_atomically(place.policy_file, (_TEMPLATES / "policy.yaml").read_bytes())
    write_json(place.federation_file, document)
    place.federation_file.chmod(0o600)
    place.site_key.parent.mkdir(mode=0o700)
    node_key = new_node_key(place.node_key)
    site_key = PrivateKey.create()
    site_key.save(place.site_key)
    asked = Request(
        federation=invitation.federation,
        site=invitation.site,
        token=invitation.token,
        node_key=node_key,
        site_key=site_key.public,
    )
    wanted = folder / f"{invitation.site}.request.json"
    write_json(wanted, request(asked, site_key))
    wanted.chmod(0o600)
    for made in (place.site_key.parent, folder):
        flush_folder(made)
