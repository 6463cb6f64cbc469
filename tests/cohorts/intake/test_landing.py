from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest

from eucaim_fl.cohorts.intake.landing import Landing, open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import Outcome, Reason
from eucaim_fl.errors import ImportFailedError, JournalError
from eucaim_fl.sitefile import SiteFile

BROUGHT = "brought_in"


@pytest.fixture
def landing(site: SiteFile) -> Iterator[Landing]:
    with open_landing(site, CohortQuery(modalities=("MR", "CT"))) as made:
        yield made


def hand_over(landing: Landing, file: Path) -> Outcome:
    temporary = landing.temporary()
    with landing.writing(temporary) as write:
        write(file.read_bytes())
    outcome = landing.settle(temporary)
    assert not temporary.exists()
    return outcome


def changed(file: Path, **attributes: Any) -> Path:
    whole = pydicom.dcmread(file)
    for name, value in attributes.items():
        setattr(whole, name, value)
    target = file.with_name(f"changed-{file.name}")
    whole.save_as(target)
    return target


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
class TestSettle:
    def test_an_instance_lands_in_its_place(
        self, landing: Landing, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        (file,) = series("P1", slices=1)
        outcome = hand_over(landing, file)
        ((place, raw),) = landed().items()
        whole = pydicom.dcmread(file)
        assert (outcome.status, outcome.size) == (BROUGHT, len(raw))
        assert place == f"imaging_data/P1/{whole.StudyInstanceUID}/{whole.SeriesInstanceUID}/{whole.SOPInstanceUID}.dcm"
        assert raw == file.read_bytes()
        assert (landing.folder / place).stat().st_mode & 0o777 == 0o640

    def test_what_is_there_is_not_brought_in_twice(
        self, landing: Landing, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        (file,) = series("P1", slices=1)
        hand_over(landing, file)
        before = landed()
        assert hand_over(landing, file) == Outcome("already_there")
        assert landed() == before

    def test_a_file_that_went_away_is_wanted_again_and_one_that_came_back_is_not(
        self, landing: Landing, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        (file,) = series("P1", slices=1)
        hand_over(landing, file)
        (place,) = landed()
        (landing.folder / place).rename(landing.folder / "kept")
        assert landing.have(pydicom.dcmread(file).SOPInstanceUID) is None
        (landing.folder / "kept").rename(landing.folder / place)
        assert landing.have(pydicom.dcmread(file).SOPInstanceUID) == Outcome("already_there")

    def test_other_content_under_the_same_name_is_refused_and_the_old_file_stays(
        self, landing: Landing, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        (file,) = series("P1", slices=1)
        hand_over(landing, file)
        before = landed()
        assert hand_over(landing, changed(file, SliceThickness=9)) == Outcome("refused", Reason.OTHER_CONTENT)
        assert hand_over(landing, changed(file, PatientID="P2")) == Outcome("refused", Reason.OTHER_CONTENT)
        assert landed() == before

    def test_a_file_of_other_content_that_was_put_there_by_hand_stays(
        self,
        site: SiteFile,
        landing: Landing,
        series: Callable[..., list[Path]],
        landed: Callable[[], dict[str, bytes]],
    ) -> None:
        (file,) = series("P1", slices=1)
        hand_over(landing, file)
        (place,) = landed()
        target = landing.folder / place
        shutil.copy(changed(file, SliceThickness=9), target)
        (site.records_folder() / "imports.sqlite3").unlink()
        landing.journal._db.execute("DELETE FROM instances")
        kept = target.read_bytes()
        assert hand_over(landing, file) == Outcome("refused", Reason.OTHER_CONTENT)
        assert target.read_bytes() == kept

    def test_a_file_that_was_changed_since_is_reported_and_stays(
        self, landing: Landing, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        (file,) = series("P1", slices=1)
        hand_over(landing, file)
        ((place, raw),) = landed().items()
        (landing.folder / place).write_bytes(raw[:-1] + b"\x55")
        assert hand_over(landing, file) == Outcome("refused", Reason.CHANGED)
        os.utime(landing.folder / place)
        (landing.folder / place).write_bytes(raw)  # the same again, at another time
        assert hand_over(landing, file) == Outcome("already_there")

    @pytest.mark.parametrize(
        ("change", "outcome"),
        [
            ({"Modality": "US"}, Outcome("left", Reason.NOT_ASKED_FOR)),
            ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, Outcome("left", Reason.NOT_AN_IMAGE)),
            ({"PatientID": ""}, Outcome("refused", Reason.NO_PATIENT)),
            ({"StudyInstanceUID": "not-a-uid"}, Outcome("refused", Reason.NO_UIDS)),
            ({"SeriesInstanceUID": "../../../../tmp/x"}, Outcome("refused", Reason.NO_UIDS)),
        ],
    )
    def test_what_is_not_wanted_does_not_land(
        self,
        *,
        landing: Landing,
        series: Callable[..., list[Path]],
        landed: Callable[[], dict[str, bytes]],
        change: dict[str, str],
        outcome: Outcome,
    ) -> None:
        (file,) = series("P1", slices=1)
        assert hand_over(landing, changed(file, **change)) == outcome
        assert landed() == {}

    def test_a_broken_file_does_not_land(self, landing: Landing, tmp_path: Path) -> None:
        (tmp_path / "broken").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00")
        assert hand_over(landing, tmp_path / "broken") == Outcome("refused", Reason.BROKEN)

    def test_an_identifier_that_is_no_name_becomes_a_pseudonym(
        self, landing: Landing, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        for number, name in enumerate(("../../etc", ".git", "a b")):
            file = changed(series(f"P{number}", slices=1)[0], PatientID=name)
            assert hand_over(landing, file).status == BROUGHT
        assert all(place.startswith("imaging_data/EUCAIM-") for place in landed())
        assert len({place.split("/")[1] for place in landed()}) == 3

    def test_a_link_that_leads_out_of_the_cohort_is_not_followed(
        self, landing: Landing, series: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (landing.folder / "imaging_data").symlink_to(tmp_path / "elsewhere")
        (file,) = series("P1", slices=1)
        assert hand_over(landing, file) == Outcome("refused", Reason.LEADS_OUT)
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_a_full_disk_leaves_nothing_half_written(
        self, landing: Landing, series: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (file,) = series("P1", slices=1)
        temporary = landing.temporary()
        with landing.writing(temporary) as write:
            write(file.read_bytes())

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(ImportFailedError, match="disk is full"):
            landing.settle(temporary)
        assert not list(landing.folder.rglob("*.dcm"))
        assert not temporary.exists()


class TestWriting:
    def test_no_instance_is_larger_than_it_may_be(self, landing: Landing) -> None:
        landing.limit = 10
        temporary = landing.temporary()
        with landing.writing(temporary) as write:
            write(b"12345")
            with pytest.raises(ValueError, match="larger"):
                write(b"123456")
        assert temporary.read_bytes() == b"12345"

    def test_only_its_owner_may_read_what_is_on_its_way(self, landing: Landing) -> None:
        assert landing.temporary().stat().st_mode & 0o777 == 0o600


class TestTemporary:
    def test_a_folder_that_cant_be_written_is_reported(self, landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.mkstemp", denied)
        with pytest.raises(ImportFailedError, match="can't be written"):
            landing.temporary()

    def test_room_says_so_of_anything_that_is_written_there(self, landing: Landing) -> None:
        with pytest.raises(ImportFailedError, match="disk is full"), landing.room():
            raise OSError(errno.EDQUOT, "Disk quota exceeded")


class TestOpenLanding:
    def test_other_layouts_are_refused_with_those_that_can(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        site = tiny.site(tmp_path, "upv_index")
        with (
            pytest.raises(ImportFailedError, match="layout upv_index"),
            open_landing(site, CohortQuery()),
        ):
            pass

    def test_two_imports_at_once_are_refused(self, site: SiteFile) -> None:
        with (
            open_landing(site, CohortQuery()),
            pytest.raises(ImportFailedError, match="under way"),
            open_landing(site, CohortQuery()),
        ):
            pass

    def test_what_a_killed_import_left_is_removed(self, site: SiteFile) -> None:
        with open_landing(site, CohortQuery()) as landing:
            left = landing.temporary()
            kept = left.with_name("x.part")
            shutil.copytree(left.parent, site.cohort_folder() / "copy")
        assert not kept.parent.exists()
        (site.cohort_folder() / "copy").rename(kept.parent)
        with open_landing(site, CohortQuery()):
            assert not kept.parent.exists()

    def test_a_cohort_that_cant_be_made_is_reported(self, site: SiteFile) -> None:
        site.cohort_folder().write_text("a file")
        with pytest.raises(ImportFailedError, match="can't be made"), open_landing(site, CohortQuery()):
            pass

    def test_records_that_cant_be_written_are_reported(self, site: SiteFile) -> None:
        site.records_folder().write_text("a file")
        with pytest.raises(JournalError, match="key of this site"), open_landing(site, CohortQuery()):
            pass
