"""Where a site's ledger lies, which budgets and delta hold there, and what else is known of a plan. It only reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import ConfigError, EucaimError, JournalError, KeyFileError, LedgerError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit_reader import AuditReader
from eucaim_fl.site.audit_words import Asker, Line, line_of
from eucaim_fl.site.gate import default_bounds
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.ledger_base import LEDGER, LedgerHead
from eucaim_fl.site.ledger_page import Page
from eucaim_fl.site.ledger_reader import has_ledger, verify_ledger
from eucaim_fl.site.ledger_state import State, read_state
from eucaim_fl.site.ledger_sums import (
    Spending,
    ceilings_of,
    cohort_spending,
    patients_at_limit,
    patients_of,
    purpose_spending,
)
from eucaim_fl.site.ledger_words import budget_rows, spending_json
from eucaim_fl.site.policy import Policy, PrivacyPolicy, load_policy
from eucaim_fl.sitefile import SiteFile, load_site_file

__all__ = [
    "LedgerPlace",
    "audit_heads",
    "exposure_of",
    "ledger_faults",
    "locate_ledger",
    "page_of",
    "privacy_status",
    "sent_lines",
    "whole_plan",
]

_LARGEST_RESULT_BYTES = 16 * 1024 * 1024
_LONGEST_CACHE = 64 * 1024
_SCHEMA = 1


@dataclass(frozen=True)
class LedgerPlace:
    """A site's ledger and what is beside it. policy: None without one. home: None of a site file alone."""

    site: SiteFile
    policy: Policy | None
    home: SiteHome | None

    @property
    def folder(self) -> Path:
        """Where the ledger lies."""
        return self.site.records_folder() / "ledger"

    @property
    def privacy(self) -> PrivacyPolicy | None:
        """What the policy says of privacy; None without one."""
        return None if self.policy is None else self.policy.privacy

    @property
    def at_least(self) -> int:
        """Patients without whom the site does not train: the stricter of site file and policy."""
        asked = None if self.policy is None else self.policy.patients.training
        return max(self.site.release.minimum_patients, asked or 0)

    @property
    def count_base(self) -> int:
        """Counts of patients are told as multiples of it; 1 tells them exactly."""
        return default_bounds(self.site.release).base

    @property
    def reserved_days(self) -> int:
        """Days after which a plan that is not heard of loses what it has reserved."""
        return (self.privacy or PrivacyPolicy()).reserved_days

    def delta(self, chosen: float | None, plan_delta: float | None = None) -> float:
        """The delta at which figures are told: chosen, else the policy's, else a plan's own.

        Raises ConfigError if there is none, or it is not between 0 and 1.
        """
        stated = None if self.policy is None else self.policy.privacy.delta
        found = chosen if chosen is not None else stated if stated is not None else plan_delta
        if found is None:
            raise ConfigError(
                "There is no delta at which epsilon could be told: the policy sets none (privacy.delta), and the "
                "ledger does not keep that of a plan.",
                fix="Name one with --delta, such as --delta 1e-5.",
            )
        if not 0 < found < 1:
            raise ConfigError("A delta lies between 0 and 1.", fix="Give one such as --delta 1e-5.")
        return found


def locate_ledger(home: Path | None, site_file: Path | None) -> LedgerPlace:
    """The ledger of a home, or of a site file without one.

    Raises ConfigError if neither or both are named; ServiceStateError if the folder is no home; SiteFileError or
    PolicyError if one can't be used.
    """
    if (home is None) == (site_file is None):
        raise ConfigError(
            "Name the site's home or a site file.", fix="Give --home FOLDER, or --site FILE for a site without a home."
        )
    place = None if home is None else SiteHome(home)
    path = place.require_site_file().site_file if place is not None else Path(site_file or "")
    site = load_site_file(path)
    policy_file = site.policy_path(path)
    return LedgerPlace(site, None if policy_file is None else load_policy(policy_file).policy, place)


