"""Federated equals centralised: figures from sites' sums are those of all patients, or within stated bounds."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, ndtr
from scipy.stats import ttest_1samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.metrics import calibration_line
from eucaim_fl.validation.pairs import delong, delong_pair, mcnemar
from eucaim_fl.validation.patient_figures import validation_record
from eucaim_fl.validation.result_schema import Figure, ScopeResult, ValidationResult
from tests.validation.site_records import FloatArray, IntArray, measured, plan_for, record, whole

SHARED = Path(os.environ.get("EUCAIM_FL_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
SITES = ("a", "b", "c", "d")
THRESHOLDS = (0.3, 0.5)


def split(size: int, seed: int, sites: int = len(SITES)) -> list[NDArray[np.int64]]:
    """Patients shared out at random among sites of unequal size."""
    rng = np.random.default_rng(seed)
    order, cuts = rng.permutation(size), np.sort(rng.choice(np.arange(1, size), sites - 1, replace=False))
    return list(np.split(order, cuts))


def two_classes(seed: int, size: int) -> tuple[FloatArray, FloatArray, IntArray]:
    """Probabilities of two models, and classes, of whom a third has the disease."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(size) < 1 / 3).astype(np.int64)
    hidden = rng.normal(size=size)
    first = ndtr(hidden + 1.4 * truth - 0.9)
    return first, ndtr(hidden + rng.normal(size=size) + truth - 0.7), truth


def analysed(
    first: FloatArray, second: FloatArray, truth: IntArray, parts: list[NDArray[np.int64]]
) -> ValidationResult:
    """Two models with two classes on patients who lie at so many sites."""
    comparisons = [
        {"metric": name, "margin": 0.1} for name in ("auc", "accuracy", "sensitivity", "specificity", "brier")
    ]
    names = SITES[: len(parts)]
    plan = plan_for("classification", names, models=2, comparisons=comparisons, thresholds=THRESHOLDS)
    records = []
    for name, part in zip(names, parts, strict=True):
        results = [
            {f"p{k}": {"probabilities": np.array([1 - scores[k], scores[k]]), "truth": int(truth[k])} for k in part}
            for scores in (first, second)
        ]
        records.append(validation_record(name, plan, results, {}))
    return analyse(plan, records, seed=1)


def within(figure: Figure, value: float) -> bool:
    """Whether a value lies in the range that the figure states."""
    low, high = (figure.value if end is None else end for end in (figure.lowest, figure.highest))
    return low is not None and high is not None and low - 1e-9 <= value <= high + 1e-9


def errors_within(scores: FloatArray, truth: IntArray, parts: list[NDArray[np.int64]]) -> list[float]:
    """DeLong's standard error from all pairs of patients, within sites; all that it may be.

    A class's only patients of their sites are one stratum, and a single one joins a site with fewest others.
    """
    site = np.empty(len(truth), dtype=np.int64)
    for number, part in enumerate(parts):
        site[part] = number
    higher = scores[truth == 1][:, None] - scores[truth == 0][None]
    pairs = (higher > 0) + 0.5 * (higher == 0)
    variances = [0.0]
    for components, of in ((pairs.mean(axis=1), site[truth == 1]), (pairs.mean(axis=0), site[truth == 0])):
        sizes = {one: int((of == one).sum()) for one in set(of.tolist())}
        alone, large = [one for one in sizes if sizes[one] == 1], [one for one in sizes if sizes[one] > 1]
        least = min((sizes[one] for one in large), default=0)
        joined = [one for one in large if sizes[one] == least] if len(alone) == 1 else [-1]
        found = []
        for other in joined:
            strata = np.where(np.isin(of, alone), other, of)
            inside = [components[strata == one] for one in set(strata.tolist())]
            found.append(sum(len(one) * one.var(ddof=1) for one in inside) / len(of) ** 2)
        variances = [own + one for own in variances for one in found]
    return [math.sqrt(variance) for variance in variances]


