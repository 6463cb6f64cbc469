"""What `eucaim-fl validate --dry-run` says: what each site is asked, what would leave it, and who would refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from eucaim_fl.plan_text import explain
from eucaim_fl.validation.leaving import leaving
from eucaim_fl.validation_config import NATIVE_FORMATS

if TYPE_CHECKING:
    from eucaim_fl.compose import Recipe
    from eucaim_fl.plan import FederationPlan

__all__ = ["preview", "print_preview"]

_STAYS = (
    "No image leaves, no prediction, and nothing of a single patient: what each patient got is kept at the hospital, "
    "for the hospital."
)


def preview(recipe: Recipe) -> dict[str, Any]:
    """A validation before anybody is asked: its plan and hash, what sites are asked in plain words, what each could
    tell at most, and what the policies of this machine's sites say. Site files are read, cohorts are not."""
    plan = recipe.plan
    asked = plan.validation
    told = leaving(plan)
    sites = [_site(name, recipe.site_files.get(name), plan) for name in plan.sites]
    return {
        "plan": json.loads(plan.canonical_json()),
        "plan_sha256": plan.sha256(),
        "asks": explain(plan),
        "models": [
            {"name": one.name, "format": one.format, "sha256": one.sha256, "bytes": one.size_bytes}
            for one in (() if asked is None else asked.models)
        ],
        "leaves": {
            "figures": [vars(kind) for kind in told.kinds],
            "scopes": list(told.scopes),
            "numbers": told.numbers,
            "bytes": told.record_bytes,
        },
        "stays": _STAYS,
        "sites": sites,
    }


def _site(name: str, file: Path | None, plan: FederationPlan) -> dict[str, Any]:
    """What can be known here of a site's answer. allowed: None where that is not known on this machine."""
    if file is None:
        why = "its policy is at the hospital, which decides when it is asked"
        return {"site": name, "allowed": None, "why": [why]}
    from eucaim_fl.site.policy import load_policy
    from eucaim_fl.site.policy_decision import Situation, decide
    from eucaim_fl.sitefile import load_site_file

    site = load_site_file(file)
    place = site.policy_path(file)
    if place is None:
        programs = (
            [one.name for one in plan.validation.models if one.format in NATIVE_FORMATS] if plan.validation else []
        )
        if programs:
            return {
                "site": name,
                "allowed": False,
                "why": [f"no policy lists programs such as {programs[0]}"],
            }
        return {"site": name, "allowed": True, "why": ["no policy; the site file alone limits what leaves"]}
    confidential = site.release.data_is == "confidential"
    decision = decide(
        plan, load_policy(place), Situation(name, datetime.now(UTC), preview=True, confidential=confidential)
    )
    reasons = [f"{one.key}: {one.says}. The plan: {one.asks}" for one in (*decision.refused, *decision.waiting)]
    return {"site": name, "allowed": decision.allowed, "why": reasons}


def print_preview(console: Console, found: Mapping[str, Any]) -> None:
    """The same for people."""

    def say(text: str) -> None:
        console.print(_shown(text), markup=False, highlight=False, soft_wrap=True)

    say("What each site is asked:")
    for sentence in found["asks"]:
        say(f"- {sentence}")
    leaves = found["leaves"]
    table = Table(title="What would leave each site, at most and once", title_justify="left")
    table.add_column("figure")
    table.add_column("how fine")
    table.add_column("numbers", justify="right")
    for kind in leaves["figures"]:
        table.add_row(kind["figure"], kind["finest"], f"{kind['numbers']:,}")
    say("")
    console.print(table)
    groups = len(leaves["scopes"]) - 1
    times = "" if not groups else f", for all patients and for each of at most {groups} groups"
    say(
        f"Each of these{times}: at most {leaves['numbers']:,} numbers, in one message of at most "
        f"{leaves['bytes']:,} bytes."
    )
    say(found["stays"])
    say("\nWhat rules of the sites say:")
    words = {True: "none refuses", False: "refused, or to wait", None: "not known here"}
    for one in found["sites"]:
        say(f"- {one['site']}: {words[one['allowed']]}" + (f" ({'; '.join(one['why'])})" if one["why"] else ""))
    say(f"\nPlan {found['plan']['name']}, SHA-256 {found['plan_sha256']}. Nothing was started, and nothing was sent.")


def _shown(text: str) -> str:
    """Words from elsewhere do not steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
