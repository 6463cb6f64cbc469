"""The coordinator's folder of one federation: its authority, keys, admitted sites, and what its servers keep.

`federations/NAME` under the working folder, or under the folder that EUCAIM_FL_FEDERATIONS names. All of it is readable
by its owner alone; `ca/` and `secrets/` never leave the machine.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AwareDatetime, Field, PositiveInt, model_validator

from eucaim_fl.durable import exclusive, flush_folder, write_atomically, write_json
from eucaim_fl.errors import ConfigError, JournalError, RunFolderBusyError, ServiceStateError
from eucaim_fl.federation.certificates import AUTHORITY_DAYS, create_authority, issue_server
from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.registry import suggestion
from eucaim_fl.signing import PUBLIC_KEY, PrivateKey, write_private

__all__ = [
    "FEDERATIONS_VARIABLE",
    "AdmittedSite",
    "FederationHome",
    "Settings",
    "create",
    "federations_folder",
    "find_home",
    "held",
    "known_homes",
    "parse_file",
    "write_private_json",
    "write_server_certificate",
]

FEDERATIONS_VARIABLE = "EUCAIM_FL_FEDERATIONS"
"""Names the folder of all federations where it is not ./federations."""
_RESERVED = ("local", "ray")
_HOST = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?)*$"
_LISTEN = r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:]{2,39}\]):\d{1,5}$"
_LARGEST_FILE = 2**20
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=SITE_NAME)]
C = TypeVar("C", bound=Config)


class Settings(Config):
    """federation.json: what a federation is called and where it is reached. It holds no secrets.

    host, port: what sites connect to. listen: where the proxy listens on this machine, as `address:port`.
    superlink_port: on loopback, for the proxy and for runs on this machine.
    """

    version: Literal[1] = 1
    name: Name
    host: Annotated[str, Field(pattern=_HOST, max_length=253)]
    port: Port
    listen: Annotated[str, Field(pattern=_LISTEN)] = "0.0.0.0:8443"
    superlink_port: Port = 9091
    made_at: AwareDatetime

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name in _RESERVED:
            raise ValueError("a federation can't be called local or ray: these are engines")
        if not 1 <= self.listen_port <= 65535:
            raise ValueError("listen: a port lies between 1 and 65535")
        if self.listen_port == self.superlink_port:
            raise ValueError("proxy and SuperLink need two different ports")
        return self

    @property
    def listen_port(self) -> int:
        """The proxy's port on this machine."""
        return int(self.listen.rpartition(":")[2])

    @property
    def address(self) -> str:
        """What sites connect to, as `host:port`."""
        return f"{self.host}:{self.port}"


class AdmittedSite(Config):
    """A site whose keys the coordinator accepted.

    node_key: OpenSSH text, with which its client logs in. site_key: signs its replies. largest_patients: what it may
    declare at most; None sets no limit. node_id: Flower's number for it, once the SuperLink knows it.
    """

    site: Name
    node_key: Annotated[str, Field(max_length=1024)]
    site_key: Annotated[str, Field(pattern=PUBLIC_KEY)]
    largest_patients: PositiveInt | None = None
    admitted_at: AwareDatetime
    node_id: Annotated[int, Field(ge=1, lt=2**64)] | None = None