def assert_figures_of(found: ScopeResult, scores: FloatArray, truth: IntArray, parts: list[NDArray[np.int64]]) -> None:
    """Every figure of two classes against scikit-learn on the patients themselves; intervals know whose they are."""
    figures = found.figures
    assert within(figures["auc"], roc_auc_score(truth, scores))
    assert within(figures["average_precision"], average_precision_score(truth, scores))
    assert figures["brier"].value == pytest.approx(brier_score_loss(truth, scores))
    assert figures["prevalence"].value == pytest.approx(truth.mean())
    assert within(figures["calibration_intercept"], calibration_line(scores, truth)[1])
    for threshold in THRESHOLDS:
        called = (scores >= threshold).astype(int)
        expected = {
            "sensitivity": recall_score(truth, called),
            "specificity": recall_score(truth, called, pos_label=0),
            "ppv": precision_score(truth, called),
            "npv": precision_score(truth, called, pos_label=0),
            "f1": f1_score(truth, called),
            "accuracy": accuracy_score(truth, called),
            "balanced_accuracy": balanced_accuracy_score(truth, called),
        }
        for name, value in expected.items():
            assert figures[f"{name}@{threshold:g}"].value == pytest.approx(value), name
    area = delong(scores, truth).value
    logit = math.log(area / (1 - area))
    reaches = [1.959964 * error / (area * (1 - area)) for error in errors_within(scores, truth, parts)]
    widest = figures["auc"].widest_low, figures["auc"].widest_high
    assert widest[0] is not None
    assert widest[1] is not None
    assert widest[0] - 1e-6 <= expit(logit - min(reaches))
    assert widest[1] + 1e-6 >= expit(logit + min(reaches))


def groups_error(found: ScopeResult, scores: FloatArray, truth: IntArray) -> float:
    """Expected calibration error of the patients themselves in the result's groups."""
    error = 0.0
    for group in found.curves[0].calibration:
        inside = (scores >= group.low) & ((scores < group.high) | (group.high == 1.0))
        assert inside.sum() == group.patients
        assert group.mean_score_lowest <= scores[inside].mean() <= group.mean_score_highest
        error += inside.mean() * abs(truth[inside].mean() - scores[inside].mean())
    return error


