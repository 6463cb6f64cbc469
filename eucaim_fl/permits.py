"""Data permits: what an access body allows whom to do with which data, signed so that a hospital checks it offline.

In the spirit of the EHDS regulation (EU 2025/327): Art. 68 has access bodies issue data permits, which say who may use
which data for what, and for how long; Art. 73 has the data stay in a secure environment, which here is the hospital.
The holder signs every plan, so that a permit that was seen elsewhere is of no use to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue, model_validator

from eucaim_fl.config import SITE_NAME, Config, Purpose, parse
from eucaim_fl.errors import PermitError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.signing import (
    PUBLIC_KEY,
    PrivateKey,
    canonical_json,
    fingerprint,
    open_document,
    sign_document,
    verify,
)

__all__ = [
    "DATASET_NAME",
    "PERMIT_ID",
    "Permit",
    "PermitUse",
    "SignedPermit",
    "dataset_problems",
    "describe",
    "inspect_permit",
    "issue",
    "problems",
    "read_permit",
    "scope_problems",
    "sign_plan",
    "standing_problems",
    "stated_names",
]

PERMIT_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a permit is called."""
DATASET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
"""What a catalogue calls a dataset: a short name, a UUID, a DOI, an IRI."""
_LONGEST_VALIDITY = timedelta(days=3653)  # ten years, three of them leap years
_Name = Annotated[str, Field(pattern=SITE_NAME)]
_Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC)),
    AfterValidator(lambda moment: moment.astimezone(UTC)),
]


class Permit(Config):
    """What is allowed, to whom, and from when to when.

    id: as the issuer counts its permits. issuer: the access body. holder, holder_key: who may ask, and the public key
    that has to sign each plan. purposes: of Art. 53(1). datasets: as the catalogue calls them. tasks, networks: names
    of plans' tasks and networks; None allows all, also frozen models that bring a network of their own. rounds: largest
    number of a plan's rounds; None sets no limit. privacy_required: whether a plan must name a privacy mechanism.
    plans: largest number of different plans at one site. It is valid from valid_from on and before valid_until, ten
    years at most.
    """

    id: Annotated[str, Field(pattern=PERMIT_ID)]
    issuer: _Name
    holder: _Name
    holder_key: Annotated[str, Field(pattern=PUBLIC_KEY)]
    purposes: tuple[Purpose, ...] = Field(min_length=1, max_length=6)
    datasets: tuple[Annotated[str, Field(pattern=DATASET_NAME)], ...] = Field(min_length=1, max_length=1000)
    tasks: tuple[_Name, ...] | None = Field(default=None, min_length=1, max_length=1000)
    networks: tuple[_Name, ...] | None = Field(default=None, min_length=1, max_length=1000)
    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    privacy_required: bool = False
    plans: Annotated[int, Field(ge=1, le=10_000)] = 1
    valid_from: _Moment
    valid_until: _Moment

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.valid_from >= self.valid_until:
            raise ValueError("valid_until must be after valid_from")
        if self.valid_until - self.valid_from > _LONGEST_VALIDITY:
            raise ValueError("a permit may be valid for ten years at most")
        for name in ("purposes", "datasets", "tasks", "networks"):
            values = getattr(self, name) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must differ from each other")
        return self


@dataclass(frozen=True)
class PermitUse:
    """What a site knows when it is asked.

    bodies: the access bodies that it trusts, name → public key. datasets: what its cohort stands for. earlier_plans:
    SHA-256 of the plans that used this permit's id here before. now: with a time zone.
    """

    bodies: Mapping[str, str]
    datasets: tuple[str, ...]
    earlier_plans: frozenset[str]
    now: datetime


@dataclass(frozen=True)
class SignedPermit:
    """A permit, the public key that it bears, and whether the signature fits. If not, nothing in it is true."""

    permit: Permit
    key: str
    fits: bool


def issue(permit: Permit, key: PrivateKey) -> dict[str, JsonValue]:
    """The permit as a signed document, for JSON.

    Raises PermitError if it is longer than a site would read.
    """
    document = sign_document("permit", permit.model_dump(mode="json"), key)
    open_document("permit", document, PermitError)
    return document


def inspect_permit(document: object) -> SignedPermit:
    """What a document says, whether its signature fits or not; for people to look at.

    Raises PermitError if it is malformed, or not in the form that `issue` writes.
    """
    opened = open_document("permit", document, PermitError)
    try:
        permit = parse(Permit, opened.body, "The permit", PermitError)
    except PermitError as problem:  # its message names unknown keys, which may say anything
        raise PermitError(
            "The permit has unknown or wrong values.",
            fix="Ask its issuer for another.",
            local_detail=" ".join(filter(None, (problem.message, problem.local_detail))),
        ) from None
    if canonical_json(permit.model_dump(mode="json")) != canonical_json(opened.body):
        raise PermitError(
            "The permit leaves values out, or writes them in another form.", fix="Ask its issuer for another."
        )
    return SignedPermit(permit, opened.key, opened.fits)


def read_permit(document: object) -> tuple[Permit, str]:
    """The permit in a document, and the public key of who signed it; whether that is a body one trusts is not asked.

    Raises PermitError if it is malformed, or its signature does not fit.
    """
    found = inspect_permit(document)
    if not found.fits:
        raise PermitError(
            "The permit's signature does not fit: it was altered, or signed with another key.",
            fix="Ask its issuer for another.",
        )
    return found.permit, found.key


def stated_names(document: object) -> tuple[str, str]:
    """A permit's id and holder by its own words, which nobody has verified; nothing if it is None or malformed."""
    try:
        permit = None if document is None else read_permit(document)[0]
    except PermitError:
        permit = None
    return ("", "") if permit is None else (permit.id, permit.holder)


