"""Is the federated model worth it? Local, pooled and federated training with equal optimizer steps, on one machine.

Only for cohorts that their site files call synthetic or public: the pooled model sees all of them in one place, and
every model is tested on every site's held-out patients. So no policy's `privacy.held_out` is asked: it is about
confidential data and plans with noise, and `check_comparable` lets neither through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import ArrayFile, Arrays
from eucaim_fl.config import MethodConfig
from eucaim_fl.errors import GateError, RecipeError
from eucaim_fl.federation.processes import call, end_calls
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import CLASS_SHARES
from eucaim_fl.seeding import derive_seed, generator
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.validation.intervals import Interval, paired_bootstrap, patient_bootstrap
from eucaim_fl.validation.metrics import auc

if TYPE_CHECKING:
    from eucaim_fl.cohorts.cohort import PreparedCase

__all__ = [
    "FEDERATED",
    "POOLED",
    "Held",
    "Job",
    "check_comparable",
    "check_one_model",
    "compare_models",
    "held_out",
    "train_all",
    "train_alone",
]

POOLED, FEDERATED = "pooled", "federated"
_SAMPLES = 2000

PatientValues = dict[tuple[str, str], tuple[float, ...]]
"""(site, patient) → what is measured: (Dice, HD95 in mm), or (probability of each class …, true class)."""
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """One model to train without federation: its name, and the sites whose training patients it sees."""

    name: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """What one model reaches on the held-out patients of every site."""

    model: str
    seed: int
    values: PatientValues


def check_comparable(plan: FederationPlan, site_files: Mapping[str, Path]) -> None:
    """Whether this recipe's data may be pooled, and its models compared step for step.

    Raises GateError if a site's data is confidential, RecipeError if rounds are measured in epochs (the number of steps
    would differ), the plan begins with given weights or adds noise, the task is neither segmentation nor
    classification, or the cohorts are not on this machine.
    """
    if not site_files:
        raise RecipeError(
            "Local and pooled training need the cohorts on this machine.", fix="Compare with federation=local."
        )
    for name, path in site_files.items():
        if load_site_file(path).release.data_is == "confidential":
            raise GateError(
                f"The data of site '{name}' is confidential and can't be pooled with others.",
                fix="Compare on sites whose data is synthetic or public.",
            )
    if plan.privacy.mechanism != "none":
        raise RecipeError(
            "Local and pooled models are trained without noise, so one with noise can't be compared step for step.",
            fix="Compare with privacy=none, and train with noise on its own; under noise each patient's split is drawn "
            "alone, so its held-out patients are others.",
        )
    if plan.start_sha256 is not None:
        raise RecipeError(
            "Local and pooled models begin with random weights, so one that begins with given ones can't be compared.",
            fix="Leave start out.",
        )
    if plan.training.local_steps is None:
        raise RecipeError(
            "A comparison needs equal numbers of optimizer steps.",
            fix="Set training.local_steps instead of local_epochs.",
        )
    if plan.task.name not in ("segmentation", "classification"):
        raise RecipeError("Models of this task can't be compared yet.", fix="Compare segmentations or classifications.")


def check_one_model(plan: FederationPlan) -> None:
    """Whether the federation ends with one model that can be tested everywhere.

    Raises RecipeError if each site keeps a part of the network to itself.
    """
    if plan.method.personal.arrays != "none":
        raise RecipeError(
            "The sites keep a part of the network to themselves, so there is no federated model to compare.",
            fix="`eucaim-fl benchmark` tests each site's own models; or compare with method=fedavg.",
        )


# --- in a worker process --------------------------------------------------------------------------------------


def train_alone(plan: FederationPlan, site_files: Sequence[Path], name: str) -> Arrays:
    """Train on the training patients of the given sites in one place, with as many steps as a site of the federation.

    The same initial weights and rounds × local_steps optimizer steps in one go, as anybody would train without a
    federation: the optimizer keeps its state throughout, there is nothing that draws towards a common model, and the
    learning rate follows the plan's schedule. Shares of classes, and statistics of inputs that the plan wants of the
    `federation`, are those of these patients; where each `site` has its own, its cases are standardised by them.
    """
    import torch

    from eucaim_fl.cohorts.cohort import open_cohort
    from eucaim_fl.models.networks import get_arrays, set_arrays
    from eucaim_fl.site.node import network_for
    from eucaim_fl.training.loop import train_round
    from eucaim_fl.training.standardised import standardised
    from eucaim_fl.training.statistics import own_input

    torch.set_num_threads(1)
    by_site = [open_cohort(load_site_file(path), plan).cases("train") for path in site_files]
    network = network_for(plan, derive_seed(plan.seed, "initial weights"))
    set_arrays(network, get_arrays(network) | _told(plan, by_site))
    cases = [case for own in by_site for case in standardised(own, own_input(own, plan))]
    alone = plan.model_copy(update={"method": MethodConfig()})
    train_round(network, cases, alone, derive_seed(plan.seed, "training", name, 1), rounds=range(1, plan.rounds + 1))
    return get_arrays(network)


def _told(plan: FederationPlan, by_site: Sequence[Sequence[PreparedCase]]) -> Arrays:
    """What a model is told of its patients before it is trained; each site's own input is standardised elsewhere."""
    from eucaim_fl.training.statistics import conditioning, sums_over

    if plan.data.standardise != "federation" and not plan.asked_classes():
        return {}
    found = conditioning([sums_over(cases, plan) for cases in by_site], plan)
    return found if plan.data.standardise == "federation" else {CLASS_SHARES: found[CLASS_SHARES]}


