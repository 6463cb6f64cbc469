"""Which sites the SuperLink lets in: the admitted ones, by their login keys, and nobody else.

The records in the home decide; the SuperLink's own list is brought into line with them at each start and each change.
Its control interface knows no login and answers on loopback only.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx

from eucaim_fl.errors import LinkError
from eucaim_fl.federation.certificates import login_key_pem
from eucaim_fl.federation.flower_private import (
    ControlHttpClient,
    ListNodesRequest,
    RegisterNodeRequest,
    UnregisterNodeRequest,
)
from eucaim_fl.federation.home import AdmittedSite, FederationHome

__all__ = ["Changes", "Control", "Node", "changes", "control", "node_ids", "synchronise", "tell"]

_UNREGISTERED = "unregistered"
_CALL_S = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A site as the SuperLink knows it. since: when its state (registered, online, offline, unregistered) began."""

    node_id: int
    public_key: bytes
    state: str
    since: datetime | None


@dataclass(frozen=True)
class Changes:
    """What brings the SuperLink into line with the records: sites to let in, numbers to shut out.

    impossible: sites whose key was shut out before; the SuperLink takes no key twice.
    """

    register: tuple[str, ...] = ()
    unregister: tuple[int, ...] = ()
    impossible: tuple[str, ...] = ()


class Control:
    """The SuperLink's control interface, as far as sites are concerned. All methods raise LinkError if it fails."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def nodes(self) -> tuple[Node, ...]:
        """All sites it knows, those that were shut out included. Raises LinkError if it does not answer."""
        return tuple(
            Node(int(info.node_id), bytes(info.public_key), str(info.status), _since(info))
            for info in _told(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        )

    def register(self, public_key: bytes, name: str) -> int:
        """Let a login key (PEM) in; returns its number. Raises LinkError if it does not answer or knows the key."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(_told(lambda: self._client.RegisterNode(request)).node_id)

    def unregister(self, node_id: int) -> None:
        """Shut a site out; its next call is refused. Raises LinkError if it does not answer."""
        _told(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id)))


def _since(info: Any) -> datetime | None:
    text = {
        "online": info.last_activated_at,
        "offline": info.last_deactivated_at,
        _UNREGISTERED: info.unregistered_at,
    }.get(str(info.status), info.registered_at)
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _told(call: Callable[[], T]) -> T:
    try:
        return call()
    except httpx.HTTPStatusError as problem:
        raise LinkError(
            f"The SuperLink refused a call ({problem.response.status_code}).", local_detail=problem.response.text[:500]
        ) from None
    except (httpx.HTTPError, OSError, ValueError) as problem:
        raise LinkError(
            "The SuperLink does not answer.",
            fix="Start the federation with `eucaim-fl federation start NAME`.",
            local_detail=f"{type(problem).__name__}: {problem}",
        ) from None


@contextmanager
def control(home: FederationHome) -> Iterator[Control]:
    """The control interface of the running SuperLink.

    Raises LinkError if the federation's certificate can't be read; the calls raise it if nobody answers.
    """
    try:
        tls = ssl.create_default_context(cafile=str(home.ca_file))
    except (OSError, ssl.SSLError) as problem:
        raise LinkError(
            "The federation's certificate can't be read.", local_detail=f"{home.ca_file}: {problem}"
        ) from None
    client = ControlHttpClient(f"https://{home.runtime_address}", verify=tls, timeout=_CALL_S)
    client._client.close()  # loopback is never reached through the HTTP proxy that the environment may name
    client._client = httpx.Client(verify=tls, timeout=_CALL_S, trust_env=False)
    try:
        yield Control(client)
    finally:
        client.close()


def changes(sites: Mapping[str, AdmittedSite], nodes: Sequence[Node]) -> Changes:
    """What has to be told the SuperLink so that it lets in the admitted sites and nobody else."""
    keys = {login_key_pem(site.node_key): name for name, site in sites.items()}
    inside = {node.public_key for node in nodes if node.state != _UNREGISTERED}
    outside = {node.public_key for node in nodes} - inside
    return Changes(
        register=tuple(sorted(name for key, name in keys.items() if key not in inside | outside)),
        unregister=tuple(n.node_id for n in nodes if n.public_key in inside and n.public_key not in keys),
        impossible=tuple(sorted(name for key, name in keys.items() if key in outside)),
    )


def node_ids(home: FederationHome) -> Mapping[str, int]:
    """Flower's number of each admitted site that the SuperLink lets in, by name.

    Raises LinkError if the SuperLink does not answer.
    """
    with control(home) as server:
        known = {node.public_key: node.node_id for node in server.nodes() if node.state != _UNREGISTERED}
    found = {name: known.get(login_key_pem(site.node_key)) for name, site in home.sites().items()}
    return {name: number for name, number in found.items() if number is not None}


def synchronise(home: FederationHome) -> Changes:
    """Bring the SuperLink into line with the records, and write each site's number into its record.

    Returns what was changed. Raises LinkError if the SuperLink does not answer, ServiceStateError if another command
    changes the sites just now.
    """
    with home.changing_sites(), control(home) as server:
        sites = home.sites()
        todo = changes(sites, server.nodes())
        for number in todo.unregister:
            server.unregister(number)
        for name in todo.register:
            server.register(login_key_pem(sites[name].node_key), name)
        known = {node.public_key: node.node_id for node in server.nodes() if node.state != _UNREGISTERED}
        for site in sites.values():
            node_id = known.get(login_key_pem(site.node_key))
            if node_id != site.node_id:
                home.write_site(site.model_copy(update={"node_id": node_id}))
    return todo


def tell(home: FederationHome) -> Changes | None:
    """What `synchronise` does, or None if the SuperLink does not answer: it learns of changes when it starts."""
    try:
        return synchronise(home)
    except LinkError:
        return None
