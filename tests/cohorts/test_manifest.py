from __future__ import annotations

import pytest

from eucaim_fl.cohorts.manifest import Quarantined, read_manifest
from eucaim_fl.errors import CohortError, LabelError


class TestReadManifest:
    def test_a_missing_folder_is_named_locally_only(self, tiny, tmp_path):
        with pytest.raises(CohortError, match="folder is missing") as caught:
            read_manifest(tiny.site(tmp_path))
        assert str(tmp_path) not in str(caught.value)
        assert str(tmp_path) in caught.value.local_detail

    def test_an_empty_cohort_is_an_error(self, tiny, tmp_path):
        (tmp_path / "cohort").mkdir()
        (tmp_path / "cohort" / "clinical.csv").write_text("patient_id,image,label\n")
        with pytest.raises(CohortError, match="empty"):
            read_manifest(tiny.site(tmp_path))

    @pytest.mark.parametrize("layout", ["nifti_csv", "eucaim_tier3", "upv_index"])
    def test_a_folder_without_tables_is_an_error(self, tiny, tmp_path, layout):
        (tmp_path / "cohort").mkdir()
        with pytest.raises(CohortError, match="table of the cohort is missing"):
            read_manifest(tiny.site(tmp_path, layout))

    def test_the_sites_columns_get_the_names_that_plans_use(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 2, geschlecht="EUCAIM:COM1001370".format)
        manifest = read_manifest(tiny.site(tmp_path, columns={"geschlecht": "sex"}))
        assert [case.clinical for case in manifest.cases] == [{"sex": "female"}] * 2

    def test_cases_come_in_the_order_of_patients(self, tiny, tmp_path):
        table = tiny.nifti_cohort(tmp_path, 4) / "clinical.csv"
        head, *rows = table.read_text().splitlines()
        table.write_text("\n".join([head, *reversed(rows)]))
        assert [case.patient for case in read_manifest(tiny.site(tmp_path)).cases] == ["P0", "P1", "P2", "P3"]


class TestQuarantined:
    def test_its_reason_is_the_errors_safe_text(self):
        error = LabelError("No label.", fix="Draw one.", local_detail="/secret/P1")
        assert Quarantined.because("P1", error) == Quarantined("P1", "EFL203", "No label.", "/secret/P1")