def held_out(
    plan: FederationPlan, site_files: Mapping[str, Path], arrays: Arrays, second: Arrays | None = None
) -> PatientValues:
    """What a model reaches on the test patients of all sites, patient by patient; NaN where it is not defined.

    second: of a model that is blended with it (see `models.blend`).
    Where each site standardises its inputs by its own statistics, the model has those of the site it is tested at.
    """
    import torch

    from eucaim_fl.cohorts.cohort import open_cohort
    from eucaim_fl.models.blend import Blend
    from eucaim_fl.models.networks import set_arrays
    from eucaim_fl.site.node import network_for
    from eucaim_fl.training.evaluation import patient_results
    from eucaim_fl.training.statistics import own_input

    torch.set_num_threads(1)
    parts = [(network_for(plan, 0), given) for given in (arrays, second) if given is not None]
    network = parts[0][0] if second is None else Blend(*(one for one, _ in parts))
    values: PatientValues = {}
    for site, path in site_files.items():
        cohort = open_cohort(load_site_file(path), plan)
        for one, given in parts:
            set_arrays(one, given | own_input(cohort.cases("train"), plan))
        for patient, result in patient_results(network, cohort.cases("test"), plan).items():
            values[site, patient] = (
                (float(result["dice"]), float(result["hd95_mm"]))
                if plan.task.name == "segmentation"
                else (*map(float, result["probabilities"]), float(result["truth"]))
            )
    return values


# --- in the caller --------------------------------------------------------------------------------------------


def train_all(
    plan: FederationPlan,
    site_files: Mapping[str, Path],
    federated: Path,
    workers: int,
    tell: Callable[[str], object],
) -> list[Held]:
    """Train every local model and the pooled one, and test these and the federated model (a file of arrays).

    tell: called with a model's name when it is done.
    """
    jobs = [*(Job(f"local {site}", (site,)) for site in site_files), Job(POOLED, tuple(site_files))]

    def one(job: Job) -> Held:
        arrays = call("eucaim_fl.comparison:train_alone", plan, [site_files[s] for s in job.sites], job.name)
        held = Held(job.name, plan.seed, call("eucaim_fl.comparison:held_out", plan, dict(site_files), arrays))
        tell(job.name)
        return held

    def test_federated() -> Held:
        weights = ArrayFile(federated).load()
        return Held(FEDERATED, plan.seed, call("eucaim_fl.comparison:held_out", plan, dict(site_files), weights))

    pool = ThreadPoolExecutor(workers)
    try:
        last = pool.submit(test_federated)
        others = list(pool.map(one, jobs))
        return [*others, last.result()]
    except BaseException:  # Ctrl-C too: nobody waits for trainings whose result is not wanted any more
        pool.shutdown(wait=False, cancel_futures=True)
        end_calls()
        raise
    finally:
        pool.shutdown()