class TestTwoClasses:
    @settings(max_examples=15)
    @given(st.integers(0, 2**20), st.integers(60, 200))
    def test_every_figure_is_that_of_all_patients_or_within_its_bounds(self, seed: int, size: int) -> None:
        first, second, truth = two_classes(seed, size)
        parts = split(size, seed)
        result = analysed(first, second, truth, parts)
        for model, scores in zip(result.models, (first, second), strict=True):
            assert_figures_of(model.scopes[0], scores, truth, parts)
            assert within(model.scopes[0].figures["calibration_error"], groups_error(model.scopes[0], scores, truth))

    def test_what_is_made_of_counts_is_the_same_to_the_bit_at_one_site_and_at_four(self) -> None:
        first, second, truth = two_classes(3, 150)
        one = analysed(first, second, truth, [np.arange(150)]).models[0].scopes[0]
        four = analysed(first, second, truth, split(150, 3)).models[0].scopes[0]
        assert four.thresholds == one.thresholds
        assert four.confusion == one.confusion
        exact = {"prevalence", "calibration_slope", "calibration_intercept", "calibration_error", "accuracy"}
        for name in {key for key in one.figures if "@" in key} | exact:
            assert four.figures[name] == one.figures[name].model_copy(update={"sites": 4}), name
        limits = ("low", "high", "widest_low", "widest_high")  # within sites
        same = {name: getattr(four.figures["auc"], name) for name in limits}
        assert four.figures["auc"] == one.figures["auc"].model_copy(update={"sites": 4, **same})
        curves, alone = four.curves[0], one.curves[0]
        assert (curves.roc, curves.pr, curves.calibration) == (alone.roc, alone.pr, alone.calibration)
        assert [point.model for point in curves.decision] == [point.model for point in alone.decision]

    def test_net_benefit_is_that_of_all_patients(self) -> None:
        first, second, truth = two_classes(4, 120)
        curve = analysed(first, second, truth, split(120, 4)).models[0].scopes[0].curves[0].decision
        assert len(curve) == 99
        for point in curve:
            called, odds = first >= point.threshold, point.threshold / (1 - point.threshold)
            benefit = ((called & (truth == 1)).sum() - odds * (called & (truth == 0)).sum()) / 120
            assert point.model == pytest.approx(benefit)
            assert point.low is not None
            assert point.high is not None
            assert point.low - 1e-9 <= point.model <= point.high + 1e-9

    def test_comparisons_by_counts_and_means_are_those_of_all_patients(self) -> None:
        first, second, truth = two_classes(5, 180)
        result = analysed(first, second, truth, split(180, 5))
        found = {one.metric: one for one in result.comparisons}
        right = [(scores >= THRESHOLDS[0]) == (truth == 1) for scores in (first, second)]
        for name, members in (("accuracy", truth >= 0), ("sensitivity", truth == 1), ("specificity", truth == 0)):
            one, two = right[0][members], right[1][members]
            table = [int(cell.sum()) for cell in (one & two, one & ~two, ~one & two, ~one & ~two)]
            expected = mcnemar(*table)
            assert list(found[name].counts or ()) == table
            assert (found[name].difference, found[name].low, found[name].high, found[name].p) == (
                expected.difference, expected.low, expected.high, expected.p_mid,
            )  # fmt: skip
        errors = (first - truth) ** 2 - (second - truth) ** 2
        assert found["brier"].difference == pytest.approx(errors.mean())

    def test_the_difference_of_aucs_at_one_site_is_delongs_and_over_sites_near_to_it(self) -> None:
        first, second, truth = two_classes(6, 600)
        central = delong_pair(first, second, truth)
        alone = analysed(first, second, truth, [np.arange(600)]).comparisons[0]
        assert alone.difference == pytest.approx(central.value)
        assert (alone.low, alone.high) == pytest.approx(central.interval())
        assert alone.p == pytest.approx(central.p_value())
        thirds = list(np.array_split(np.random.default_rng(6).permutation(600), 3))
        shared = analysed(first, second, truth, thirds).comparisons[0]
        assert shared.difference == pytest.approx(central.value, abs=central.standard_error)
        assert shared.pooled_difference == pytest.approx(central.value, abs=0.005)


class TestMeans:
    def test_means_limits_of_agreement_and_lesions_are_those_of_all_patients(self) -> None:
        rng = np.random.default_rng(7)
        dice, distance = rng.beta(8, 3, 90), rng.gamma(2, 3, 90)
        volume = rng.normal(1.0, 4.0, 90)
        dice[::17] = math.nan
        plan, parts = plan_for("segmentation", SITES), split(90, 7)
        records = []
        for name, part in zip(SITES, parts, strict=True):
            same = {"true_ml": 20.0, "lesions_true": 4, "lesions_found": 3, "lesions_false": 1}
            patients = {
                f"p{k}": {
                    "dice": dice[k],
                    "hd95_mm": distance[k],
                    "found_ml": 20 + volume[k],
                    **same,
                }
                for k in part
            }
            records.append(validation_record(name, plan, [patients], {}))
        found = analyse(plan, records, seed=0).models[0].scopes[0]
        assert found.figures["dice"].value == pytest.approx(np.nanmean(dice))
        assert found.undefined == {"dice": 6}
        assert found.figures["hd95_mm"].value == pytest.approx(distance.mean())
        limits, spread = found.volumes[0], volume.std(ddof=1)
        assert limits.bias.value == pytest.approx(volume.mean())
        interval = ttest_1samp(volume, 0.0).confidence_interval()
        assert (limits.bias.low, limits.bias.high) == pytest.approx(tuple(interval))
        assert limits.lower.value == pytest.approx(volume.mean() - 1.959964 * spread)
        assert limits.upper.value == pytest.approx(volume.mean() + 1.959964 * spread)
        assert found.figures["lesion_sensitivity"].value == pytest.approx(3 / 4)
        assert found.figures["false_positives_per_patient"].value == pytest.approx(1.0)

    def test_a_mean_at_one_site_has_the_t_interval_of_its_patients(self) -> None:
        values = np.random.default_rng(8).beta(8, 3, 30)
        plan = plan_for("segmentation", ["a"])
        found = analyse(plan, [record(plan, "a", whole(30, measured({"dice": values})))], seed=0)
        figure = found.models[0].scopes[0].figures["dice"]
        assert (figure.low, figure.high) == pytest.approx(tuple(ttest_1samp(values, 0.0).confidence_interval()))


