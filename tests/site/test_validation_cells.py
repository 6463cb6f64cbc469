"""A validation's record as it leaves: what a few patients did can't be found in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.errors import DataError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.disclosure import LeastPeople
from eucaim_fl.site.validation_cells import told_beside, told_cells, told_record, told_sets
from eucaim_fl.site.validation_rounding import CellRules, coarse_record, objections_to
from eucaim_fl.validation.patient_figures import scope_record, validation_record
from eucaim_fl.validation.record import (
    EVERYBODY,
    TOO_FEW,
    ModelFigures,
    ScopeRecord,
    ValidationRecord,
    check_record,
)
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, THREE, any_results, frozen_plan

LEAST = LeastPeople(training=10, metric=5, base=5, apart=5)
RULES = CellRules(LEAST, digits=3)
OPEN = CellRules(LeastPeople(1, 1, 1, 1))
TASKS = (MASKS, CLASSES, THREE, LABELS, SURVIVAL)
SUBGROUPS = [{"by": "sex"}, {"by": "age", "edges": [50]}]


def plan_for_task(task: dict[str, Any], models: int = 2) -> FederationPlan:
    return frozen_plan(task, models=models, subgroups=SUBGROUPS, thresholds=[0.3, 0.5])


def grouped(names: list[str], seed: int) -> dict[str, set[str]]:
    """Patients in groups, some of which have few."""
    rng = np.random.default_rng(seed)
    sex = rng.choice(["F", "M", "O"], size=len(names), p=[0.55, 0.4, 0.05])
    age = rng.choice(["<50", ">=50"], size=len(names), p=[0.3, 0.7])
    return {name: {f"sex={s}", f"age{a}"} for name, s, a in zip(names, sex, age, strict=True)}


def scopes_of(record: ValidationRecord) -> dict[str, ScopeRecord]:
    return {one.scope: one for one in record.scopes}


def classified(positive: int, negative: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    truths = [1] * positive + [0] * negative
    return {
        f"p{n:03d}": {"probabilities": (1 - p, p), "truth": y}
        for n, (p, y) in enumerate(zip(rng.random(len(truths)), truths, strict=True))
    }


class TestToldRecord:
    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(TASKS), st.integers(0, 80), st.integers(0, 10**6), st.sampled_from([None, 0, 2, 6]))
    def test_it_passes_the_gate_and_the_coordinators_check(self, task, patients, seed, digits):
        plan, rules = plan_for_task(task), CellRules(LEAST, digits=digits)
        results = any_results(plan, patients, seed)
        record = told_record("a", plan, results, grouped(list(results[0]), seed), rules, failed={"timed_out": 8})
        check_record(record, plan)
        assert objections_to(record, plan, rules) == ()
        assert coarse_record(record, plan, rules) == record
        assert record.failed == {"timed_out": 5}

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from(TASKS), st.integers(1, 40), st.integers(0, 10**6))
    def test_of_data_that_hide_nobody_all_is_told_as_it_is(self, task, patients, seed):
        plan = plan_for_task(task)
        results = any_results(plan, patients, seed)
        groups = grouped(list(results[0]), seed)
        exact = scopes_of(validation_record("a", plan, results, groups))
        told = scopes_of(told_record("a", plan, results, groups, OPEN))
        for name, one in told.items():
            sided = one.withheld or task in (LABELS, SURVIVAL, MASKS)
            assert sided or one.models[0].scores.items() <= exact[name].models[0].scores.items()
            assert sided or one.models[0].confusion == exact[name].models[0].confusion
            assert sided or one.pair.auc == exact[name].pair.auc
            assert one.withheld or one.models[0].moments.items() <= exact[name].models[0].moments.items()
            assert not one.withheld or name not in exact or task in (LABELS, SURVIVAL)

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(TASKS), st.integers(20, 80), st.integers(0, 10**6))
    def test_no_two_sets_of_a_population_differ_by_a_few(self, task, patients, seed):
        plan = plan_for_task(task)
        results = any_results(plan, patients, seed)
        sets = told_sets(plan, results, grouped(list(results[0]), seed), RULES)
        for (one, members), (other, others) in combinations(sets.items(), 2):
            if one[0] == other[0]:
                assert not 0 < len(members ^ others) < LEAST.apart
        assert all(len(members) >= LEAST.metric for members in sets.values())

    @pytest.mark.parametrize("few", [1, 4])
    def test_a_class_with_few_looks_like_one_that_nobody_has(self, few):
        plan = frozen_plan(CLASSES)
        with_few, without = classified(few, 20), {f"p{n + few:03d}": None for n in range(20)}
        without = {name: with_few[name] for name in without}
        told = [told_record("a", plan, [one], {}, RULES) for one in (with_few, without)]
        assert told[0] == told[1]
        assert told[0].scopes[0].patients == 20
        assert told[0].scopes[0].models[0].confusion[2:] == (0, 0)

    def test_a_class_with_few_in_one_group_is_held_back_in_another_too(self):
        plan = frozen_plan(CLASSES, subgroups=[{"by": "sex"}])
        results = classified(20, 40)
        groups = {name: {"sex=M" if n in (0, 1, 2) or n >= 40 else "sex=F"} for n, name in enumerate(results)}
        told = scopes_of(told_record("a", plan, [results], groups, RULES))
        assert told["all"].models[0].confusion[2] + told["all"].models[0].confusion[3] == 20
        for name in ("sex=F", "sex=M"):
            assert sum(told[name].models[0].confusion[2:]) == 0  # 17 of 20 women would tell of 3 men
            assert told[name].patients == 20

    def test_a_group_of_few_is_no_difference_of_the_others_and_looks_as_if_nobody_were_in_it(self):
        plan = frozen_plan(CLASSES, subgroups=[{"by": "sex"}])
        results = classified(30, 30)
        sex = ["M" if n % 30 < 2 else "O" if n % 30 < 10 else "F" for n in range(60)]
        groups = {name: {f"sex={s}"} for name, s in zip(results, sex, strict=True)}
        told = scopes_of(told_record("a", plan, [results], groups, RULES))
        assert told["sex=F"].patients == 40
        assert told["sex=M"] == replace(told["sex=unknown"], scope="sex=M")
        assert told["sex=O"] == replace(told["sex=unknown"], scope="sex=O")
        assert told["sex=M"] == ScopeRecord("sex=M", 0, withheld=TOO_FEW)

    def test_what_one_patient_of_a_small_group_did_changes_nothing_that_can_be_subtracted(self):
        """All groups that are told stay the same to the bit, whatever the patient of the withheld ones did."""
        plan = frozen_plan(MASKS, subgroups=[{"by": "sex"}])
        results = any_results(plan, 40)[0]
        groups = {name: {"sex=M" if n < 3 else "sex=O" if n < 10 else "sex=F"} for n, name in enumerate(results)}
        other = {**results, "p000": {**results["p000"], "dice": 0.123}}
        one, two = (scopes_of(told_record("a", plan, [own], groups, RULES)) for own in (results, other))
        assert {name for name, scope in one.items() if not scope.withheld} == {"all", "sex=F"}
        assert one["sex=F"] == two["sex=F"]
        rest = one["all"].patients - one["sex=F"].patients
        assert rest >= LEAST.apart

    def test_a_metric_with_few_values_in_a_group_is_left_out_there(self):
        plan = frozen_plan(MASKS, subgroups=[{"by": "sex"}])
        results = any_results(plan, 60)[0]
        for n, name in enumerate(results):
            results[name] |= {"dice": np.nan if n >= 33 else 0.5, "hd95_mm": 1.0}
        groups = {name: {"sex=M" if n >= 30 else "sex=F"} for n, name in enumerate(results)}
        told = scopes_of(told_record("a", plan, [results], groups, RULES))
        assert "dice" in told["all"].models[0].moments
        for name in ("sex=F", "sex=M"):
            assert "dice" not in told[name].models[0].moments
            assert told[name].models[0].moments["hd95_mm"][0] == 30

    def test_lesions_of_a_few_patients_are_not_told_of(self):
        plan = frozen_plan(MASKS)
        results = any_results(plan, 30)[0]
        for n, name in enumerate(results):
            results[name] |= {"lesions_true": 3 * (n < 4), "lesions_found": n < 4}
        assert told_record("a", plan, [results], {}, RULES).scopes[0].models[0].lesions == {}

    def test_a_difference_of_models_is_not_told_beside_figures_that_isolate_one_patient(self):
        plan = frozen_plan(MASKS, models=2)
        results = any_results(plan, 30)
        for number, own in enumerate(results):
            for n, name in enumerate(own):
                own[name] |= {"dice": np.nan if number and n == 0 else 0.5, "hd95_mm": 1.0}
        told = told_record("a", plan, results, {}, RULES).scopes[0]
        assert all("dice" in one.moments for one in told.models)
        assert set(told.pair.differences) == {"hd95_mm", "surface_dice", "volume_difference_ml"}

    @pytest.mark.parametrize("models", [1, 2])
    @pytest.mark.parametrize("few", [1, 8])
    def test_a_mean_over_labels_tells_of_nobody_who_has_but_some_of_them(self, models, few):
        """Twice the mean's sum less both labels' sums would be the value of the one patient who has one label."""
        plan = frozen_plan({"name": "segmentation", "labels": ["gland", "zone"]}, models=models)
        results = any_results(plan, 40)
        for own in results:
            for n, one in enumerate(own.values()):
                gland, zone = 0.5 + n / 100, np.nan if n < few else 0.25 + n / 100
                one |= {"dice_gland": gland, "dice_zone": zone, "dice": np.nanmean([gland, zone])}
        told = told_record("a", plan, results, {}, RULES).scopes[0]
        for one in told.models:
            assert {"dice_gland", "dice_zone"} <= set(one.moments)
            assert ("dice" in one.moments) == (few >= LEAST.metric)
        if told.pair is not None:
            assert ("dice" in told.pair.differences) == (few >= LEAST.metric)

    def test_a_label_of_which_one_side_is_small_is_not_told_of(self):
        plan = frozen_plan(LABELS)
        results = any_results(plan, 40)[0]
        for n, name in enumerate(results):
            results[name] |= {"truth": (float(n < 3), float(n % 2))}
        told = told_record("a", plan, [results], {}, RULES).scopes[0].models[0]
        assert set(told.scores) == {"oedema"}
        assert set(told.moments) == {"brier_oedema"}

    def test_of_fewer_than_the_least_nothing_is_told(self):
        plan = plan_for_task(CLASSES)
        results = any_results(plan, 4)
        record = told_record("a", plan, results, grouped(list(results[0]), 0), RULES, failed={"crashed": 4})
        assert {(one.patients, one.withheld, one.models) for one in record.scopes} == {(0, TOO_FEW, ())}
        assert record.failed == {}

    def test_what_the_memory_forbids_is_not_told(self):
        plan = frozen_plan(CLASSES, subgroups=[{"by": "sex"}])
        results = classified(30, 30)
        groups = {name: {"sex=M" if n % 2 else "sex=F"} for n, name in enumerate(results)}
        forbidden = [(name, "sex=M") for name in ("no", "yes")]
        told = scopes_of(told_record("a", plan, [results], groups, RULES, forbidden=forbidden))
        assert told["sex=M"].withheld
        assert not told["sex=F"].withheld
        assert ("no", "sex=M") not in told_sets(plan, [results], groups, RULES, forbidden)

    def test_two_groups_for_a_patient_are_refused(self):
        plan = frozen_plan(CLASSES, subgroups=[{"by": "sex"}])
        results, groups = [classified(1, 0)], {"p000": {"sex=F", "sex=M"}}
        with pytest.raises(DataError, match="exactly one group"):
            told_sets(plan, results, groups, RULES)
        with pytest.raises(DataError, match="exactly one group"):
            told_cells(plan, results, groups, RULES)
        with pytest.raises(DataError, match="exactly one group"):
            told_beside(plan, results, groups, RULES, lambda kind: ())
        with pytest.raises(DataError, match="exactly one group"):
            told_record("a", plan, results, groups, RULES)


class TestToldBeside:
    """Two plans, one after the other."""

    AGES = (*range(20, 50), *range(51, 81)) * 2 + (50,)

    def told(self, task: dict[str, Any], edges: list[int], memory: dict[str, list[Any]], models: int = 1):
        """What a plan of some edges of age tells: scope → told patients by population; the memory grows."""
        plan = frozen_plan(task, models=models, subgroups=[{"by": "age", "edges": edges}])
        results = any_results(plan, len(self.AGES))
        for own in results:
            for n, name in enumerate(own):
                if "truth" in own[name] and task["name"] == "classification":
                    own[name]["truth"] = n % len(task["classes"])
                elif task["name"] == "multilabel":
                    own[name]["truth"] = (float(n % 2), float(n % 3 == 0))
        names = plan.validation.subgroups[0].groups()
        places = np.searchsorted(edges, self.AGES, side="right")
        groups = {name: {names[place]} for name, place in zip(results[0], places, strict=True)}
        forbidden, said = told_beside(plan, results, groups, RULES, lambda kind: tuple(memory.get(kind, ())))
        for kind, several in said.items():
            memory.setdefault(kind, []).extend(several)
        record = told_record("a", plan, results, groups, RULES, forbidden=forbidden)
        assert objections_to(record, plan, RULES) == ()
        return told_sets(plan, results, groups, RULES, forbidden), record

    @pytest.mark.parametrize("task", TASKS, ids=lambda task: task["name"] + str(len(task.get("classes", ()))))
    @pytest.mark.parametrize("edges", [[51], [35, 51], [35, 51, 65]])
    def test_groups_whose_edge_moved_by_one_patient_can_not_be_subtracted(self, task, edges):
        memory: dict[str, list[Any]] = {}
        first, _ = self.told(task, [50], memory)
        second, record = self.told(task, edges, memory)
        young = {name: members for (name, scope), members in first.items() if scope == "age<50"}
        assert young
        for name, members in young.items():
            groups = [own for (what, scope), own in second.items() if what == name and scope != EVERYBODY]
            for chosen in range(2 ** len(groups)):
                union = frozenset().union(*(own for k, own in enumerate(groups) if chosen >> k & 1))
                assert not 0 < len(union ^ members) < LEAST.apart
        assert not record.scopes[0].withheld

    def test_the_same_plan_is_answered_the_same_again(self):
        memory: dict[str, list[Any]] = {}
        first = self.told(MASKS, [35, 50], memory, models=2)
        assert first == self.told(MASKS, [35, 50], memory, models=2)

    def test_a_column_is_the_same_as_classes_and_as_a_label(self):
        memory: dict[str, list[Any]] = {}
        self.told({"name": "classification", "target": "Mass", "classes": ["0", "1"]}, [50], memory)
        sets, _ = self.told({"name": "multilabel", "targets": ["mass", "oedema"]}, [51], memory)
        scopes = {scope for name, scope in sets if name.endswith("mass")}
        assert scopes == {EVERYBODY}
        assert {scope for name, scope in sets if name.endswith("oedema")} > {EVERYBODY}


class TestCoarseRecord:
    def test_what_is_told_stays_near_the_truth(self):
        plan = frozen_plan(CLASSES, models=2, thresholds=[0.3, 0.5])
        results = any_results(plan, 203, seed=5)
        exact, told = (
            f("a", plan, results, {}, *more) for f, more in ((validation_record, ()), (told_record, (RULES,)))
        )
        first, second = exact.scopes[0], told.scopes[0]
        for key, counts in first.pair.agreement.items():
            assert all(abs(a - b) <= 5 for a, b in zip(counts, second.pair.agreement[key], strict=True))
        for one, other in zip(first.models, second.models, strict=True):
            assert all(abs(a - b) <= 5 for a, b in zip(one.confusion, other.confusion, strict=True))
            for side in (0, 1):
                reached = [np.cumsum(model.scores["yes"][side]) for model in (one, other)]
                assert abs(reached[0] - reached[1]).max() <= 5
        assert abs(first.pair.auc["yes"][0] - second.pair.auc["yes"][0]) < 1e-3

    def test_every_count_of_people_is_on_the_base(self):
        plan = plan_for_task(MASKS)
        results = any_results(plan, 47)
        for one in told_record("a", plan, results, grouped(list(results[0]), 1), RULES).scopes:
            for model in one.models:
                lesions = [n for counts in model.lesions.values() for n in counts]
                people = [one.patients, *(sums[0] for sums in model.moments.values()), *model.undefined.values()]
                assert not any(n % 5 for n in (*people, *lesions))

    def test_what_is_not_listed_does_not_leave(self):
        plan = plan_for_task(CLASSES)
        results = any_results(plan, 60)
        groups = grouped(list(results[0]), 0)
        listed = told_record("a", plan, results, groups, replace(RULES, listed=frozenset({"brier"}))).scopes[0]
        assert listed.models[0].moments
        assert (listed.models[0].scores, listed.models[0].confusion) == ({}, ())
        assert (listed.pair.agreement, listed.pair.auc) == ({}, {})
        assert listed.pair.differences
        assert not told_record("a", plan, results, groups, replace(RULES, histograms=False)).scopes[0].models[0].scores
        nothing = told_record("a", plan, results, groups, replace(RULES, listed=frozenset()))
        assert all(one.withheld for one in nothing.scopes)

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from(TASKS), st.sampled_from(["scores", "confusion", "brier", "dice", "lesions", "concordance"]))
    def test_whatever_is_listed_the_record_stays_the_same_a_second_time(self, task, name):
        plan, rules = plan_for_task(task), replace(RULES, listed=frozenset({name}))
        results = any_results(plan, 60)
        record = told_record("a", plan, results, grouped(list(results[0]), 0), rules)
        check_record(record, plan)
        assert objections_to(record, plan, rules) == ()


class TestObjectionsTo:
    PLAN = plan_for_task(CLASSES)
    RESULTS = any_results(PLAN, 60)
    GROUPS = grouped(list(RESULTS[0]), 0)
    RECORD = told_record("a", PLAN, RESULTS, GROUPS, RULES)

    def changed(self, **changes: Any) -> ValidationRecord:
        first, *others = self.RECORD.scopes
        return replace(self.RECORD, scopes=(replace(first, **changes), *others))

    def model(self, change: Callable[[ModelFigures], ModelFigures]) -> ValidationRecord:
        return self.changed(models=tuple(map(change, self.RECORD.scopes[0].models)))

    def test_an_exact_record_is_objected_to(self):
        exact = validation_record("a", self.PLAN, self.RESULTS, self.GROUPS)
        assert len(objections_to(exact, self.PLAN, RULES)) >= 2

    def test_figures_that_no_patients_can_have_are(self):
        (reason,) = objections_to(self.changed(patients=61), self.PLAN, RULES)
        assert "no patients can have" in reason

    def test_a_missing_group_is(self):
        fewer = replace(self.RECORD, scopes=self.RECORD.scopes[:-1])
        assert objections_to(fewer, self.PLAN, RULES) == ("a record in which groups are missing",)

    def test_a_mean_with_more_decimal_places_is(self):
        def finer(figures: ModelFigures) -> ModelFigures:
            n, total, squares = figures.moments["brier"]
            return replace(figures, moments={"brier": (n, total + n * 1e-5, squares)})

        (reason,) = objections_to(self.model(finer), self.PLAN, RULES)
        assert "decimal places" in reason

    def test_a_figure_off_the_list_is(self):
        (reason,) = objections_to(self.RECORD, self.PLAN, replace(RULES, listed=frozenset({"scores"})))
        assert "on the list" in reason

    def test_few_people_are(self):
        plan = frozen_plan(CLASSES)
        results = [classified(3, 20)]
        exact = validation_record("a", plan, results, {})
        assert "figures of fewer patients than the site's minimum" in objections_to(exact, plan, RULES)

    def test_one_side_of_a_label_alone_is(self):
        plan = frozen_plan(LABELS)
        results = any_results(plan, 20)[0]
        for name in results:
            results[name] |= {"truth": (1.0, 1.0)}
        record = validation_record("a", plan, [results], {})
        assert "figures of one side alone, which say that the other is small" in objections_to(record, plan, OPEN)

    def test_a_record_of_one_scope_is_none_of_a_plan_with_groups(self):
        alone = scope_record(EVERYBODY, self.PLAN, self.RESULTS)
        record = replace(self.RECORD, scopes=(alone,))
        assert "a record in which groups are missing" in objections_to(record, self.PLAN, RULES)
