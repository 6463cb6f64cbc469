"""The site file: strict by default, and its faults are named without paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from eucaim_fl.errors import SiteFileError
from eucaim_fl.sitefile import ReleaseConfig, SiteFile, data_root, load_site_file

MINIMAL = "name: north\ncohort: {layout: nifti_csv, folder: north}\n"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "P007-site.yaml"
        path.write_text(text)
        return path

    return write


class TestLoadSiteFile:
    def test_what_is_not_said_is_strict(self, written: Callable[[str], Path]) -> None:
        release = load_site_file(written(MINIMAL)).release
        assert release == ReleaseConfig(
            data_is="confidential", minimum_patients=10, minimum_metric_patients=5, score_histograms=False
        )

    def test_a_missing_file_is_named_locally_only(self, tmp_path: Path) -> None:
        with pytest.raises(SiteFileError, match=r"^The site file is missing\. Check its name\.$") as caught:
            load_site_file(tmp_path / "P007.yaml")
        assert "P007" in caught.value.local_detail

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("name: [", "can't be read as YAML"),
            ("!!python/object/apply:os.system [echo]", "can't be read as YAML"),
            ("name: \x00", "can't be read as YAML"),
            ("- north", "holds no mapping"),
            ("", "holds no mapping"),
            (MINIMAL + "nmae: x", r"(?s)unknown key 'nmae'.*Did you mean 'name'\?"),
            (MINIMAL + "release: {minimum_patient: 3}", "Did you mean 'minimum_patients'"),
            (MINIMAL.replace("nifti_csv", "nifti"), "cohort.layout: input should be 'eucaim_tier3'"),
            (MINIMAL.replace("north\n", "../north\n"), "name: must be lower-case letters"),
            (MINIMAL + "release: {minimum_patients: 0}", "release.minimum_patients: input should be greater than 0"),
            (MINIMAL + "compute: {device: tpu}", "compute.device: input should be 'cpu' or 'cuda'"),
            ("name: north", "cohort: field required"),
        ],
    )
    def test_a_fault_is_named_with_its_place(self, written: Callable[[str], Path], text: str, complaint: str) -> None:
        with pytest.raises(SiteFileError, match="site file") as caught:
            load_site_file(written(text))
        assert re.search(complaint, caught.value.for_terminal())
        assert "P007" not in str(caught.value)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe")
        with pytest.raises(SiteFileError, match="can't be read as YAML"):
            load_site_file(tmp_path / "a.yaml")

    def test_a_folder_is_no_site_file(self, tmp_path: Path) -> None:
        with pytest.raises(SiteFileError, match=r"file can't be read\. Name a YAML file"):
            load_site_file(tmp_path)

    def test_a_value_of_the_hospital_stands_in_the_local_detail_only(self, written: Callable[[str], Path]) -> None:
        with pytest.raises(SiteFileError, match="unknown or wrong keys") as caught:
            load_site_file(written("name: north\ncohort: /srv/P007\n"))
        assert "P007" not in str(caught.value)
        assert "/srv/P007" in caught.value.local_detail


class TestFolders:
    def site(self, **cache: str) -> SiteFile:
        return SiteFile.model_validate(
            {"name": "north", "cohort": {"layout": "nifti_csv", "folder": "here"}, "cache": cache}
        )

    def test_a_relative_folder_starts_at_the_data_root(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("EUCAIM_FL_DATA", str(tmp_path))
        assert data_root() == tmp_path
        assert self.site().cohort_folder() == tmp_path / "here"
        assert self.site().cache_folder() == tmp_path / ".eucaim_fl_cache" / "north"
        assert self.site(folder="/fast/cache").cache_folder() == Path("/fast/cache")

    @pytest.mark.parametrize("value", [None, ""])
    def test_the_data_root_is_data_in_the_working_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if value is None:
            monkeypatch.delenv("EUCAIM_FL_DATA", raising=False)
        else:
            monkeypatch.setenv("EUCAIM_FL_DATA", value)
        assert self.site().cohort_folder() == tmp_path / "data" / "here"


class TestPolicy:
    def test_it_lies_beside_the_site_file(self, written: Callable[[str], Path], tmp_path: Path) -> None:
        path = written(MINIMAL + "policy: policy.yaml\n")
        assert load_site_file(path).policy_path(path) == tmp_path / "policy.yaml"

    def test_an_absolute_place_is_taken_as_it_is(self, written: Callable[[str], Path]) -> None:
        path = written(MINIMAL + "policy: /srv/policy.yaml\n")
        assert load_site_file(path).policy_path(path) == Path("/srv/policy.yaml")

    def test_without_a_word_there_is_none(self, written: Callable[[str], Path]) -> None:
        path = written(MINIMAL)
        assert load_site_file(path).policy_path(path) is None


class TestPlaces:
    @pytest.mark.parametrize("key", ["cohort", "consent", "cache", "links"])
    @pytest.mark.parametrize("value", ["a\\0b", "a" * 256, "a/" * 2000])
    def test_a_path_that_no_file_can_have_is_refused(
        self, written: Callable[[str], Path], key: str, value: str
    ) -> None:
        place = {
            "cohort": f'cohort: {{layout: nifti_csv, folder: "{value}"}}',
            "links": f'cohort: {{layout: nifti_csv, folder: north, links: ["{value}"]}}',
            "consent": f'cohort: {{layout: nifti_csv, folder: north}}\nconsent: {{table: "{value}"}}',
            "cache": f'cohort: {{layout: nifti_csv, folder: north}}\ncache: {{folder: "{value}"}}',
        }[key]
        with pytest.raises(SiteFileError, match="unknown or wrong keys"):
            load_site_file(written(f"name: north\n{place}\n"))

    @pytest.mark.parametrize("cache", ["/srv/north", "/srv/north/cache", "/srv/north/../north/x"])
    def test_the_cohort_is_only_read_so_no_cache_may_lie_in_it(
        self, written: Callable[[str], Path], cache: str
    ) -> None:
        text = f"name: north\ncohort: {{layout: nifti_csv, folder: /srv/north}}\ncache: {{folder: {cache}}}\n"
        with pytest.raises(SiteFileError, match="inside the cohort's folder"):
            load_site_file(written(text))
        assert (
            load_site_file(written(text.replace(f"cache: {{folder: {cache}", "cache: {folder: /srv/cache"))).name
            == "north"
        )

    def test_records_beside_the_cache_may_not_lie_in_it_either(self, written: Callable[[str], Path]) -> None:
        text = "name: n\ncohort: {layout: nifti_csv, folder: /srv/c.records}\ncache: {folder: /srv/c}\n"
        with pytest.raises(SiteFileError, match="inside the cohort's folder"):
            load_site_file(written(text))

    def test_yaml_that_is_nested_without_end_is_refused(self, written: Callable[[str], Path]) -> None:
        with pytest.raises(SiteFileError, match="can't be read as YAML"):
            load_site_file(written("[" * 5000))
