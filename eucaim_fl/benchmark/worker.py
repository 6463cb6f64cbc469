"""What a benchmark computes in worker processes: training in one place, and tests of models patient by patient."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from eucaim_fl.arrays import Arrays
from eucaim_fl.benchmark.outcome import PatientValues
from eucaim_fl.cohorts.cohort import open_cohort
from eucaim_fl.comparison import held_out, train_alone
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ModelName
from eucaim_fl.site.state_store import StateStore, part
from eucaim_fl.sitefile import load_site_file

__all__ = ["alone", "own_models"]


def alone(
    plan: FederationPlan, trained_on: Sequence[str], site_files: Mapping[str, Path], name: str
) -> tuple[Arrays, PatientValues, float]:
    """Train on some sites' patients in one place; the model, its values on all sites' held-out patients, the seconds
    that training took. name: of the model; its order of patients follows from it."""
    for site in trained_on:  # what has to be prepared is prepared now: it is no cost of training
        open_cohort(load_site_file(site_files[site]), plan)
    started = time.monotonic()
    arrays = train_alone(plan, [site_files[site] for site in trained_on], name)
    seconds = time.monotonic() - started
    return arrays, held_out(plan, site_files, arrays), seconds


def own_models(
    plan: FederationPlan, site_files: Mapping[str, Path], chosen: Mapping[str, str], run: str
) -> dict[str, PatientValues]:
    """The sites' own models of a finished run on their own held-out patients: model → values.

    The models are read from where each site keeps them, which this machine may do with public and synthetic data only.
    chosen: site → the model that it named in the end; of these `chosen` is made, where every site named one. run: the
    run's own name: what an earlier run of the plan has left is not looked at. A model that a site lacks has no values.
    """
    values: dict[str, PatientValues] = {}
    names: list[ModelName] = [*plan.method.personal.candidates()]
    for site, path in site_files.items():
        kept = StateStore(load_site_file(path).records_folder(), plan.sha256()).final(run)
        for name in names if kept is not None else ():
            whole = {} if kept is None else kept.load()
            arrays = part(whole, plan.method.personal.blended() if name == "blended" else name)
            second = part(whole, "local") if name == "blended" else None
            found = held_out(plan, {site: path}, arrays, second) if arrays else {}
            values.setdefault(name, {}).update(found)
            if chosen.get(site) == name:
                values.setdefault("chosen", {}).update(found)
    return {name: found for name, found in values.items() if {site for site, _ in found} == set(site_files)}
