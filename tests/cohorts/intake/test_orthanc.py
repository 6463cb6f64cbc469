"""A real archive: what it has comes here as it is stored there, once, however often the connection breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from eucaim_fl.cohorts.intake.dicomweb import Archive, import_dicomweb
from eucaim_fl.cohorts.intake.report import ImportReport, Reason
from eucaim_fl.cohorts.intake.web import Session
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.pacs


def bring(port: int, **options: Any) -> Callable[..., None]:
    url = f"http://127.0.0.1:{port}/dicom-web"
    archive = Archive(url, Session(url), wait=lambda seconds: None, **options)
    return lambda landing: import_dicomweb(archive, landing, lambda done, total: None)


@pytest.fixture
def stored(orthanc: Any, series: Callable[..., list[Path]]) -> dict[str, bytes]:
    """Three patients in the archive: name of the file in the cohort → bytes of the data set."""
    files = [
        *series("P1", 1),
        *series("P1", 2, modality="CT"),
        *series("P2", 1, BodyPartExamined="BREAST"),
        *series("P3", 1, slices=8, size=64, StudyDate="20210102"),
    ]
    orthanc.store(files)
    return {f"{pydicom.dcmread(f).SOPInstanceUID}.dcm": data_set(f.read_bytes()) for f in files}


def data_set(raw: bytes) -> bytes:
    """The bytes behind the file meta information, which the archive writes anew."""
    return raw[132 + 12 + int.from_bytes(raw[140:144], "little") :]


def names(files: dict[str, bytes]) -> dict[str, bytes]:
    return {place.rpartition("/")[2]: data_set(raw) for place, raw in files.items()}


class TestImportDicomweb:
    def test_everything_comes_with_the_bytes_that_are_stored(
        self, orthanc: Any, stored: dict[str, bytes], run: Callable[..., ImportReport], landed: Callable[[], Any]
    ) -> None:
        report = run(bring(orthanc.port))
        assert (report.found, report.brought_in, report.problem) == (17, 17, None)
        assert (report.patients, report.series, report.refused, report.left) == (3, 4, {}, {})
        assert names(landed()) == stored

    @pytest.mark.parametrize(
        ("query", "patients"),
        [
            ({"modalities": ("MR",)}, {"P1", "P2", "P3"}),
            ({"modalities": ("mr", "CT"), "patients": frozenset({"P1"})}, {"P1"}),
            ({"body_parts": ("BREAST",)}, {"P2"}),
            ({"from_date": date(2020, 1, 1)}, {"P3"}),
            ({"to_date": date(2020, 1, 1), "body_parts": ("prostate",)}, {"P1"}),
            ({"patients": frozenset({"P9"})}, set()),
        ],
    )
    def test_only_what_the_query_asks_for_comes(
        self,
        orthanc: Any,
        stored: dict[str, bytes],
        run: Callable[..., ImportReport],
        landed: Callable[[], dict[str, bytes]],
        query: dict[str, Any],
        patients: set[str],
    ) -> None:
        report = run(bring(orthanc.port), **query)
        assert report.problem is None
        assert {place.split("/")[1] for place in landed()} == patients

    def test_a_second_import_fetches_nothing_and_doubles_nothing(
        self, wire: Any, stored: dict[str, bytes], run: Callable[..., ImportReport], landed: Callable[[], Any]
    ) -> None:
        run(bring(wire.port))
        before = landed()
        wire.requests.clear()
        report = run(bring(wire.port))
        assert (report.found, report.already_there, report.brought_in) == (17, 17, 0)
        assert wire.instances_asked_for() == 0
        assert wire.requests
        assert landed() == before

    def test_what_came_later_is_all_that_a_second_import_fetches(
        self,
        *,
        orthanc: Any,
        wire: Any,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        landed: Callable[[], Any],
    ) -> None:
        files = series("P1", 1, slices=4)
        orthanc.store(files[:3])
        run(bring(wire.port))
        wire.requests.clear()
        orthanc.store(files[3:])
        report = run(bring(wire.port))
        assert (report.already_there, report.brought_in) == (3, 1)
        assert wire.instances_asked_for() == 1
        assert len(landed()) == 4

    def test_an_import_that_was_cut_off_goes_on_where_it_ended(
        self,
        *,
        site: SiteFile,
        wire: Any,
        stored: dict[str, bytes],
        run: Callable[..., ImportReport],
        landed: Callable[[], Any],
    ) -> None:
        wire.left = 60_000  # the lists, the small series, and a few slices of the large one
        report = run(bring(wire.port, attempts=2))
        assert report.problem is not None
        assert "lost on the way" in str(report.problem)
        assert 0 < report.brought_in < 17
        assert sum(report.left.values()) + sum(report.refused.values()) == 17 - report.brought_in
        assert len(landed()) == report.brought_in
        assert not (site.cohort_folder() / ".eucaim_fl_incoming").exists()
        wire.left = None
        again = run(bring(wire.port))
        assert (again.already_there, again.brought_in) == (report.brought_in, 17 - report.brought_in)
        assert names(landed()) == stored

    def test_a_connection_that_breaks_once_costs_nothing(
        self, wire: Any, stored: dict[str, bytes], run: Callable[..., ImportReport], landed: Callable[[], Any]
    ) -> None:
        wire.left = 60_000
        url = f"http://127.0.0.1:{wire.port}/dicom-web"

        def mend(seconds: float) -> None:
            wire.left = None

        archive = Archive(url, Session(url), wait=mend)
        report = run(lambda landing: import_dicomweb(archive, landing, lambda done, total: None))
        assert (report.brought_in, report.problem) == (17, None)
        assert names(landed()) == stored

    def test_compressed_images_come_compressed(
        self,
        orthanc: Any,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        landed: Callable[[], Any],
    ) -> None:
        (file,) = series("P1", 1, slices=1, size=64)
        whole = pydicom.dcmread(file)
        whole.compress(JPEG2000Lossless, generate_instance_uid=False)
        whole.save_as(file)
        orthanc.store([file])
        run(bring(orthanc.port))
        ((place, raw),) = landed().items()
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == JPEG2000Lossless
        assert data_set(raw) == data_set(file.read_bytes()), place

    def test_a_dry_run_fetches_and_writes_nothing(
        self, wire: Any, stored: dict[str, bytes], run: Callable[..., ImportReport], landed: Callable[[], Any]
    ) -> None:
        report = run(bring(wire.port), dry_run=True, modalities=("MR",))
        assert (report.found, report.brought_in, report.series) == (14, 14, 3)
        assert wire.instances_asked_for() == 0
        assert landed() == {}

    def test_a_file_that_was_changed_here_stays_and_is_reported(
        self,
        *,
        site: SiteFile,
        orthanc: Any,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        landed: Callable[[], dict[str, bytes]],
    ) -> None:
        orthanc.store(series("P1", 1, slices=1))
        run(bring(orthanc.port))
        ((place, raw),) = landed().items()
        (site.cohort_folder() / place).write_bytes(raw + bytes(8))
        report = run(bring(orthanc.port))
        assert report.refused == {Reason.CHANGED: 1}
        assert landed() == {place: raw + bytes(8)}


class TestReceive:
    def test_what_an_archive_sends_lands_once(
        self, *, orthanc: Any, stored: dict[str, bytes], listen: Any, landed: Callable[[], dict[str, bytes]]
    ) -> None:
        receiver = listen(callers=("ORTHANC",))
        modality = {"AET": "EUCAIM", "Host": "127.0.0.1", "Port": receiver.port}
        orthanc.ask("/modalities/eucaim", json.dumps(modality).encode(), method="PUT")
        for _ in range(2):
            for patient in orthanc.ask("/patients"):
                orthanc.ask("/modalities/eucaim/store", patient.encode())
        report = receiver.stop()
        assert (report.brought_in, report.already_there, report.refused) == (17, 17, {})
        assert names(landed()) == stored

    def test_what_came_from_an_archive_on_one_way_is_there_on_the_other(
        self, *, orthanc: Any, stored: dict[str, bytes], listen: Any, run: Callable[..., ImportReport]
    ) -> None:
        receiver = listen()
        modality = {"AET": "EUCAIM", "Host": "127.0.0.1", "Port": receiver.port}
        orthanc.ask("/modalities/eucaim", json.dumps(modality).encode(), method="PUT")
        for patient in orthanc.ask("/patients"):
            orthanc.ask("/modalities/eucaim/store", patient.encode())
        receiver.stop()
        assert run(bring(orthanc.port)).already_there == 17
