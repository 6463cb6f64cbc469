"""What is wanted of a case: who is shared out alike, and what the cohort's fingerprint sees."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eucaim_fl.cohorts.cohort import open_cohort
from eucaim_fl.cohorts.targets import Wanted
from eucaim_fl.config import MultilabelConfig, SurvivalConfig
from eucaim_fl.sitefile import load_site_file


class TestWanted:
    @pytest.mark.parametrize(
        ("labels", "stratum"), [((0.0, 0.0), "0"), ((0.0, 1.0), "1"), ((math.nan, 1.0), "1"), ((0.0, math.nan), "0")]
    )
    def test_patients_with_any_label_are_shared_out_alike(self, labels: tuple[float, ...], stratum: str) -> None:
        assert Wanted.of_labels(labels).stratum == stratum

    def test_so_are_those_whose_event_was_seen(self) -> None:
        assert [Wanted.of_survival(5.0, event=event).stratum for event in (True, False)] == ["1", "0"]

    def test_every_value_changes_the_text(self) -> None:
        texts = {
            Wanted.of_labels((0.0, 1.0)).text(),
            Wanted.of_labels((0.0, math.nan)).text(),
            Wanted.of_survival(0.0, event=True).text() + " ",
            Wanted.of_survival(0.5, event=True).text(),
            Wanted.of_class(0).text(),
        }
        assert len(texts) == 5


@pytest.mark.integration
class TestACohort:
    @pytest.fixture
    def site(self, hospital):
        """Of 12 patients 4 died, one has an impossible time, and one nothing at all."""
        file: Path = hospital("a")
        table = load_site_file(file).cohort_folder() / "clinical.csv"
        head, *rows = table.read_text().splitlines()
        died = ["1", "0", "0"] * 4
        added = [f"{row},{10 * n},{died[n]},{n % 2}" for n, row in enumerate(rows)]
        added[4] = added[4].replace(",40,", ",-1,")
        added[5] = f"{rows[5]},,,"
        table.write_text("\n".join([f"{head},time_days,died,oedema", *added]) + "\n")
        return load_site_file(file)

    def test_survival_has_times_and_events_in_every_split(self, site, plan_for):
        task = SurvivalConfig(spatial_dims=2, time="time_days", event="died")
        cohort = open_cohort(site, plan_for(task, model={"name": "small_cnn", "args": {}}))
        targets = {c.patient: c.targets for split in cohort.splits for c in cohort.cases(split)}
        assert len(targets) == 10
        assert targets["PATIENT-003"] == (30.0, 1.0)
        assert sum(case.targets[1] for case in cohort.cases("train")) == 2
        assert {one.patient for one in cohort.quarantined} == {"PATIENT-004", "PATIENT-005"}

    def test_another_value_is_another_cohort_with_the_same_tensors(self, site, plan_for):
        model = {"name": "small_cnn", "args": {}}
        plans = [
            plan_for(SurvivalConfig(spatial_dims=2, time="time_days", event=event), model=model)
            for event in ("died", "oedema")
        ]
        plans.append(plan_for(MultilabelConfig(targets=("died", "oedema")), model=model))
        found = [open_cohort(site, plan) for plan in plans]
        assert len({cohort.fingerprint for cohort in found}) == 3
        entries = [{c.entry.image_path for s in one.splits for c in one.cases(s)} for one in found]
        assert entries[0] == entries[1] <= entries[2]
