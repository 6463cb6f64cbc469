"""The folder of a finished validation, made from records as sites tell them, without any site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from eucaim_fl.federation.model_files import FOLDER, file_specs
from eucaim_fl.federation.validation_result import write_validation
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import Participation, RoundRecord
from eucaim_fl.tracking.journal import Journal
from eucaim_fl.validation.record import EVERYBODY, TOO_FEW, ScopeRecord, ValidationRecord
from tests.validation.site_records import compared_models, decided, plan_for, record, whole

SECRET = b"the maker's weights"
_RECORD: TypeAdapter[ValidationRecord] = TypeAdapter(ValidationRecord)


def asking(**changes: Any) -> FederationPlan:
    """A plan that compares two models at the sites a, b and c; c withholds everything."""
    asked = {"comparisons": [{"metric": "auc", "margin": 0.2}, {"metric": "brier"}], "bootstrap_samples": 50}
    return plan_for("classification", ("a", "b", "c"), models=2, **{**asked, **changes})


def records(plan: FederationPlan) -> tuple[ValidationRecord, ...]:
    """What the sites told."""
    told = []
    for seed, site in enumerate(("a", "b")):
        rng = np.random.default_rng(seed)
        truth = (rng.random(60) < 0.4).astype(np.int64)
        first, second = (1 / (1 + np.exp(-rng.normal(size=60) - k * (truth - 0.5))) for k in (2, 1))
        models = decided(plan, first, truth), decided(plan, second, truth)
        told.append(record(plan, site, whole(60, *models, pair=compared_models(plan, first, second, truth))))
    return (*told, record(plan, "c", ScopeRecord(EVERYBODY, 0, withheld=TOO_FEW)))


def begin(folder: Path, plan: FederationPlan) -> None:
    """What is there before a site is asked. The models' files are others than the plan's: nobody opens them here."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan.canonical_json())
    (folder / "recipe.yaml").write_text("name: frozen\n")
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "model-1").write_bytes(SECRET)


def answer(folder: Path, plan: FederationPlan) -> None:
    """The sites' records arrive and are in the journal."""
    journal = Journal(folder)
    weights = {spec.name: np.frombuffer(SECRET, np.uint8) for spec in file_specs(plan.validation)}  # type: ignore[arg-type]
    journal.begin((), weights)
    taking = tuple(Participation(site, "took_part", patients=60, seconds=2.5) for site in plan.sites)
    told = {one.site: _RECORD.dump_python(one, mode="json") for one in records(plan)}
    last = RoundRecord(1, "a" * 64, "a" * 64, taking, {}, {}, {}, (), 3.5, final=True, validated=told)
    journal.commit(last, weights, {}, better=False)


def finish(folder: Path, plan: FederationPlan) -> dict[str, Any]:
    """The report is made; returns the content of result.json."""
    return write_validation(folder, plan, Journal(folder).records(), {"python": "3.11"}, 4.0)
