"""What `federation status` says: servers, certificate, sites, invitations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from eucaim_fl.errors import LinkError
from eucaim_fl.federation.admission import open_invitations
from eucaim_fl.federation.certificates import days_left, login_key_pem, renewal_is_due
from eucaim_fl.federation.heads import read_heads
from eucaim_fl.federation.home import AdmittedSite, FederationHome
from eucaim_fl.federation.nodes import Node, control
from eucaim_fl.federation.servers import proxy_answers, superlink_answers
from eucaim_fl.federation.supervisor import running
from eucaim_fl.signing import certificate_facts, fingerprint

__all__ = ["Overview", "SiteState", "overview", "site_state"]


@dataclass(frozen=True)
class SiteState:
    """An admitted site. connected: None if the SuperLink was not asked. since: when it connected, or was last seen.

    state: as the SuperLink says (registered: never connected yet), or `unknown`. heads, last_head_at: of its audit log.
    """

    site: str
    admitted_at: str
    largest_patients: int | None
    fingerprint: str
    connected: bool | None
    state: str
    since: str | None
    heads: int = 0
    last_head_at: str | None = None


@dataclass(frozen=True)
class Overview:
    """The whole state of a federation at one moment; times are ISO text in UTC."""

    name: str
    address: str
    running: bool
    since: str | None
    restarts: int
    superlink_answers: bool
    proxy_answers: bool
    certificate_ends: str
    certificate_days_left: int
    renewal_is_due: bool
    coordinator_fingerprint: str
    sites: tuple[SiteState, ...]
    invitations: dict[str, str]

    @property
    def good(self) -> bool:
        """Whether sites can work: both servers answer, and the certificate has not ended."""
        return self.running and self.superlink_answers and self.proxy_answers and self.certificate_days_left >= 0


def site_state(site: AdmittedSite, nodes: Sequence[Node] | None, heads: Sequence[dict[str, object]]) -> SiteState:
    """One site, from its record, the SuperLink's list (None: it was not asked) and the heads of its audit log."""
    key = login_key_pem(site.node_key)
    node = next((node for node in nodes or () if node.public_key == key), None)
    seen = node.since if node is not None and node.state in ("online", "offline") else None
    return SiteState(
        site=site.site,
        admitted_at=site.admitted_at.isoformat(),
        largest_patients=site.largest_patients,
        fingerprint=fingerprint(site.site_key),
        connected=None if nodes is None else node is not None and node.state == "online",
        state="unknown" if nodes is None else "not known to the SuperLink" if node is None else node.state,
        since=seen.isoformat(timespec="seconds") if seen else None,
        heads=len(heads),
        last_head_at=str(heads[-1].get("at")) if heads else None,
    )


def overview(home: FederationHome, now: datetime) -> Overview:
    """Ask everything that is worth knowing.

    Raises ServiceStateError if the home is damaged, EnrolmentError if the record of an invitation is.
    """
    settings = home.settings
    runs = running(home)
    answers = superlink_answers(home)
    nodes: Sequence[Node] | None = None
    if answers:
        try:
            with control(home) as server:
                nodes = server.nodes()
        except LinkError:
            answers = False
    sites = (site_state(site, nodes, read_heads(home.heads_folder, name)) for name, site in home.sites().items())
    end = certificate_facts(home.server_file.read_bytes()).not_after
    return Overview(
        name=settings.name,
        address=settings.address,
        running=runs is not None,
        since=runs.since if runs else None,
        restarts=runs.restarts if runs else 0,
        superlink_answers=answers,
        proxy_answers=proxy_answers(home),
        certificate_ends=end.isoformat(),
        certificate_days_left=days_left(end, now),
        renewal_is_due=renewal_is_due(end, now),
        coordinator_fingerprint=fingerprint(home.coordinator_key.public),
        sites=tuple(sites),
        invitations={site: until.isoformat() for site, until in open_invitations(home, now).items()},
    )
