"""Who belongs to a federation: invitations that were sent, requests that answer them, sites admitted and removed.

These records decide; the SuperLink is told (`nodes`).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import JsonValue

from eucaim_fl.durable import flush_folder
from eucaim_fl.enrolment import Invitation, check_request, invitation_record, new_token, read_request
from eucaim_fl.enrolment import invite as sign_invitation
from eucaim_fl.errors import EnrolmentError
from eucaim_fl.federation.certificates import login_key_pem
from eucaim_fl.federation.home import AdmittedSite, FederationHome, write_private_json
from eucaim_fl.parsing import parse

__all__ = ["admit", "invite", "open_invitations", "remove", "requested"]

_DEFAULT_PATIENTS = 50_000


def invite(
    home: FederationHome, site: str, now: datetime, *, days: int = 14, patients: int = _DEFAULT_PATIENTS
) -> dict[str, JsonValue]:
    """A signed invitation for a site, to be handed over in confidence; an earlier one for it counts no more.

    days: it can be answered for so long. patients: the most training patients that the site is believed to have.
    Raises EnrolmentError if the site is admitted already or a value is impossible.
    """
    if site in home.sites():
        raise EnrolmentError(
            f"A site called '{site}' is admitted already.",
            fix=f"To replace its keys, remove it first: eucaim-fl federation remove NAME {site}",
        )
    settings, key = home.settings, home.coordinator_key
    invitation = parse(
        Invitation,
        {
            "federation": settings.name,
            "site": site,
            "address": settings.address,
            "ca_pem": home.ca_file.read_text(encoding="ascii"),
            "coordinator_key": key.public,
            "token": new_token(),
            "largest_patients": patients,
            "valid_until": (now + timedelta(days=days)).replace(microsecond=0),
        },
        "The invitation",
        EnrolmentError,
    )
    document = sign_invitation(invitation, key)
    write_private_json(home.invitations_folder / f"{site}.json", invitation_record(invitation))
    return document


def _record(home: FederationHome, site: str) -> dict[str, object]:
    path = home.invitations_folder / f"{site}.json"
    try:
        record = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise _damaged(path)
    return record


def _damaged(path: Path) -> EnrolmentError:
    return EnrolmentError(
        "The coordinator's record of the invitation is damaged.", fix="Invite again.", local_detail=str(path)
    )


def requested(home: FederationHome, document: object, now: datetime) -> AdmittedSite:
    """The site that a request asks to admit, after all that a machine can check; a person compares the fingerprint.

    Raises EnrolmentError if the request is malformed, altered, or answers no open invitation of this federation.
    """
    asked = read_request(document)
    record = _record(home, asked.site)
    reasons = check_request(asked, record, now)
    if reasons:
        raise EnrolmentError(
            f"The request is refused: {' '.join(reasons)}",
            fix="Invite the site again: eucaim-fl federation invite NAME SITE",
        )
    login_key_pem(asked.node_key)
    return AdmittedSite(
        site=asked.site,
        node_key=asked.node_key,
        site_key=asked.site_key,
        largest_patients=_whole(record.get("largest_patients")),
        admitted_at=now,
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else _DEFAULT_PATIENTS


def admit(home: FederationHome, site: AdmittedSite) -> None:
    """Write the record of a new site and mark its invitation as used. Admitting the same keys again changes nothing.

    Raises EnrolmentError if the name or one of the keys is taken, or the keys belonged to a removed site;
    ServiceStateError if another command changes the sites just now.
    """
    with home.changing_sites():
        sites = home.sites()
        earlier = sites.get(site.site)
        if earlier is not None and (earlier.site_key, earlier.node_key) == (site.site_key, site.node_key):
            return
        if earlier is not None:
            raise EnrolmentError(
                f"A site called '{site.site}' is admitted already, with other keys.",
                fix=f"To replace them: eucaim-fl federation remove NAME {site.site}, then invite and admit it again.",
            )
        login = login_key_pem(site.node_key)
        for other in (*sites.values(), *home.removed()):
            if site.site_key == other.site_key or login == login_key_pem(other.node_key):
                raise EnrolmentError(
                    f"A key of this request belongs to the site '{other.site}', or did before that was removed.",
                    fix="Each site makes its own keys, and new ones after it was removed.",
                )
        home.write_site(site)
        invited = _record(home, site.site)
        if invited:
            used = {**invited, "site_key": site.site_key, "node_key": site.node_key}
            write_private_json(home.invitations_folder / f"{site.site}.json", used)


def remove(home: FederationHome, name: str, now: datetime) -> None:
    """Remove a site from the records; they are kept with the time, so that its keys are not taken again.

    Raises EnrolmentError if no such site is admitted, ServiceStateError if another command changes the sites just now.
    """
    with home.changing_sites():
        sites = home.sites()
        if name not in sites:
            raise EnrolmentError(
                f"No site called '{name}' is admitted.", fix=f"Admitted: {', '.join(sites) or 'none'}."
            )
        kept = {**sites[name].model_dump(mode="json"), "removed_at": now.isoformat()}
        place = home.removed_folder / f"{name}-{now:%Y%m%dT%H%M%S%f}.json"
        write_private_json(place, kept)
        heads = home.heads_folder / f"{name}.jsonl"
        if heads.exists():  # a later site of this name begins a log of its own
            heads.rename(place.with_suffix(".heads.jsonl"))
        (home.sites_folder / f"{name}.json").unlink()
        flush_folder(home.sites_folder)


def open_invitations(home: FederationHome, now: datetime) -> dict[str, datetime]:
    """Sites whose invitation can still be answered, and until when. Raises EnrolmentError if a record is damaged."""
    found = {}
    for path in sorted(home.invitations_folder.glob("*.json")):
        record = _record(home, path.stem)
        try:
            until = datetime.fromisoformat(str(record["valid_until"]))
            is_open = record.get("site_key") is None and until > now
        except (KeyError, ValueError, TypeError):
            raise _damaged(path) from None
        if is_open:
            found[path.stem] = until
    return found