def whole_plan(state: State, start: str) -> str:
    """The SHA-256 of the one plan in a ledger that starts so.

    Raises ConfigError if there is none, or several.
    """
    found = sorted({entry.what.plan for entry in state.entries if entry.what.plan.startswith(start)})
    if len(found) != 1:
        raise ConfigError(
            "The ledger knows no such plan." if not found else "Several plans in the ledger start so.",
            fix="`site ledger show` lists them." if not found else "Give more characters of its SHA-256.",
        )
    return found[0]


def audit_heads(audit: AuditReader) -> tuple[LedgerHead, ...]:
    """The heads of the ledger that the audit log has of what was sent, each once; after one was lost, of the new one.

    Raises AuditError if the log can't be read.
    """
    found: dict[LedgerHead, None] = {}
    begun = 0
    for record in audit.records(kind="ledger_replaced", last=1):
        begun, count, digest = record.seq, record.body.get("ledger_count"), record.body.get("ledger")
        if isinstance(count, int) and isinstance(digest, str):
            found[LedgerHead(count, digest)] = None
    for record in audit.records(kind="sent"):
        left = line_of(record, Asker()).left if record.seq > begun else None
        if left is not None and left.ledger_count is not None and left.ledger is not None:
            found[LedgerHead(left.ledger_count, left.ledger)] = None
    return tuple(found)


def ledger_faults(place: LedgerPlace, heads: Sequence[LedgerHead]) -> tuple[str, ...]:
    """What is wrong with a site's ledger, in plain words; () if it is intact, or none was begun and no head names one.

    heads: those that the audit log has.
    Raises LedgerError if the ledger can't be looked at.
    """
    if not has_ledger(place.folder):
        return (f"There is no ledger, but {len(heads)} answers that left name one.",) if heads else ()
    key = place.folder / "ledger.key"
    try:
        public = PrivateKey.load(key).public if key.exists() else None
    except KeyFileError as problem:
        return (f"The ledger's key can't be used: {problem.message}",)
    missing = () if public is not None else ("The ledger's key is missing.",)
    return (*missing, *verify_ledger(place.folder, public, heads))


def page_of(place: LedgerPlace, plan: FederationPlan, delta: float | None) -> Page:
    """All that the page on one run tells.

    delta: None takes the policy's, else the plan's own.
    Raises ConfigError without a delta, LedgerError or AuditError if ledger or audit log can't be read.
    """
    identity = plan.sha256()
    state, ceilings = read_state(place.folder), ceilings_of(place.privacy)
    at = place.delta(delta, plan.privacy.delta)
    patients = patients_of(state, ceilings.patient, at)
    cohorts = {k: v for k, v in cohort_spending(state, ceilings.dataset, at).items() if v.budget is not None}
    purposes = purpose_spending(state, ceilings.purposes, at)
    mine: dict[str, Spending] = {k: v for k, v in purposes.items() if k == plan.purpose and v.budget is not None}
    option = f"--home {place.home.folder.absolute()}" if place.home is not None else "--site SITE_FILE"
    commands = [f"eucaim-fl site ledger verify {option}"]
    if place.home is not None:
        commands += [
            f"eucaim-fl site audit verify {option}",
            f"eucaim-fl site audit show {option} --plan {identity[:16]}",
        ]
    return Page(
        site=place.site.name,
        title=place.site.title,
        plan=plan,
        delta=at,
        charges=tuple(charge for charge in state.charges if charge.what.plan == identity),
        reserved=sum(one.mechanism.steps for one in state.held if one.what.plan == identity),
        limit=None if ceilings.plan is None else ceilings.plan.epsilon,
        budgets=tuple(budget_rows(cohorts, mine, patients)),
        at_limit=patients.at_limit,
        sent=sent_lines(place, identity),
        home=place.home is not None,
        exposure=exposure_of(place, identity),
        faults=ledger_faults(place, _known_heads(place)),
        head_count=state.head.count,
        head_hash=state.head.hash,
        commands=tuple(commands),
    )