def compare_models(held: Sequence[Held], task: str, seed: int) -> dict[str, Any]:
    """The table: every model on the same held-out patients, with 95 % intervals by patient bootstrap within sites.

    A patient that is held out under several seeds counts once, with the mean over those seeds. A patient for whom the
    metric is undefined under any model (an empty mask on both sides) is left out for all, and counted. Returns metric,
    seeds, undefined, models (name → estimate, low, high, patients, by_site, by_seed; null where undefined) and
    differences (federated against pooled and against the mean of the local models, paired by patient).
    """
    statistic = _mean if task == "segmentation" else _auc
    models = list(dict.fromkeys(h.model for h in held))
    merged = {m: _merge([h.values for h in held if h.model == m]) for m in models}
    everyone = sorted(merged[FEDERATED])
    keys = [key for key in everyone if not any(np.isnan(merged[m][key]).any() for m in models)]
    strata = [site for site, _ in keys]
    rows = {m: np.array([merged[m][key] for key in keys]) for m in models}
    sites = sorted(set(strata))

    def interval(values: FloatArray, purpose: str) -> Interval:
        rng = generator(seed, "bootstrap", purpose)
        return patient_bootstrap(values, statistic=statistic, samples=_SAMPLES, rng=rng, strata=strata)

    table = {}
    for model in models:
        by_site = {s: _number(statistic(rows[model][np.array(strata) == s][None])) for s in sites}
        by_seed = {
            str(h.seed): _number(statistic(np.array([h.values[k] for k in keys if k in h.values])[None]))
            for h in held
            if h.model == model
        }
        table[model] = {
            **asdict(interval(rows[model], model)),
            "patients": len(keys),
            "by_site": by_site,
            "by_seed": by_seed,
        }
    locals_ = [m for m in models if m.startswith("local ")]
    result: dict[str, Any] = {
        "metric": "dice" if task == "segmentation" else "auc",
        "seeds": sorted({h.seed for h in held}),
        "undefined": len(everyone) - len(keys),
        "models": table,
        "mean_of_local": float(np.mean([table[m]["estimate"] for m in locals_])),
        "differences": {},
    }
    pairs = {"federated - pooled": rows[POOLED]}
    if task == "segmentation":
        pairs["federated - mean of local"] = np.mean([rows[m] for m in locals_], axis=0)
    for name, other in pairs.items():
        rng = generator(seed, "bootstrap", name)
        result["differences"][name] = asdict(
            paired_bootstrap(rows[FEDERATED], other, statistic=statistic, samples=_SAMPLES, rng=rng, strata=strata)
        )
    return result


def _merge(runs: Sequence[PatientValues]) -> PatientValues:
    """One row a patient: the mean over the seeds under which the patient was held out."""
    keys = sorted({key for run in runs for key in run})
    return {key: _mean_defined([run[key] for run in runs if key in run]) for key in keys}


def _mean_defined(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Mean over the rows that are defined; all NaN if none is."""
    defined = [row for row in rows if not np.isnan(row).any()]
    return tuple(float(v) for v in np.mean(defined, axis=0)) if defined else tuple(float("nan") for _ in rows[0])


def _number(values: FloatArray) -> float | None:
    """The one value of a statistic; None where it is undefined."""
    return None if np.isnan(values[0]) else float(values[0])


def _mean(resamples: FloatArray) -> FloatArray:
    """(resamples, patients, …) of Dice first → mean over patients."""
    return np.asarray(resamples[..., 0].mean(axis=1))


def _auc(resamples: FloatArray) -> FloatArray:
    """(resamples, patients, K + 1) of probabilities and truth → AUC of each resample; NaN where a class is missing."""
    return np.array([auc(sample[:, :-1], sample[:, -1].astype(np.int64)) for sample in resamples])
