"""Two channels of one patient, from DICOM files to an update: another resolution, another place, one network."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, uid, write_segmentation, write_series
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import CohortError, RecipeError
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.node import SiteNode, initial_arrays, network_for

pytestmark = pytest.mark.integration

T2, ADC = {"name": "t2", "modality": "MR", "words": ["t2", "tse"]}, {"name": "adc", "modality": "MR", "words": ["adc"]}


def ball(shape: tuple[int, int, int], affine: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Voxels whose centres lie within 8 mm of a place."""
    index = np.indices(shape).reshape(3, -1)
    places = affine[:3, :3] @ index + affine[:3, 3:]
    return (np.linalg.norm(places - centre_mm[:, None], axis=0) < 8).reshape(shape)


def write_prostates(root: Path, patients: int = 8) -> Path:
    """A tier-3 cohort of MR studies: T2 with a segmentation, ADC on a coarser and shifted grid, a localiser; the last
    patient has no ADC. Returns the site file."""
    fine = np.diag([-2.0, -2.0, 4.0, 1.0])
    fine[:3, 3] = [15.0, 15.0, -8.0]
    coarse = np.diag([-3.0, -3.0, 4.0, 1.0])
    coarse[:3, 3] = [19.5, 19.5, -10.0]
    rows, rng = [], np.random.default_rng(0)
    for number in range(patients):
        patient = f"EUCAIM-{number:016x}"
        study = Study(patient, uid("study", number), 2020, "M", 60, "PROSTATE")
        centre = rng.uniform(-5, 5, 3) * [1, 1, 0.5]
        for series, (word, affine, shape) in enumerate(
            (("T2 TSE tra", fine, (16, 16, 5)), ("ADC", coarse, (14, 14, 6)), ("localizer", fine, (16, 16, 3))), start=1
        ):
            if number == patients - 1 and word == "ADC":
                continue
            mask = ball(shape, affine, centre)
            values = rng.normal(100, 10, shape) + mask * (60 if word != "ADC" else -60)
            style = SeriesStyle("demo", "MR", 1.0, 0.0, 16, description=word)
            series_uid = uid("series", study.study_uid, series)
            folder = root / "data" / "imaging_data" / patient / study.study_uid
            slices = write_series(folder / series_uid, values, affine, study, style, series_number=series)
            if series == 1:
                write_segmentation(folder / "seg" / "1.dcm", slices, {"lesion": mask}, series_number=9)
            rows.append({"patient_id": patient, "study_uid": study.study_uid, "series_uid": series_uid})
    for table in ("imaging_mandatory_view.csv", "clinical_mandatory_view.csv"):
        with (root / "data" / table).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    site = {
        "name": "a",
        "cohort": {"layout": "eucaim_tier3", "folder": str(root / "data")},
        "cache": {"folder": str(root / "cache")},
        "release": {"data_is": "synthetic", "minimum_patients": 2, "minimum_metric_patients": 1},
    }
    (root / "a.yaml").write_text(yaml.safe_dump(site))
    return root / "a.yaml"


def plan_with(*channels: dict[str, Any], **data: Any) -> FederationPlan:
    config = ExperimentConfig.model_validate(
        {
            "name": "prostate",
            "sites": ("a",),
            "rounds": 1,
            "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
            "model": {"name": "unet", "args": {"channels": [4, 8], "strides": [2]}},
            "data": {
                "channels": channels,
                "size_voxels": [16, 16, None],
                "intensity": {"kind": "percentile", "low": 1.0, "high": 99.0},
                **data,
            },
            "training": {"batch_size": 4, "local_steps": 3},
        }
    )
    return make_plan(config, ("a",))


@pytest.fixture(scope="module")
def site_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prostates(tmp_path_factory.mktemp("site"))


class TestTwoChannels:
    def test_one_round_from_files_to_an_update(self, site_file: Path) -> None:
        plan = plan_with(T2, ADC)
        node = SiteNode(site_file, plan)
        assert [bad.reason for bad in node.cohort.quarantined] == [
            "No series of a patient fits the rule 'adc' (a wanted word missing)."
        ]
        specs, weights = initial_arrays(plan)
        assert any(spec.shape[1:2] == (2,) for spec in specs if len(spec.shape) == 4)
        answer = node.round(1, weights)
        assert answer.report.patients == 5
        assert refusals(answer, plan, node.specs(), node.bounds) == ()
        assert any(np.abs(array).max() > 0 for array in answer.update.values())
        final = node.final(2, weights)
        assert final.pictures is not None
        assert len(final.pictures) == node.cohort.patients("test")

    def test_both_show_the_same_place(self, site_file: Path) -> None:
        """The lesion is bright in T2 and dark in ADC, whose voxels lie elsewhere."""
        cases = SiteNode(site_file, plan_with(T2, ADC)).cohort.cases("train")
        for case in cases:
            lesion = np.asarray(case.label()) > 0
            t2, adc = np.asarray(case.image())
            assert t2[lesion].mean() > t2[~lesion].mean() + 0.3
            assert adc[lesion].mean() < adc[~lesion].mean() - 0.3

    def test_the_label_may_belong_to_the_other_channel_where_the_plan_resamples(self, site_file: Path) -> None:
        with pytest.raises(CohortError, match="Too few patients would train at this site") as caught:
            SiteNode(site_file, plan_with(ADC, T2))
        assert caught.value.local_detail.endswith("codes of what is set aside: EFL200, EFL203")
        swapped = SiteNode(site_file, plan_with(ADC, T2, labels_on_other_grid="resample", size_voxels=[12, 12, None]))
        straight = SiteNode(site_file, plan_with(T2, ADC))
        sizes = {
            case.patient: int((np.asarray(case.label()) > 0).sum()) * float(np.prod(case.spacing_mm))
            for case in straight.cohort.cases("train")
        }
        for case in swapped.cohort.cases("train"):
            volume = int((np.asarray(case.label()) > 0).sum()) * float(np.prod(case.spacing_mm))
            assert case.image().shape[0] == 2
            assert 0.5 * sizes[case.patient] < volume < 2 * sizes[case.patient]


class TestNetworkFor:
    def test_its_input_has_the_channels_of_the_plan(self) -> None:
        for channels in ((), (T2,), (T2, ADC)):
            network = network_for(plan_with(*channels), 0)
            first = next(p for p in network.parameters() if p.ndim == 4)
            assert first.shape[1] == max(1, len(channels))

    def test_a_network_that_can_not_be_is_refused(self) -> None:
        plan = plan_with(T2)
        model = plan.model.model_copy(update={"args": {"channels": [4, 8], "strides": [3, 3, 3]}})
        with pytest.raises(RecipeError, match="strides"):
            network_for(plan.model_copy(update={"model": model}), 0)