def _known_heads(place: LedgerPlace) -> tuple[LedgerHead, ...]:
    if place.home is None or not place.home.audit_folder.is_dir():
        return ()
    return audit_heads(AuditReader(place.home.audit_folder))


def sent_lines(place: LedgerPlace, plan: str) -> tuple[Line, ...] | None:
    """What left for a plan, from the audit log; None without a log. Raises AuditError if it can't be read."""
    if place.home is None or not place.home.audit_folder.is_dir():
        return None
    audit = AuditReader(place.home.audit_folder)
    return tuple(line_of(record, Asker()) for record in audit.records(plan=plan, kind="sent"))


def exposure_of(place: LedgerPlace, plan: str) -> Mapping[str, Any] | None:
    """What attacks on a plan's run found here, if they were tried; None if there is no result, or it is no such."""
    try:
        with (place.site.records_folder() / "exposure" / f"{plan}.json").open("rb") as stream:
            value = json.loads(stream.read(_LARGEST_RESULT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    stated = value.get("plan")
    return None if isinstance(stated, str) and stated != plan else value


def privacy_status(home: SiteHome) -> dict[str, Any]:
    """What `site status` says of the privacy budget; a ledger that can't be read is a `problem`, not an error.

    The sums, for which the whole ledger is read and the accountant loaded, are kept in the home's state and made anew
    when a file of the ledger or the policy has changed.
    """
    found: dict[str, Any] = {
        "problem": None,
        "budget_is_set": False,
        "delta": None,
        "charges": 0,
        "datasets": [],
        "patients": {"known": 0, "at_limit": None, "limit": None},
    }
    try:
        place = locate_ledger(home.folder, None)
        privacy = place.privacy
        if privacy is not None:
            over_all = (privacy.patient_epsilon, privacy.dataset_epsilon, privacy.purpose_epsilon or None)
            found |= {"delta": privacy.delta, "budget_is_set": any(one is not None for one in over_all)}
        if not has_ledger(place.folder):
            return found
        kept, key = home.folder / "state" / "privacy_budget.json", _key(place)
        known = _kept(kept, key)
        if known is None:
            known = _summed(read_state(place.folder), place)
            with contextlib.suppress(JournalError):  # who may only read the home gets the same answer, later
                write_atomically(kept, json.dumps({"of": key, "found": known}).encode(), survive_power_loss=False)
    except LedgerError as problem:
        return found | {"problem": f"the privacy ledger is damaged. {problem.message} {problem.fix}".strip()}
    except EucaimError as problem:
        return found | {"problem": problem.message}
    return found | known


def _key(place: LedgerPlace) -> str:
    """What the kept sums are of: the ledger's files as they lie there, and the policy's budgets."""
    files = []
    for name in (LEDGER.file, f"{LEDGER.file}-wal", "head.json"):
        with contextlib.suppress(OSError):
            stat = (place.folder / name).stat()
            files += [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino]] if stat.st_size else []
    privacy = None if place.privacy is None else place.privacy.model_dump(mode="json")
    return hashlib.sha256(json.dumps([_SCHEMA, files, privacy], sort_keys=True).encode()).hexdigest()


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(_LONGEST_CACHE))
        found = value["found"] if value["of"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == {"charges", "datasets", "patients"} else None


def _summed(state: State, place: LedgerPlace) -> dict[str, Any]:
    """What was spent, where the policy names a delta to tell it at."""
    ceilings = ceilings_of(place.privacy)
    delta, budget = None if place.privacy is None else place.privacy.delta, ceilings.patient
    spent = {} if delta is None else cohort_spending(state, ceilings.dataset, delta)
    return {
        "charges": len(state.charges),
        "datasets": [{"dataset": name, **spending_json(spending)} for name, spending in spent.items()],
        "patients": {
            "known": state.patients,
            "at_limit": None if budget is None else patients_at_limit(state, budget),
            "limit": None if budget is None else budget.epsilon,
        },
    }
