"""Attacks by questions on a hospital that judges frozen models: which patients can be told apart by what left.

The site's own client works, in this process; the model, which answers here what it likes, needs no locked process.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eucaim_fl.cohorts import preparation
from eucaim_fl.errors import CohortError
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.site import judging
from eucaim_fl.site.disclosure import LeastPeople
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.judging import JudgingNode
from eucaim_fl.site.validation_cells import told_record, told_sets
from eucaim_fl.site.validation_rounding import CellRules
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation.record import EVERYBODY, ValidationRecord
from tests.attacks.frozen import contract, validating
from tests.conftest import tiny_recipe, write_hospital
from tests.validation.frozen import CLASSES, any_results, frozen_plan

APART = 5
PATIENTS = 40
FILE = b"a model"


class _Said:
    """A model that answers here."""

    layers = ("none",)

    def allow(self, _images: int) -> None:
        """As the locked process: from here on the time of an image counts."""

    def close(self) -> None:
        """As the locked process."""

    def predict(self, images: Any) -> Any:
        """What is bright is a lesion."""
        lesion = np.where(images > 0.5, 0.9, 0.1).astype(np.float32)
        return np.concatenate([1 - lesion, lesion], axis=1)


class Hospital:
    """Site `a`, whose data are confidential; half of its patients are women, and patient n is 30 + n years old."""

    def __init__(self, root: Path) -> None:
        self.root, self.table = root, root / "data" / "a" / "clinical.csv"
        self.site_file = write_hospital(root, "a", patients=PATIENTS + 1, data_is="confidential")
        with self.table.open() as stream:
            rows = list(csv.DictReader(stream))
        self.rows = [{**row, "sex": "FM"[n % 2], "age": str(30 + n)} for n, row in enumerate(rows)]
        self.base = make_plan(tiny_recipe(root, [self.site_file], rounds=1), ("a",))
        self.told: list[tuple[FederationPlan, dict[tuple[str, str], frozenset[str]]]] = []
        self.settings()

    def settings(self, *, patients: int = PATIENTS, withdrawn: tuple[int, ...] = (), **release: Any) -> None:
        """What the site file says, who is in the cohort, and whose consent was withdrawn."""
        with self.table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows[:patients])
        lines = [f"{row['patient_id']},given,2024-01-01,research" for row in self.rows]
        for n in withdrawn:
            lines[n] = lines[n].replace("given", "withdrawn")
        consent = self.root / "consent.csv"
        consent.write_text("\n".join(["patient_id,status,date,purposes", *lines]) + "\n")
        values = yaml.safe_load(self.site_file.read_text())
        values |= {"consent": {"table": str(consent)}, "release": {**values["release"], **release}}
        self.site_file.write_text(yaml.safe_dump(values))

    def judged(self, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> ValidationRecord:
        """What leaves of a plan; the sets of patients behind each of its figures are added to `told`."""
        plan = validating(self.base, contract(self.base, FILE), **asked)

        def watched(site: str, plan: FederationPlan, *args: Any, failed: Any, forbidden: Any) -> ValidationRecord:
            self.told.append((plan, told_sets(plan, *args, forbidden)))
            return told_record(site, plan, *args, failed=failed, forbidden=forbidden)

        monkeypatch.setattr(judging, "told_record", watched)
        monkeypatch.setattr(judging, "open_model", lambda *_, **__: _Said())
        node = JudgingNode(self.site_file, plan)
        answer = node.validate(2, {"hostile": memoryview(FILE)})
        assert refusals(answer, plan, (), node.bounds) == ()
        record = answer.report.validated
        assert record is not None
        return record

    def added_up(self, number: int, population: str) -> set[frozenset[str]]:
        """All sets of patients whose sums follow from what a plan was told: unions of a rule's groups and the rest."""
        plan, sets = self.told[number]
        whole = sets.get((population, EVERYBODY), frozenset())
        found = {whole}
        for rule in plan.validation.subgroups if plan.validation is not None else ():
            own = [sets[population, name] for name in possible_groups(rule) if (population, name) in sets]
            own.append(whole.difference(*own))
            for count in range(len(own) + 1):
                found |= {frozenset().union(*some) for some in combinations(own, count)}
        return found - {frozenset()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Hospital]]:
    """The hospital as at its beginning: nobody was told anything."""
    real = preparation.map_isolated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "map_isolated", lambda *args, **options: real(*args, **{**options, "workers": 0}))
        made = Hospital(tmp_path_factory.mktemp("hospital"))

        def begin() -> Hospital:
            made.settings(minimum_metric_patients=5)
            made.told = []
            (made.root / "cache" / "a.records" / "told.sqlite").unlink(missing_ok=True)
            return made

        yield begin


