from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from eucaim_fl.cohorts.index import IndexReport, compaction, scan, update_index
from eucaim_fl.cohorts.index import store as stores
from eucaim_fl.cohorts.isolation import close
from eucaim_fl.cohorts.isolation import map_isolated as isolated
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError

pytestmark = pytest.mark.integration

COUNTS = ("files", "new", "changed", "moved", "deleted", "unchanged", "unreadable", "series", "resumed")


def counts(report: IndexReport) -> dict[str, int]:
    return {name: getattr(report, name) for name in COUNTS if getattr(report, name)}


def everything_in(folder: Path) -> list[bytes]:
    """Bytes of all files of an index, and all values of its tables unpacked."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found += [str(path.relative_to(folder)).encode(), path.read_bytes()]
        if path.suffix == ".parquet":
            found.append(str(pq.read_table(path).to_pylist()).encode())
    return found


class TestUpdateIndex:
    def test_what_is_unchanged_is_not_read_again(self, cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        cohort.series("P1/S1")
        cohort.series("P2/S1", slices=2)
        assert counts(cohort.scan()) == {"files": 5, "new": 5, "series": 2}

        def never(*args: Any, **options: Any) -> Any:
            raise AssertionError("a file is read")

        monkeypatch.setattr(scan, "map_isolated", never)
        before = (cohort.index_folder / "current.json").read_bytes()
        assert counts(cohort.scan()) == {"files": 5, "unchanged": 5, "series": 2}
        assert (cohort.index_folder / "current.json").read_bytes() == before

    def test_new_changed_moved_and_deleted_files_are_told_apart(self, cohort: Any) -> None:
        first, second = cohort.series("P1/S1"), cohort.series("P2/S1")
        cohort.scan()
        cohort.series("P3/S1", slices=1)
        first[0].write_bytes(first[0].read_bytes() + b"\0\0")
        first[1].unlink()
        (cohort.folder / "P4").mkdir()
        second[0].rename(cohort.folder / "P4/a.dcm")
        report = cohort.scan()
        assert counts(report) == {
            "files": 6, "new": 1, "changed": 1, "moved": 1, "deleted": 1, "unchanged": 3, "series": 4,
        }  # fmt: skip
        assert [len(one.files) for one in cohort.index().every()] == [2, 2, 1, 1]

    def test_a_change_that_keeps_size_and_time_is_seen(self, cohort: Any) -> None:
        path = cohort.series("P1/S1")[0]
        cohort.scan()
        status = path.stat()
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert counts(cohort.scan())["changed"] == 1

    def test_verifying_finds_what_signatures_hide(self, cohort: Any) -> None:
        path = cohort.folder / "P1/a.dcm"
        stored = np.zeros((1, 600, 600), dtype=np.int16)
        path.parent.mkdir()
        cohort.tiny.series(path.parent, stored)[0].rename(path)
        cohort.scan()
        assert counts(cohort.scan(verify=True)) == {"files": 1, "unchanged": 1, "series": 1}
        signature = path.stat()
        raw = bytearray(path.read_bytes())
        raw[100_000] ^= 1  # between the samples
        path.write_bytes(raw)
        table = cohort.index_folder / "v-000002/files.parquet"
        rows = pq.read_table(table).to_pylist()
        assert rows[0]["mtime_ns"] == signature.st_mtime_ns
        now = path.stat()
        rows[0].update(mtime_ns=now.st_mtime_ns, ctime_ns=now.st_ctime_ns)  # as if the clock had stood still
        stores.write_rows(table, rows, stores.FILE_COLUMNS)
        assert counts(cohort.scan()) == {"files": 1, "unchanged": 1, "series": 1}
        assert counts(cohort.scan(verify=True)) == {"files": 1, "changed": 1, "series": 1}

    def test_chosen_folders_leave_the_others_as_they_are(self, cohort: Any) -> None:
        first = cohort.series("P1/S1")
        cohort.series("P2/S1")
        assert counts(cohort.scan("P1")) == {"files": 3, "new": 3, "series": 1}
        assert counts(cohort.scan("P2/S1")) == {"files": 6, "new": 3, "series": 2}
        first[0].unlink()
        assert counts(cohort.scan("P2/S1")) == {"files": 6, "unchanged": 3, "series": 2}
        assert counts(cohort.scan("P1/S1/", "P1")) == {"files": 5, "deleted": 1, "unchanged": 2, "series": 2}
        shutil.rmtree(cohort.folder / "P1")
        assert counts(cohort.scan("P1")) == {"files": 3, "deleted": 2, "series": 1}

    def test_broken_files_are_rows_with_a_reason(self, cohort: Any) -> None:
        cohort.series("P1/S1")
        (cohort.folder / "P1/S1/x.dcm").write_bytes(b"")
        (cohort.folder / "P2").mkdir()
        (cohort.folder / "P2/x.nii.gz").write_bytes(b"no")
        os.mkfifo(cohort.folder / "P2/pipe")
        (cohort.folder / "P2/link").symlink_to("/etc")
        assert counts(cohort.scan()) == {"files": 7, "new": 7, "unreadable": 4, "series": 4}
        found = {(one.folder, one.files[-1].rpartition("/")[2]): one.reason for one in cohort.index().every()}
        assert found == {
            ("P1/S1", "002.dcm"): "A file is empty.",
            ("P2", "link"): "A link leads to a place that the site file does not allow.",
            ("P2", "pipe"): "This is no file but a device, a socket or a pipe.",
            ("P2", "x.nii.gz"): "A NIfTI file is empty, truncated or corrupt.",
        }

    def test_a_broken_file_among_several_series_stands_alone(self, cohort: Any) -> None:
        for uid in ("1.2.3", "1.2.4"):
            for path in cohort.series(f"made{uid}", uid=uid):
                (cohort.folder / "P1").mkdir(exist_ok=True)
                path.rename(cohort.folder / "P1" / f"{uid}-{path.name}")
        (cohort.folder / "P1/x.dcm").write_bytes(b"")
        cohort.scan("P1")
        assert [(one.series_uid, one.code) for one in cohort.index().series("P1")] == [
            ("", "EFL204"),
            ("1.2.3", ""),
            ("1.2.4", ""),
        ]

    def test_odd_names_do_no_harm(self, cohort: Any) -> None:
        paths = cohort.series("P1/S1")
        paths[0].rename(paths[0].with_name("new\nline's \"*.dcm"))
        odd = Path(os.fsdecode(os.fsencode(cohort.folder) + b"/P1/S1/caf\xe9.dcm"))
        paths[1].rename(odd)
        assert counts(cohort.scan()) == {"files": 3, "new": 3, "unreadable": 1, "series": 1}
        assert counts(cohort.scan()) == {"files": 3, "unchanged": 3, "unreadable": 1, "series": 1}
        index = cohort.index()
        assert index.file("P1/S1/new\nline's \"*.dcm").kind == "dicom"
        (one,) = index.series("P1/S1")
        assert (one.code, one.reason) == ("EFL204", "A file's name is no UTF-8 text.")

    def test_other_settings_read_everything_again(self, cohort: Any) -> None:
        cohort.series("P1/S1", SeriesDescription="t2 zzyzx")
        cohort.scan()
        assert cohort.index().series("P1/S1")[0].description == "t2"
        cohort.changes = {"cohort": {"words": ["zzyzx"]}}
        assert counts(cohort.scan()) == {"files": 3, "new": 3, "series": 1}
        assert cohort.index().series("P1/S1")[0].description == "t2 zzyzx"
        assert len(list(cohort.index_folder.glob("v-*"))) == 1

    def test_progress_is_told(self, cohort: Any) -> None:
        cohort.series("P1/S1")
        told: list[tuple[str, int, int]] = []
        cohort.scan(tell=lambda phase, done, total: told.append((phase, done, total)))
        assert told[0] == ("listing", 3, 3)
        assert ("reading", 3, 3) in told
        assert told[-1] == ("grouping", 1, 0)

    def test_an_empty_cohort_has_an_empty_index(self, cohort: Any) -> None:
        assert counts(cohort.scan()) == {}
        assert list(cohort.index().every()) == []

    def test_a_missing_cohort_is_an_error(self, cohort: Any) -> None:
        cohort.folder.rmdir()
        with pytest.raises(CohortError, match="missing"):
            update_index(cohort.site())

    def test_two_at_a_time_are_refused(self, cohort: Any) -> None:
        cohort.index_folder.mkdir(parents=True)
        with exclusive(cohort.index_folder), pytest.raises(CohortError, match="Another scan"):
            update_index(cohort.site())

    def test_the_end_of_another_can_be_waited_for(self, cohort: Any) -> None:
        cohort.series("P1/S1")
        cohort.index_folder.mkdir(parents=True)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with exclusive(cohort.index_folder):
                held.set()
                release.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        threading.Timer(0.8, release.set).start()
        assert update_index(cohort.site(), patience_s=30.0).new == 3
        thread.join()

    def test_a_full_disk_is_told(self, cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        cohort.series("P1/S1")

        def full(*args: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(scan, "write_rows", full)
        with pytest.raises(CohortError, match="can't be written"):
            update_index(cohort.site())

    def test_what_a_worker_says_wrongly_is_a_failure_of_that_file(
        self, cohort: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cohort.series("P1/S1", slices=5)
        answers = [{"kind": 5}, {"other": "x"}, {"rows": 2**70}, {"identifiers": {"a": "b"}}, ["no"]]

        def lying(work: str, items: Any, **options: Any) -> Any:
            from eucaim_fl.cohorts.isolation import Result

            yield from ((n, Result(answers[n])) for n, _ in enumerate(items))

        monkeypatch.setattr(scan, "map_isolated", lambda *a, **o: lying(*a, **o))
        assert counts(cohort.scan()) == {"files": 5, "new": 5, "unreadable": 5, "series": 5}


class TestResuming:
    def stop_after(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(work: str, items: Any, **options: Any) -> Any:
            for at, one in enumerate(isolated(work, items, shared=options["shared"], workers=0)):
                if at == number:
                    raise KeyboardInterrupt
                yield one

        monkeypatch.setattr(scan, "map_isolated", interrupted)
        monkeypatch.setattr(scan, "_PART_ROWS", 2)

    def test_a_scan_goes_on_behind_the_last_part(self, cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        cohort.series("P1/S1", slices=7)
        with monkeypatch.context() as patch:
            self.stop_after(5, patch)
            with pytest.raises(KeyboardInterrupt):
                cohort.scan()
        read: list[str] = []

        def watched(work: str, items: Any, **options: Any) -> Any:
            def seen() -> Any:
                for item in items:
                    read.append(item[0])
                    yield item

            return isolated(work, seen(), shared=options["shared"], workers=0)

        monkeypatch.setattr(scan, "map_isolated", watched)
        report = cohort.scan()
        assert counts(report) == {"files": 7, "new": 7, "series": 1, "resumed": 2}
        assert read == [f"P1/S1/{n:03d}.dcm" for n in (4, 5, 6)]
        assert not list(cohort.index_folder.glob("scan-*"))

    def test_a_file_that_changed_meanwhile_is_read_again(self, cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        files = cohort.series("P1/S1", slices=4)
        with monkeypatch.context() as patch:
            self.stop_after(3, patch)
            with pytest.raises(KeyboardInterrupt):
                cohort.scan()
        files[0].write_bytes(files[0].read_bytes()[:-5])
        assert counts(cohort.scan()) == {"files": 4, "new": 4, "unreadable": 1, "series": 1, "resumed": 1}

    @pytest.mark.parametrize("step", ["_write_files", "_changed_folders", "_write_series", "_counts"])
    def test_the_former_version_holds_until_the_new_one_is_complete(
        self, cohort: Any, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        cohort.series("P1/S1")
        cohort.scan()
        cohort.series("P2/S1")
        with monkeypatch.context() as patch:
            patch.setattr(compaction.Compaction, step, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                cohort.scan()
        assert cohort.index().counts().files == 3
        assert counts(cohort.scan()) == {"files": 6, "new": 3, "unchanged": 3, "series": 2, "resumed": 1}


class TestPrivacy:
    def test_no_identifier_is_anywhere_in_the_index(self, cohort: Any) -> None:
        cohort.series(
            "P1/S1", PatientID="87654321X", PatientName="Zweistein^Albertine", PatientBirthDate="19530312",
            SeriesDescription="T2 for Zweistein 87654321", ProtocolName="Zweistein", SequenceName="Albertine",
            BodyPartExamined="ZWEISTEIN", Manufacturer="Zweistein Ltd", ManufacturerModelName="Albertine 87654321",
            ImageType=["ORIGINAL", "ALBERTINE"], StudyDate="20180704", Laterality="ZWEISTEIN",
            StudyDescription="Zweistein", InstitutionName="Zweistein Clinic", ReferringPhysicianName="Zweistein",
        )  # fmt: skip
        cohort.series("zweistein/S1", PatientName="Zweistein^Albertine")
        for name in ("Zweistein_Albertine/1.txt", "P1/Zweistein_Albertine.csv", "P1/S1/Zweistein_Albertine.dcm"):
            (cohort.folder / name).parent.mkdir(exist_ok=True)
            (cohort.folder / name).write_text("x")
        cohort.scan()
        assert counts(cohort.scan())["unchanged"] == 9
        planted = (b"zweistein", b"albertine", b"87654321", b"19530312", b"20180704")
        for content in everything_in(cohort.index_folder):
            assert not [one for one in planted if one in content.lower()]

    def test_files_whose_names_name_somebody_are_not_used(self, cohort: Any) -> None:
        cohort.series("Zweistein_Albertine/S1")
        cohort.series("P1/S1")
        assert counts(cohort.scan()) == {"files": 6, "new": 6, "unreadable": 3, "series": 4}
        index = cohort.index()
        assert [(one.code, len(one.files)) for one in index.series("P1", recursive=True)] == [("", 3)]
        hidden, shown = index.folders("")
        assert (hidden[0], len(hidden), shown) == ("#", 25, "P1")
        assert {one.code for one in index.series(hidden)} == {"EFL205"}
        assert index.identifiers(hidden)["deid.file_person"] == (3, 3)

    def test_a_site_that_blocks_nothing_sees_the_names(self, cohort: Any) -> None:
        cohort.changes = {"deidentification": {"block": "nothing"}}
        cohort.series("Zweistein_Albertine/S1")
        cohort.scan()
        assert cohort.index().folders("") == ["Zweistein_Albertine"]
        cohort.changes = {}
        cohort.scan()
        assert not [content for content in everything_in(cohort.index_folder) if b"Zweistein" in content]

    def test_only_its_owner_may_read_it(self, cohort: Any) -> None:
        cohort.series("P1/S1")
        cohort.scan()
        for path in [cohort.index_folder, *cohort.index_folder.rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.federated
class TestRealProcesses:
    def script(self, cohort: Any) -> list[str]:
        values = cohort.site().model_dump(mode="json")
        code = (
            "import json, sys\n"
            "from eucaim_fl.sitefile import SiteFile\n"
            "from eucaim_fl.cohorts.index import scan\n"
            "scan._PART_ROWS = 20\n"
            "scan.update_index(SiteFile.model_validate(json.loads(sys.argv[1])))"
        )
        return [sys.executable, "-c", code, json.dumps(values)]

    def test_a_killed_scan_is_resumed(self, cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        cohort.series("P1/S1", slices=3)
        for number in range(400):  # enough to be killed in the middle
            shutil.copy(cohort.folder / "P1/S1/000.dcm", cohort.folder / f"P1/S1/c{number:05d}.dcm")
        with subprocess.Popen(self.script(cohort)) as process:
            parts = cohort.index_folder
            for _ in range(2000):
                if len(list(parts.glob("scan-*/parts/*.parquet"))) >= 2 or process.poll() is not None:
                    break
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        resumed = cohort.scan()
        assert resumed.files == 403
        assert resumed.resumed >= 2 or process.returncode == 0
        assert counts(cohort.scan()) == {"files": 403, "unchanged": 403, "series": 1}
        close()

    def test_a_hostile_file_costs_itself_alone(self, cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        cohort.series("P1/S1")
        deep = b"\0" * 128 + b"DICM" + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
        (cohort.folder / "P2").mkdir()
        (cohort.folder / "P2/deep.dcm").write_bytes(deep)
        assert counts(cohort.scan()) == {"files": 4, "new": 4, "unreadable": 1, "series": 2}
        with contextlib.suppress(OSError):
            close()


class TestDamage:
    @pytest.mark.parametrize("table", ["files.parquet", "series.parquet"])
    def test_a_table_that_is_no_parquet_is_told_with_what_to_do(self, cohort: Any, table: str) -> None:
        cohort.series("P1/S1")
        cohort.scan()
        (path,) = cohort.index_folder.glob(f"v-*/{table}")
        path.write_bytes(b"nothing")
        with pytest.raises(CohortError, match=r"index is damaged.*remove the index's folder"):
            update_index(cohort.site())