def sign_plan(plan: FederationPlan, key: PrivateKey) -> str:
    """The holder's signature over a plan, permit included, as base64url text."""
    return key.sign("plan", plan.sha256())


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def standing_problems(found: SignedPermit, bodies: Mapping[str, str], now: datetime) -> tuple[str, ...]:
    """Why the permit counts for nothing here or now, whatever the plan: signature, issuer, time; () if it counts."""
    permit = found.permit
    reasons = []
    if not found.fits:
        reasons.append("The permit's signature does not fit: it was altered, or signed with another key.")
    if permit.issuer in bodies:
        if bodies[permit.issuer] != found.key:
            reasons.append("The permit names a body that is trusted here, but bears another key.")
    elif found.key in bodies.values():
        reasons.append("The permit bears the key of a body that is trusted here, but names another issuer.")
    else:
        reasons.append("The permit's issuer is not among the bodies that are trusted here.")
    if now < permit.valid_from:
        reasons.append(f"The permit is not valid before {_moment(permit.valid_from)}.")
    if now >= permit.valid_until:
        reasons.append(f"The permit expired at {_moment(permit.valid_until)}.")
    return tuple(reasons)


def scope_problems(permit: Permit, plan: FederationPlan) -> tuple[str, ...]:
    """What the plan asks for beyond the permit: purpose, task, network, rounds, privacy; () if nothing."""
    reasons = []
    if plan.purpose not in permit.purposes:
        reasons.append(f"The permit does not cover the plan's purpose, {plan.purpose}.")
    if permit.tasks is not None and plan.task.name not in permit.tasks:
        reasons.append(f"The permit does not cover the plan's task, {plan.task.name}.")
    if permit.networks is not None:
        reasons += [
            f"The permit does not cover {what}."
            for network, what in _networks(plan).items()
            if network not in permit.networks
        ]
    if permit.rounds is not None and plan.rounds > permit.rounds:
        reasons.append(f"The permit covers at most {permit.rounds} rounds; the plan asks for {plan.rounds}.")
    if permit.privacy_required and plan.privacy.mechanism == "none":
        reasons.append("The permit requires a privacy mechanism, and the plan has none.")
    return tuple(reasons)


def _networks(plan: FederationPlan) -> dict[str, str]:
    """Name of each network that runs under a plan → what it is called. A model that brings its own has the name ""."""
    if plan.validation is None:
        return {plan.model.name: f"the plan's network, {plan.model.name}"}
    return {
        "" if one.network is None else one.network.name: f"the model {one.name}, which brings its own network"
        if one.network is None
        else f"the network of the model {one.name}, {one.network.name}"
        for one in plan.validation.models
    }


def dataset_problems(permit: Permit, datasets: tuple[str, ...]) -> tuple[str, ...]:
    """Whether the permit leaves out datasets that a site's cohort stands for; () if it covers all.

    They are counted, not named: which ones a site has is not the asker's to learn. No dataset at all is a reason too.
    """
    if not datasets:
        return ("This site does not say which datasets its cohort stands for, so no permit covers it.",)
    missing = len(set(datasets) - set(permit.datasets))
    if not missing:
        return ()
    return (f"The permit does not cover {missing} of the {len(set(datasets))} datasets of this site's cohort.",)


def problems(plan: FederationPlan, holder_signature: str, use: PermitUse) -> tuple[str, ...]:
    """Why the plan's permit does not cover it at this site, all reasons in plain words; () if it does.

    holder_signature: as `sign_plan` makes it; "" where there is none. A permit that is missing, malformed or altered
    is the only reason then, since nothing else that it says would be true. A plan that is among the earlier ones may
    go on, however many there were.
    """
    if plan.permit is None:
        return ("The plan carries no permit.",)
    try:
        permit, key = read_permit(plan.permit)
    except PermitError as problem:
        return (problem.message,)
    reasons = [*standing_problems(SignedPermit(permit, key, fits=True), use.bodies, use.now)]
    identity = plan.sha256()
    if not holder_signature:
        reasons.append("The permit's holder has not signed this plan.")
    elif not verify(permit.holder_key, "plan", identity, holder_signature):
        reasons.append("The signature over this plan is not that of the permit's holder.")
    reasons += scope_problems(permit, plan)
    reasons += dataset_problems(permit, use.datasets)
    if identity not in use.earlier_plans and len(use.earlier_plans) >= permit.plans:
        reasons.append(f"The permit covers {_plans(permit.plans)} at a site, and is used up here.")
    return tuple(reasons)


def _plans(count: int) -> str:
    return "one plan" if count == 1 else f"{count} different plans"


def _list(names: tuple[str, ...] | None, everything: str) -> str:
    return everything if names is None else ", ".join(names)


def describe(permit: Permit) -> list[str]:
    """In plain words: what the permit allows, to whom, and until when."""
    return [
        f"Permit {permit.id}: {permit.issuer} allows {permit.holder} to train and test models on data that stay where "
        "they are.",
        f"Purposes: {', '.join(purpose.replace('_', ' ') for purpose in permit.purposes)}.",
        f"Datasets: {', '.join(permit.datasets)}.",
        f"Tasks: {_list(permit.tasks, 'any')}. Networks: {_list(permit.networks, 'any')}. "
        f"Rounds: {'any number' if permit.rounds is None else f'at most {permit.rounds} in a plan'}.",
        f"Privacy: {'a plan must name a privacy mechanism' if permit.privacy_required else 'none required'}.",
        f"Plans: at most {_plans(permit.plans)} at each site.",
        f"Valid from {_moment(permit.valid_from)} until {_moment(permit.valid_until)}.",
        f"Each plan has to be signed with the holder's key: {fingerprint(permit.holder_key)}.",
    ]