@pytest.fixture
def hospital(prepared: Callable[[], Hospital]) -> Hospital:
    return prepared()


def told(record: ValidationRecord) -> set[str]:
    return {one.scope for one in record.scopes if not one.withheld}


def nobody_is_told_apart(hospital: Hospital) -> None:
    """No two sums of any two answers are over sets of patients that differ by a few; so to subtract gives nothing."""
    populations = {population for _, sets in hospital.told for population, _ in sets}
    for one, other in combinations(range(len(hospital.told)), 2):
        for population in populations:
            for first in hospital.added_up(one, population):
                near = [len(first ^ second) for second in hospital.added_up(other, population)]
                assert not [n for n in near if 0 < n < APART]


AGE = "subgroups"


def by_age(*edges: float) -> dict[str, Any]:
    return {AGE: [{"by": "age", "edges": list(edges)}]}


class TestFewPatients:
    def test_a_group_of_four_is_neither_told_of_nor_what_is_left_of_the_others(self, hospital, monkeypatch):
        record = hospital.judged(monkeypatch, **by_age(34, 50))  # four, sixteen, twenty patients
        assert told(record) == {EVERYBODY, "age>=50"}
        assert {(one.patients, one.models) for one in record.scopes if one.withheld} == {(0, ())}

    def test_five_patients_are_told_of_where_the_site_asks_for_no_more_and_never_else(self, hospital, monkeypatch):
        assert "age<35" in told(hospital.judged(monkeypatch, **by_age(35)))
        hospital.settings(minimum_metric_patients=6)
        assert told(hospital.judged(monkeypatch, bins=20, **by_age(35))) == {EVERYBODY}

    def test_a_site_with_too_few_patients_tells_a_code_and_keeps_nothing(self, hospital, monkeypatch):
        hospital.settings(withdrawn=tuple(range(5, PATIENTS + 1)), minimum_metric_patients=6)
        before = set((hospital.root / "cache" / "a.records" / "validations").glob("*"))
        with pytest.raises(CohortError, match="Too few patients") as caught:
            hospital.judged(monkeypatch, bins=30)
        assert "5" not in caught.value.message
        assert set((hospital.root / "cache" / "a.records" / "validations").glob("*")) == before


class TestQuestionsThatDifferByOnePatient:
    def test_many_plans_each_with_an_edge_a_year_further(self, hospital, monkeypatch):
        answers = [told(hospital.judged(monkeypatch, **by_age(*edges))) for edges in ((50,), (51,), (40, 51, 60))]
        assert answers[0] == {EVERYBODY, "age<50", "age>=50"}
        assert answers[1] == {EVERYBODY}
        nobody_is_told_apart(hospital)

    def test_two_rules_asked_by_two_plans_tell_no_more_than_by_one(self, hospital, monkeypatch):
        """All women, and by age all women but one: as bands of which none is small."""
        for n, row in enumerate(hospital.rows):
            row["sex"] = "F" if n < 20 else "M"
        hospital.settings()
        hospital.judged(monkeypatch, subgroups=[{"by": "sex"}])
        answer = told(hospital.judged(monkeypatch, **by_age(40, 49, 60)))
        assert EVERYBODY in answer
        nobody_is_told_apart(hospital)
        for n, row in enumerate(hospital.rows):
            row["sex"] = "FM"[n % 2]

    def test_a_withdrawal_between_two_questions(self, hospital, monkeypatch):
        asked = {AGE: [{"by": "sex"}, {"by": "age", "edges": [50]}]}
        hospital.judged(monkeypatch, **asked)
        hospital.settings(withdrawn=(3,))
        record = hospital.judged(monkeypatch, **asked)
        assert EVERYBODY in told(record)
        gone = hospital.rows[3]["patient_id"]
        assert gone not in frozenset().union(*hospital.told[1][1].values())
        nobody_is_told_apart(hospital)

    def test_a_patient_who_joins_between_two_questions(self, hospital, monkeypatch):
        asked = {AGE: [{"by": "sex"}, {"by": "age", "edges": [50]}]}
        first = hospital.judged(monkeypatch, **asked)
        hospital.settings(patients=PATIENTS + 1)
        second = hospital.judged(monkeypatch, bins=20, **asked)
        assert second.scopes[0].patients == first.scopes[0].patients
        assert second.scopes[0].models[0].moments == first.scopes[0].models[0].moments
        nobody_is_told_apart(hospital)


