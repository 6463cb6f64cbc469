"""A policy in plain words, key by key: what `policy check` prints and what every clause of a decision says."""

from __future__ import annotations

from eucaim_fl.signing import fingerprint
from eucaim_fl.site.policy import Policy, PrivacyPolicy, Window
from eucaim_fl.site.policy_models import model_words

__all__ = ["SILENT", "describe"]

SILENT = "the policy names nothing here, so nothing is allowed"
"""What a missing or empty key means."""


def describe(policy: Policy) -> dict[str, str]:
    """Dotted key → what the policy says there, in the order in which a plan is judged."""
    sent, patients, privacy = policy.sent_mb, policy.patients, policy.privacy
    return {
        "valid_until": _said(policy.valid_until, "nothing is allowed after {} (UTC)"),
        "datasets": _listed(policy.datasets, "the cohort stands for {}"),
        "asking": _asking(policy),
        "purposes": _listed(policy.purposes, "for {} only"),
        "tasks": _listed(policy.tasks, "{} only"),
        "targets": "a plan may learn any clinical column"
        if isinstance(policy.targets, str)
        else _listed(policy.targets, "clinical columns that a plan may learn: {}"),
        "networks": "any network" if isinstance(policy.networks, str) else _listed(policy.networks, "only {}"),
        **model_words(policy.frozen_models, SILENT),
        "sites.at_least": _said(
            policy.sites.at_least,
            "a plan names at least {} sites, this one among them; the coordinator sees each site's update by itself",
        ),
        "patients.training": _said(
            patients.training, "at least {} patients train; more if the site file asks for more"
        ),
        "patients.batch": "no least batch size is asked of plans without noise"
        if patients.batch is None
        else f"without noise that hides an update from the coordinator, a batch has at least {patients.batch} images",
        "patients.metric": _said(
            patients.metric, "at least {} patients behind a figure; more if the site file says so"
        ),
        "metrics.names": _listed(policy.metrics.names, "figures that may leave: {}"),
        "metrics.decimals": _said(policy.metrics.decimals, "figures are rounded to {} decimal places"),
        "pictures": "pictures may leave if the site file calls the data synthetic or public"
        if policy.pictures
        else "no pictures leave",
        "score_histograms": "score histograms may leave if the site file and metrics.names permit them too"
        if policy.score_histograms
        else "no score histograms leave",
        "rounds": _said(policy.rounds, "a plan has at most {} rounds"),
        "plans.day": _said(policy.plans.day, "at most {} different plans are worked for on a day (UTC)"),
        "plans.total": _said(policy.plans.total, "at most {} different plans are ever worked for"),
        "plans.repeats": f"one round of a plan is answered at most {policy.plans.repeats} times",
        "hours": _hours(policy),
        "work.minutes": _said(policy.work.minutes, "work on one instruction stops after {:g} minutes"),
        "sent_mb.message": _said(sent.message, "a message has at most {:g} million bytes"),
        "sent_mb.plan": _said(sent.plan, "at most {:g} million bytes leave for a plan"),
        "sent_mb.day": _said(sent.day, "at most {:g} million bytes leave on a day (UTC)"),
        "update.largest_norm": _said(policy.update.largest_norm, "an update longer than {:g} (L2 norm) stays here"),
        "privacy": {
            None: SILENT,
            "none": f"plans without added noise may run{_declared(privacy)}",
            "dp": _required(privacy),
        }[privacy.mechanism],
        "approval": "a person here decides on every new plan"
        if policy.approval == "manual"
        else "no person is asked, unless one has refused the plan",
    }


def _said(value: object, sentence: str) -> str:
    return SILENT if value is None else sentence.format(value)


def _listed(values: tuple[str, ...], sentence: str) -> str:
    return sentence.format(", ".join(values)) if values else SILENT


def _asking(policy: Policy) -> str:
    if policy.asking.permits == "not_required":
        return "no data permit is required"
    if not policy.asking.bodies:
        return "a data permit is required, but no body is named whose permits count"
    bodies = ", ".join(f"{name} (key {fingerprint(key)})" for name, key in sorted(policy.asking.bodies.items()))
    return f"a data permit is required, signed by {bodies}"


def _hours(policy: Policy) -> str:
    if policy.hours == "any":
        return "at any time"
    return f"at these times: {'; '.join(map(_window, policy.hours))}" if policy.hours else SILENT


def _required(privacy: PrivacyPolicy) -> str:
    budgets = [
        f"epsilon at most {epsilon:g} over all plans {whose}"
        for epsilon, whose in (
            (privacy.patient_epsilon, "for each patient"),
            (privacy.dataset_epsilon, "for the cohort"),
            *((epsilon, f"for {purpose}") for purpose, epsilon in sorted(privacy.purpose_epsilon.items())),
        )
        if epsilon is not None
    ]
    told = "; ".join(["", *budgets]) if budgets else "; plans together have no limit"
    return (
        "differential privacy is required against the coordinator, from a secure source of noise, with epsilon at most "
        f"{privacy.epsilon or 0:g} and delta at most {privacy.delta or 0:g} for a plan{told}; what a plan has reserved "
        f"is freed when it was idle for {_days(privacy.reserved_days)}{_declared(privacy)}"
    )


def _days(number: int) -> str:
    return "a day" if number == 1 else f"{number} days"


def _declared(privacy: PrivacyPolicy) -> str:
    if not privacy.test_data:
        return ""
    return (
        f"; under plans with noise, figures of {' and '.join(privacy.test_data)} patients need none: they are about "
        f"{100 * (privacy.held_out or 0):g} in 100 patients, drawn once by a key of this site, not by plans, and never "
        "train under such a plan"
    )


def _window(window: Window) -> str:
    following = " of the following day" if window.end <= window.start else ""
    return f"{', '.join(window.days)} {window.start} to {window.end}{following} ({window.zone})"