@dataclass(frozen=True)
class FederationHome:
    """Where everything of a federation lies at the coordinator."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).absolute())  # the servers work in another folder

    @property
    def settings(self) -> Settings:
        """federation.json; a ServiceStateError if it is missing or damaged."""
        return parse_file(Settings, self.folder / "federation.json")

    @property
    def name(self) -> str:
        """What the federation is called."""
        return self.settings.name

    @property
    def runtime_address(self) -> str:
        """Where the SuperLink answers on this machine, as `127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.settings.superlink_port}"

    @property
    def ca_key(self) -> Path:
        """The authority's private key; used by init and renew only."""
        return self.folder / "ca" / "key.pem"

    @property
    def ca_file(self) -> Path:
        """The authority's certificate, which sites get with their invitation."""
        return self.folder / "ca" / "certificate.pem"

    @property
    def server_file(self) -> Path:
        """The proxy's private key and certificate in one file, so that both change at once."""
        return self.folder / "server" / "proxy.pem"

    @property
    def superlink_file(self) -> Path:
        """The SuperLink's private key and certificate; valid on loopback only."""
        return self.folder / "server" / "superlink.pem"

    @property
    def executor_secret_file(self) -> Path:
        """What a run shows the SuperLink to be given its task."""
        return self.folder / "secrets" / "executor"

    @property
    def executor_secret(self) -> bytes:
        """The executor's secret; a ServiceStateError if its file can't be read."""
        try:
            return self.executor_secret_file.read_bytes()
        except OSError as problem:
            raise ServiceStateError(
                "The federation's executor secret can't be read.",
                fix="Run as the user who made the federation.",
                local_detail=f"{self.executor_secret_file}: {problem.strerror}",
            ) from None

    @property
    def coordinator_key(self) -> PrivateKey:
        """The key that signs invitations and instructions; a KeyFileError if it can't be used."""
        return PrivateKey.load(self.folder / "secrets" / "coordinator_key.pem")

    @property
    def sites_folder(self) -> Path:
        """Admitted sites, one file each."""
        return self.folder / "sites"

    @property
    def removed_folder(self) -> Path:
        """Sites that were admitted once."""
        return self.folder / "removed"

    @property
    def invitations_folder(self) -> Path:
        """Invitations as they were signed."""
        return self.folder / "invitations"

    @property
    def heads_folder(self) -> Path:
        """Signed heads of sites' audit logs: `NAME.jsonl`."""
        return self.folder / "heads"

    @property
    def state_folder(self) -> Path:
        """What the servers keep: database, logs, process numbers. Held (locked) while they run."""
        return self.folder / "state"

    def sites(self) -> Mapping[str, AdmittedSite]:
        """Admitted sites in the order of their names. Raises ServiceStateError if a record is damaged."""
        return {path.stem: parse_file(AdmittedSite, path) for path in sorted(self.sites_folder.glob("*.json"))}

    def write_site(self, site: AdmittedSite) -> None:
        """Write the record of an admitted site. Raises JournalError if it can't be written."""
        write_private_json(self.sites_folder / f"{site.site}.json", site.model_dump(mode="json"))

    @contextmanager
    def changing_sites(self) -> Iterator[None]:
        """Hold the records of sites. Raises ServiceStateError if another command changes them just now."""
        with held(self.sites_folder, "Another command changes the sites of this federation just now; try again."):
            yield

    def removed(self) -> tuple[AdmittedSite, ...]:
        """Sites that were admitted once and removed; their keys are not taken again."""
        paths = sorted(self.removed_folder.glob("*.json"))
        return tuple(parse_file(AdmittedSite, path, ignore=("removed_at",)) for path in paths)


def parse_file(model: type[C], path: Path, ignore: tuple[str, ...] = ()) -> C:
    """A record of the home, checked. Raises ServiceStateError if it is missing or damaged."""
    try:
        raw = path.read_bytes()
        values = json.loads(raw) if len(raw) <= _LARGEST_FILE else None
    except OSError as problem:
        raise ServiceStateError(
            "A file of the federation is missing.",
            fix="Make the federation with `eucaim-fl federation init NAME --host HOST`.",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ServiceStateError("A file of the federation is damaged.", local_detail=str(path))
    try:
        return parse(model, {k: v for k, v in values.items() if k not in ignore}, "A file of the federation")
    except ConfigError as problem:
        raise ServiceStateError("A file of the federation is damaged.", local_detail=f"{path}: {problem}") from None


def write_private_json(path: Path, value: Any) -> None:
    """Write JSON atomically into the home, for its owner alone. Raises JournalError if it can't be written."""
    write_json(path, value)
    path.chmod(0o600)


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder of the home for this process. Raises ServiceStateError saying `busy` if another one holds it."""
    try:
        with exclusive(folder):
            yield
    except RunFolderBusyError:
        raise ServiceStateError(busy, local_detail=str(folder)) from None


def federations_folder() -> Path:
    """Where this machine's federations lie: EUCAIM_FL_FEDERATIONS, default `./federations`."""
    return Path(os.environ.get(FEDERATIONS_VARIABLE) or "federations").absolute()


def known_homes() -> dict[str, FederationHome]:
    """This machine's federations by name."""
    folder = federations_folder()
    return {
        path.parent.name: FederationHome(path.parent)
        for path in sorted(folder.glob("*/federation.json"))
        if re.fullmatch(SITE_NAME, path.parent.name) and path.parent.name not in _RESERVED
    }


def find_home(name: str) -> FederationHome:
    """The home of a federation.

    Raises ServiceStateError that names the nearest known one if there is none, or says that it is another user's.
    """
    if re.fullmatch(SITE_NAME, name) and not _may_enter(federations_folder() / name):
        raise ServiceStateError(
            f"The folder of the federation '{name}' can't be read: it belongs to another user.",
            fix="Run this as the user who made it.",
            local_detail=str(federations_folder() / name),
        )
    known = known_homes()
    if name not in known:
        raise ServiceStateError(
            f"There is no federation called '{name}' on this machine.",
            fix=suggestion(name, known) or f"Make it: eucaim-fl federation init {name} --host HOST",
            local_detail=str(federations_folder()),
        )
    return known[name]


def _may_enter(folder: Path) -> bool:
    """Whether this user may look into a folder; also true if there is none."""
    try:
        return not folder.exists() or os.access(folder, os.R_OK | os.X_OK)
    except PermissionError:  # already the folder above is closed
        return False


def create(settings: Settings, now: datetime) -> FederationHome:
    """Make a federation's home with new keys, whole or not at all.

    Raises ServiceStateError if it exists already, JournalError if it can't be written.
    """
    target = federations_folder() / settings.name
    if target.exists() or target.is_symlink():
        raise ServiceStateError(
            f"The federation '{settings.name}' exists already; nothing was changed.",
            fix="Its keys are never replaced: choose another name, or move the folder away.",
            local_detail=str(target),
        )
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{settings.name}."))
        _fill(FederationHome(temporary), settings, now)
        temporary.rename(target)
        temporary = None
        flush_folder(target.parent)
    except OSError as problem:
        raise JournalError(
            "The federation's folder can't be made.",
            fix="Look at the disk's space and the folder's permissions.",
            local_detail=f"{target}: {problem.strerror}",
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return FederationHome(target)


def _fill(home: FederationHome, settings: Settings, now: datetime) -> None:
    for name in ("ca", "server", "secrets", "sites", "removed", "invitations", "heads", "state", "proxy"):
        (home.folder / name).mkdir(mode=0o700)
    key, certificate = authority = create_authority(settings.name, now)
    write_private(home.ca_key, key)
    write_private(home.ca_file, certificate)
    write_server_certificate(home, settings, now)
    inside = issue_server(authority, ("localhost", "127.0.0.1"), now, AUTHORITY_DAYS)
    write_private(home.superlink_file, b"".join(inside))
    write_private(home.executor_secret_file, secrets.token_hex(32).encode())
    PrivateKey.create().save(home.folder / "secrets" / "coordinator_key.pem")
    write_private_json(home.folder / "federation.json", settings.model_dump(mode="json"))


def write_server_certificate(home: FederationHome, settings: Settings, now: datetime) -> None:
    """Write a new key and certificate for the proxy; the old ones go at the same moment.

    Raises KeyFileError if the authority's files can't be read.
    """
    try:
        authority = (home.ca_key.read_bytes(), home.ca_file.read_bytes())
    except OSError:
        authority = (b"", b"")
    pair = issue_server(authority, (settings.host, "localhost", "127.0.0.1"), now)
    write_atomically(home.server_file, b"".join(pair))
    home.server_file.chmod(0o600)
