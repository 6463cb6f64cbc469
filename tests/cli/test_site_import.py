from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from eucaim_fl.cli.site_import import command
from eucaim_fl.errors import EucaimError

pytestmark = pytest.mark.integration


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(
        f"name: a\ncohort: {{layout: eucaim_tier3, folder: {tmp_path}/cohort}}\ncache: {{folder: {tmp_path}/cache}}\n"
    )
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images of two patients."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number, (patient, modality) in enumerate((("P1", "MR"), ("P2", "MR"), ("P2", "CT"))):
        whole = Dataset()
        whole.SOPClassUID, whole.SOPInstanceUID = MRImageStorage, f"1.2.3.{number}"
        whole.StudyInstanceUID, whole.SeriesInstanceUID = "1.2", "1.2.3"
        whole.PatientID, whole.Modality, whole.StudyDate = patient, modality, "20190607"
        whole.file_meta = FileMetaDataset()
        whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID
        whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID
        whole.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def call(site_file: Path) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(command, [str(site_file), *map(str, arguments)])


class TestFromFolder:
    def test_images_come_in_and_the_report_says_so(self, call: Any, images: Path, tmp_path: Path) -> None:
        done = call(
            "--from", "folder", images, "--modality", "MR", "--from-date", "2019-01-01", "--to-date", "2019-12-31"
        )
        assert done.exit_code == 0, done.output
        assert "brought in     2 (2 patients, 1 series" in done.stdout
        assert "1  not asked for by the query" in done.stdout
        assert len(list((tmp_path / "cohort").rglob("*.dcm"))) == 2

    def test_json_is_for_scripts(self, call: Any, images: Path) -> None:
        first = json.loads(call("--from", "folder", images, "--json", "--patients", "P1,P3").stdout)
        assert (first["found"], first["brought_in"], first["problem"]) == (3, 1, None)
        again = json.loads(call("--from", "folder", images, "--json").stdout)
        assert (again["already_there"], again["brought_in"]) == (1, 2)

    def test_a_dry_run_brings_nothing(self, call: Any, images: Path, tmp_path: Path) -> None:
        assert "would be brought in 3" in call("--from", "folder", images, "--dry-run").stdout
        assert not list((tmp_path / "cohort").rglob("*.dcm"))

    def test_a_file_is_taken_for_an_archive(self, call: Any, images: Path) -> None:
        done = call("--from", "folder", images / "0.dcm")
        assert isinstance(done.exception, EucaimError)
        assert "ZIP file" in str(done.exception)

    def test_what_the_user_can_mend_is_an_error_after_the_report(self, call: Any, tmp_path: Path) -> None:
        done = call("--from", "folder", tmp_path / "absent")
        assert "found          0" in done.stdout
        assert isinstance(done.exception, EucaimError)
        assert done.exception.code == "EFL207"


class TestFromElsewhere:
    def test_plain_http_and_credentials_in_addresses_are_refused(self, call: Any) -> None:
        for address, says in (
            ("http://pacs.example/dicom-web", "plain http"),
            ("https://u:geheim@pacs/", "credentials"),
        ):
            done = call("--from", "dicomweb", address)
            assert isinstance(done.exception, EucaimError)
            assert says in str(done.exception)
            assert "geheim" not in done.exception.for_terminal()

    def test_senders_are_waited_for_until_nothing_comes(self, call: Any) -> None:
        done = call("--from", "dicom", "--port", "0", "--until-idle", "0.1")
        assert done.exit_code == 2  # a port must be one
        done = call("--from", "dicom", "--address", "192.0.2.1", "--until-idle", "0.1")
        assert "Anyone on the network" in str(done.exception)


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--from", "folder"], "takes a SOURCE"),
            (["--from", "dicom", "x"], "takes no SOURCE"),
            (["--from", "dicom", "--dry-run"], "nobody knows"),
            (["--from", "ftp", "x"], "ftp"),
            (["x"], "--from"),
            (["--from", "folder", "x", "--from-date", "1.2.2019"], "date"),
        ],
    )
    def test_contradictions_are_said(self, call: Any, arguments: list[str], says: str) -> None:
        done = call(*arguments)
        assert done.exit_code == 2
        assert says in done.output

    def test_help_has_examples_and_no_password_option(self) -> None:
        text = CliRunner().invoke(command, ["--help"]).output
        assert "eucaim-fl site import site.yaml --from dicomweb https://" in text
        assert "--password" not in text

    def test_the_command_starts_without_the_heavy_libraries(self) -> None:
        code = "import sys, eucaim_fl.cli.site_import; print(*{name.split('.')[0] for name in sys.modules})"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert not set(loaded) & {"pydicom", "pynetdicom", "requests", "dicomweb_client", "torch", "duckdb", "numpy"}
