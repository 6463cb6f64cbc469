"""A hospital's own folder: what its IT writes, the keys that never leave, what the client remembers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.errors import ServiceStateError

__all__ = ["HOME_VARIABLE", "SiteHome"]

HOME_VARIABLE = "EUCAIM_FL_SITE_HOME"
"""Names the site's home where no option does."""


@dataclass(frozen=True)
class SiteHome:
    """Where everything of a site's client lies. `state` must survive restarts: it holds the audit log."""

    folder: Path

    @property
    def site_file(self) -> Path:
        """The cohort and how it may be read; written by the hospital."""
        return self.folder / "site.yaml"

    @property
    def policy_file(self) -> Path:
        """The hospital's contract; written by the hospital."""
        return self.folder / "policy.yaml"

    @property
    def federation_file(self) -> Path:
        """The invitation as the coordinator signed it: addresses, certificate authority, identity."""
        return self.folder / "federation.json"

    @property
    def node_key(self) -> Path:
        """Private key (ECDSA P-384) with which the client logs in at the coordinator."""
        return self.folder / "keys" / "node_key.pem"

    @property
    def site_key(self) -> Path:
        """Private key (Ed25519) that signs replies and the audit log."""
        return self.folder / "keys" / "site_key.pem"

    @property
    def audit_folder(self) -> Path:
        """The audit log."""
        return self.folder / "state" / "audit"

    @property
    def plans_folder(self) -> Path:
        """Plans that were asked for: `<sha256>.json`, in canonical form."""
        return self.folder / "state" / "plans"

    @property
    def status_file(self) -> Path:
        """What the running client last said of itself."""
        return self.folder / "state" / "status.json"

    @property
    def run_folder(self) -> Path:
        """Held (locked) by the running client; `pid` in it is its process."""
        return self.folder / "state" / "running"

    @property
    def log_file(self) -> Path:
        """The worker's own log, with local details."""
        return self.folder / "state" / "worker.log"

    def require(self) -> SiteHome:
        """This home, if `site init` made it. Raises ServiceStateError if it is not set up."""
        for path in (self.site_file, self.policy_file, self.federation_file, self.node_key, self.site_key):
            _require(path)
        return self

    def require_site_file(self) -> SiteHome:
        """This home, if it has a site file; for commands that need no keys. Raises ServiceStateError if it has none."""
        _require(self.site_file)
        return self


def _require(path: Path) -> None:
    if not path.is_file():
        raise ServiceStateError(
            "This is not the home of a site: a file is missing.",
            fix="Run `eucaim-fl site init --invite FILE --home FOLDER`, or name another folder with --home.",
            local_detail=str(path),
        )
