"""The audit as a page for local eyes, which answers first and needs nothing from elsewhere, and as numbers for
programs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.exposure.canary import Audit
from eucaim_fl.exposure.drawings import bars_svg, roc_svg, scores_svg
from eucaim_fl.exposure.examination import Examination
from eucaim_fl.exposure.inversion import Inversion, Likeness
from eucaim_fl.exposure.membership import Membership, Operating
from eucaim_fl.pages import filled
from eucaim_fl.plan_text import explain
from eucaim_fl.tasks.pictures import picture
from eucaim_fl.validation.figures import png_data_uri

__all__ = ["render_html", "to_json", "verdict_sentences"]

_SCHEMA = 1
_HEADS = {
    "consistent": "Nothing was found against the promise.",
    "broken": "The promise is broken.",
    "weak": "Nothing was found, but this audit could not have found much.",
    "no_promise": "This plan promises nothing to patients.",
    "not_measured": "The promise was not measured.",
}


@dataclass(frozen=True)
class _Row:
    """One row of pictures: data addresses and what stands under each."""

    title: str
    pictures: list[tuple[str, str, str]]


def verdict_sentences(found: Examination) -> tuple[str, str]:
    """The verdict in a few words, and the sentences that give its reasons."""
    claim, on, off = found.claim, found.canary, found.canary_off
    head = _HEADS[found.verdict]
    if claim is None:
        if found.plan.privacy.mechanism == "central_dp":
            return head, (
                "Noise is added at the server: it hides a site from those who see the models, and no patient from the "
                "coordinator, who sees this site's updates as they are."
            )
        return head, "Updates leave without noise, so no epsilon is promised and none can be exceeded."
    promised = f"epsilon of at most {claim.epsilon:.2f} at delta {claim.delta:g}"
    if on is None:
        return head, f"Promised is an {promised}; run the canary attack to measure it."
    measured = f"measured is an epsilon of at least {on.evidence.epsilon:.2f} ({_sure(on)})"
    if found.verdict == "broken":
        return head, (
            f"Promised is an {promised}, but {measured}. Do not run this plan: sampling, clipping, noise or accounting "
            "are not what the plan says."
        )
    if off is None:
        return head, f"Promised is an {promised}; {measured}."
    without = f"With its noise switched off on purpose, the same audit measures at least {off.evidence.epsilon:.2f}"
    end = (
        "so it would have noticed."
        if found.verdict == "consistent"
        else "which is below the promise too, so it would not have noticed. Ask for more canaries, or a smaller delta."
    )
    return head, f"Promised is an {promised}; {measured}, which agrees. {without}, {end}"


def _sure(audit: Audit) -> str:
    return f"{100 * audit.evidence.confidence:g} % sure"


def to_json(found: Examination) -> dict[str, Any]:
    """The audit as JSON values: numbers alone, no picture, no patient; they still tell of the site's patients."""
    claim = found.claim
    return {
        "schema": _SCHEMA,
        "verdict": found.verdict,
        "plan": {"name": found.plan.name, "sha256": found.plan.sha256(), "rounds": found.plan.rounds},
        "rounds_of_the_whole_plan": found.rounds,
        "mechanism": found.plan.privacy.mechanism,
        "site": found.site,
        "patients": found.patients,
        "claim": None if claim is None else {"epsilon": _rounded(claim.epsilon), "delta": claim.delta},
        "canary": {"plan": _audit_json(found.canary), "without_noise": _audit_json(found.canary_off)},
        "membership": {
            "plan": _membership_json(found.membership),
            "without_protection": _membership_json(found.membership_off),
        },
        "inversion": [_inversion_json(one) for one in found.inversions],
        "settings": asdict(found.settings),
    }


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _audit_json(audit: Audit | None) -> dict[str, Any] | None:
    if audit is None:
        return None
    values = {k: _rounded(v) if k in ("general", "gaussian") else v for k, v in asdict(audit.evidence).items()}
    return {**values, "epsilon": _rounded(audit.evidence.epsilon), "estimate": _rounded(audit.estimate)}