# --- what one patient's score can do ----------------------------------------------------------------------------------

LEAST = LeastPeople(training=10, metric=5, base=5, apart=5)


def scored(plan: FederationPlan, digits: int, scores: dict[int, float]) -> ValidationRecord:
    """What is told of 20 patients with and 20 without the disease; those of whom nothing is said have 0 or 1 by turns.

    The five oldest with the disease are a group: the smallest one in which a patient can stand.
    """
    results, groups = any_results(plan, PATIENTS)[0], {}
    for n, name in enumerate(results):
        score = scores.get(n, float(n % 2))
        results[name] = {"probabilities": (1 - score, score), "truth": int(n < 20)}
        if plan.validation is not None and plan.validation.subgroups:
            groups[name] = {"age>=80" if n < 5 else "age<80"}
    return told_record("a", plan, [results], groups, CellRules(LEAST, digits=digits))


class TestThresholdsChosenToIsolateAPatient:
    @pytest.mark.parametrize("threshold", [0.6123, 0.6125])
    def test_a_threshold_beside_a_score_does_not_say_on_which_side_it_is(self, threshold):
        plan = frozen_plan(CLASSES, thresholds=[threshold])
        told = [scored(plan, 0, {0: score}).scopes[0].models[0] for score in (0.6121, 0.6124, 0.6127)]
        assert told[0].scores == told[1].scores == told[2].scores
        assert told[0].confusion == told[2].confusion
        assert not [count for count in told[0].confusion if count % 5]

    def test_sixteen_thresholds_around_a_score_that_is_not_the_middle_of_five_do_not_show_it(self):
        plan = frozen_plan(CLASSES, thresholds=[0.6 + k / 1000 for k in range(16)])
        others = dict.fromkeys(range(1, 20), 0.2)  # its neighbours by score are below it
        records = [scored(plan, 0, {**others, 0: score}) for score in (0.6001, 0.6051, 0.6141)]
        histograms = [one.scopes[0].models[0].scores for one in records]
        assert histograms[0] == histograms[1] == histograms[2]


class TestAModelThatCarriesAPictureOut:
    """No rounding stops a model that says nothing of all patients but one. These tests say how much it gets out: the
    figures in sites/README.md are from here."""

    def told_apart(self, digits: int, tried: int) -> int:
        """How many different records one patient's score can make, where all others are arranged for it."""
        plan = frozen_plan(CLASSES, subgroups=[{"by": "age", "edges": [80]}], bins=10)
        others = {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0, **{n: float(n >= 13) for n in range(5, 20)}}
        return len({repr(scored(plan, digits, {**others, 0: k / tried})) for k in range(tried + 1)})

    @pytest.mark.parametrize("digits", [0, 1])
    def test_what_one_score_can_tell_is_bounded_by_decimals_and_bins(self, digits):
        """Mean and mean square of five and of all change so often at most, and so do the bins of both."""
        places, bins = 10**digits, 10
        most = 2 * (places / 5 + 1) + 2 * (places / PATIENTS + 1) + 2 * (bins - 1)
        found = self.told_apart(digits, 60)
        assert bins <= found <= 1 + most

    def test_a_pixel_of_ten_bits_leaves_in_one_plan_and_is_read_from_a_mean(self):
        """The limit that the site's README names; against it stand the policy's formats, plans and decimals."""
        plan = frozen_plan(CLASSES, subgroups=[{"by": "age", "edges": [80]}])
        for pixel in (3, 512, 1022):
            score = 1 - math.sqrt(pixel / 1023)
            record = scored(plan, 4, {0: score, **dict.fromkeys(range(1, 5), 1.0)})
            count, total, _ = next(one for one in record.scopes if one.scope == "age>=80").models[0].moments["brier"]
            assert round(1023 * 5 * total / count) == pixel