class TestSurvival:
    def test_the_index_is_that_of_all_pairs_within_sites(self) -> None:
        rng = np.random.default_rng(9)
        risk, parts = rng.normal(size=120), split(120, 9)
        time, event = rng.exponential(np.exp(-risk)), rng.random(120) < 0.6
        plan = plan_for("survival", SITES)
        records = [
            validation_record(
                name, plan, [{f"p{k}": {"log_risk": risk[k], "time": time[k], "event": event[k]} for k in part}], {}
            )
            for name, part in zip(SITES, parts, strict=True)
        ]
        concordant = pairs = 0
        for part in parts:
            for i in part:
                for j in part:
                    if event[i] and time[i] < time[j]:
                        pairs += 1
                        concordant += int(risk[i] > risk[j])
        figure = analyse(plan, records, seed=0).models[0].scopes[0].figures["c_index"]
        assert figure.value == pytest.approx(concordant / pairs)
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < concordant / pairs < figure.high


def prostate_patients() -> tuple[FloatArray, IntArray, NDArray[np.str_]]:
    """log PSA, log volume and age; whether cancer was found; hospital. PI-CAI, one study a patient."""
    rows, seen = [], set()
    with (SHARED / "picai" / "marksheet.csv").open() as file:
        for row in csv.DictReader(file):
            values = [row["psa"], row["prostate_volume"], row["patient_age"]]
            if row["patient_id"] in seen or not all(values):
                continue
            seen.add(row["patient_id"])
            psa, volume, age = map(float, values)
            if psa > 0 and volume > 0:
                rows.append((math.log(psa), math.log(volume), age, row["case_csPCa"] == "YES", row["center"]))
    columns = list(zip(*rows, strict=True))
    return np.array(columns[:3]).T, np.array(columns[3]).astype(np.int64), np.array(columns[4])


@pytest.mark.realdata
@pytest.mark.skipif(not (SHARED / "picai").is_dir(), reason=f"no real data at {SHARED}; set EUCAIM_FL_SHARED_DATA")
class TestRealHospitals:
    def test_figures_of_three_real_hospitals_are_those_of_their_patients_together(self) -> None:
        features, truth, hospital = prostate_patients()
        full = LogisticRegression(max_iter=1000).fit(features, truth).predict_proba(features)[:, 1]
        psa = LogisticRegression(max_iter=1000).fit(features[:, :1], truth).predict_proba(features[:, :1])[:, 1]
        parts = [np.flatnonzero(hospital == name) for name in sorted(set(hospital))]
        assert len(parts) == 3
        for shared in (parts, split(len(truth), 0)):
            result = analysed(full, psa, truth, shared)
            for model, scores in zip(result.models, (full, psa), strict=True):
                assert_figures_of(model.scopes[0], scores, truth, shared)
            assert result.comparisons[0].outcome == "shown"
        between = analysed(full, psa, truth, parts).models[0].scopes[0].between[0]
        for row, part in zip(between.rows, parts, strict=True):
            assert row.value == pytest.approx(roc_auc_score(truth[part], full[part]), abs=0.01)