def _membership_json(found: Membership | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "auc": _rounded(found.auc),
        "operating": [asdict(one) for one in found.operating],
        "trials": list(found.trials),
        "patients": found.patients,
        "models": found.models,
    }


def _inversion_json(one: Inversion) -> dict[str, Any]:
    def values(like: Likeness | None) -> dict[str, float | None] | None:
        return None if like is None else {name: _rounded(value) for name, value in asdict(like).items()}

    protected = values(one.protected_likeness)
    return {"reference": one.reference, "without_protection": values(one.plain_likeness), "plan": protected}


def render_html(found: Examination) -> str:
    """The audit as one page without scripts and links; all that is not ours is escaped.

    It shows images of the site's patients and what can be told of them, so it must not leave the hospital.
    """
    head, reasons = verdict_sentences(found)
    return filled(
        Path(__file__).parent / "templates" / "audit.html.jinja",
        found=found,
        head=head,
        reasons=reasons,
        good={"consistent": "yes", "broken": "no"}.get(found.verdict, "open"),
        bars=_bars(found),
        scores=_scores(found),
        curve=_curve(found),
        operating=_operating_rows(found),
        rows=[_row(one) for one in found.inversions],
        plan_words=[line for line in explain(found.plan) if line.startswith(("Privacy", "Attention", "Figures"))],
        sha256=found.plan.sha256(),
        attacked={one.reference: one for one in found.inversions},
    )


def _bars(found: Examination) -> str:
    rows = []
    if found.canary is not None:
        rows.append(("the plan", found.canary.evidence.epsilon, "with" if found.claim is not None else "without"))
    if found.canary_off is not None:
        rows.append(("noise switched off", found.canary_off.evidence.epsilon, "without"))
    return bars_svg(rows, None if found.claim is None else found.claim.epsilon) if rows else ""


def _scores(found: Examination) -> list[tuple[str, Audit, str]]:
    """Title, audit and figure of each run."""
    runs = [("The plan", found.canary, "with" if found.claim is not None else "without")]
    runs.append(("Noise switched off on purpose", found.canary_off, "without"))
    return [(name, one, scores_svg(one.scores, one.included, kind)) for name, one, kind in runs if one is not None]


def _curve(found: Examination) -> str:
    curves: dict[str, Membership] = {}
    if found.membership_off is not None:
        curves["without"] = found.membership_off
    if found.membership is not None:
        curves["with" if found.claim is not None else "without"] = found.membership
    if not curves:
        return ""
    return roc_svg({k: m.curve for k, m in curves.items()}, min(1 / m.trials[1] for m in curves.values()))


def _operating_rows(found: Examination) -> list[tuple[str, list[str]]]:
    """What is asked, and the answers without and with protection."""
    runs = [one for one in (found.membership_off, found.membership) if one is not None]
    if not runs:
        return []
    rows = [("Area under the curve (0.5 is guessing)", [f"{one.auc:.3f}" for one in runs])]
    for index, first in enumerate(runs[0].operating):
        name = f"Members found at {100 * first.false_positives:g} % of strangers taken for members"
        rows.append((name, [_shown(one.operating[index]) for one in runs]))
    return rows


def _shown(one: Operating) -> str:
    if one.found is None or one.low is None or one.high is None:
        return "too few trials"
    return f"{100 * one.found:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _row(one: Inversion) -> _Row:
    shown = [(_png(one.original), "The patient’s image", "")]
    shown.append((_png(one.plain), "Rebuilt without protection", _words(one.plain_likeness)))
    if one.protected is not None and one.protected_likeness is not None:
        shown.append((_png(one.protected), "Rebuilt under the plan", _words(one.protected_likeness)))
    title = "Through a small classifier" if one.reference else "Through the plan’s own network"
    return _Row(title, shown)


def _png(image: NDArray[np.float32]) -> str:
    return png_data_uri(picture(image))


def _words(like: Likeness) -> str:
    psnr = "equal" if math.isinf(like.psnr_db) else f"{like.psnr_db:.1f} dB"
    ssim, correlation = (round(value, 2) + 0.0 for value in (like.ssim, like.correlation))  # no minus before 0.00
    return f"PSNR {psnr}, SSIM {ssim:.2f}, correlation {correlation:.2f}"
