from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.cohorts.intake.archive import ZipLimits, import_archive, is_hostile_name
from eucaim_fl.cohorts.intake.landing import open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import ImportReport, Reason
from eucaim_fl.errors import ImportFailedError
from eucaim_fl.sitefile import SiteFile


def silent(done: int, total: int | None) -> None:
    pass


def bring(path: Path, limits: ZipLimits | None = None) -> Callable[..., None]:
    return lambda landing: import_archive(path, landing, silent, limits)


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    def make(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return tmp_path / "a.zip"

    return make


@pytest.fixture
def images(series: Callable[..., list[Path]]) -> list[bytes]:
    return [file.read_bytes() for file in series("P1", slices=3)]


class TestImportArchive:
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_images_come_out_as_they_went_in(
        self, *, pack: Any, images: list[bytes], run: Any, landed: Any, method: int
    ) -> None:
        path = pack(
            ("a/", b""), *((f"a/{k}", raw) for k, raw in enumerate(images)), ("a/read.me", b"hello"), method=method
        )
        report: ImportReport = run(bring(path))
        assert (report.found, report.brought_in, report.left) == (4, 3, {Reason.NOT_DICOM: 1})
        assert sorted(landed().values()) == sorted(images)
        assert run(bring(path)).already_there == 3

    @pytest.mark.parametrize(
        "name", ["../../x.dcm", "/etc/x.dcm", "C:\\x.dcm", "a/../../x.dcm", "..\\x.dcm", "\\\\host\\x.dcm"]
    )
    def test_a_name_that_leads_out_is_refused(
        self, *, pack: Any, images: list[bytes], run: Any, name: str, tmp_path: Path
    ) -> None:
        before = {p for p in tmp_path.rglob("*") if p.is_file()}
        path = pack((name, images[0]), ("fine", images[1]))
        report = run(bring(path))
        assert (report.brought_in, report.refused) == (1, {Reason.HOSTILE_NAME: 1})
        new = set(tmp_path.rglob("*.dcm")) - before
        assert [p.parts[-5] for p in new] == ["imaging_data"]

    def test_links_and_doubles_and_archives_inside_are_refused(self, pack: Any, images: list[bytes], run: Any) -> None:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as archive:
            archive.writestr("x", images[0])
        with pytest.warns(UserWarning, match="Duplicate name"):
            path = pack((link, b"/etc/passwd"), ("a", images[0]), ("a", images[1]), ("b", inner.getvalue()))
        report = run(bring(path))
        assert report.brought_in == 1
        assert report.refused == {Reason.LINK: 1, Reason.TWICE: 1, Reason.NESTED: 1}

    def test_an_encrypted_entry_is_refused(self, pack: Any, images: list[bytes], run: Any) -> None:
        path = pack(("a", images[0]), ("b", images[1]))
        raw = bytearray(path.read_bytes())
        raw[6] |= 1  # the flag in the local header
        raw[raw.find(b"PK\x01\x02") + 8] |= 1  # and in the list
        path.write_bytes(raw)
        report = run(bring(path))
        assert (report.brought_in, report.refused) == (1, {Reason.ENCRYPTED: 1})

    def test_other_packings_are_refused(self, pack: Any, images: list[bytes], run: Any) -> None:
        report = run(bring(pack(("a", images[0]), method=zipfile.ZIP_LZMA)))
        assert report.refused == {Reason.PACKING: 1}
        assert "all that fits the query was refused" in str(report.problem)

    def test_a_damaged_entry_costs_itself_alone(self, pack: Any, images: list[bytes], run: Any) -> None:
        path = pack(("a", images[0]), ("b", images[1]), method=zipfile.ZIP_STORED)
        raw = bytearray(path.read_bytes())
        raw[raw.find(images[0]) + len(images[0]) - 1] ^= 0xFF
        path.write_bytes(raw)
        report = run(bring(path))
        assert (report.brought_in, report.refused) == (1, {Reason.DAMAGED_ENTRY: 1})

    def test_a_bomb_is_left_before_it_fills_the_disk(self, pack: Any, images: list[bytes], run: Any) -> None:
        path = pack(("a", images[0]), ("bomb", images[1] + bytes(20_000_000)), ("c", images[2]))
        limits = ZipLimits(ratio=100, free_bytes=1_000_000)
        report = run(bring(path, limits))
        assert (report.brought_in, report.left) == (1, {Reason.NOT_REACHED: 2})
        assert "unpacks to more than it may" in str(report.problem)

    def test_an_entry_that_lies_about_its_size_is_held_to_the_limit(
        self, pack: Any, images: list[bytes], site: SiteFile
    ) -> None:
        path = pack(("a", images[0] + bytes(5000)))
        raw = bytearray(path.read_bytes())
        for at in (22, raw.find(b"PK\x01\x02") + 24):  # sizes in the local header and in the list
            raw[at : at + 4] = struct.pack("<I", 100)
        path.write_bytes(raw)
        with open_landing(site, CohortQuery()) as landing:
            landing.limit = 1000
            import_archive(path, landing, silent)
            refused = landing.tally.report().refused
        assert sum(refused.values()) == 1
        assert not list(site.cohort_folder().rglob("*.dcm"))

    def test_an_entry_larger_than_an_instance_may_be_is_refused(
        self, pack: Any, images: list[bytes], site: SiteFile
    ) -> None:
        path = pack(("a", images[0]))
        with open_landing(site, CohortQuery()) as landing:
            landing.limit = 1000
            landing.limit = len(images[0]) - 1
            import_archive(path, landing, silent)
            assert landing.tally.report().refused == {Reason.TOO_LARGE: 1}

    @pytest.mark.parametrize("limits", [ZipLimits(entries=1), ZipLimits(directory_bytes=50)])
    def test_too_many_entries_are_refused(
        self, pack: Any, images: list[bytes], site: SiteFile, limits: ZipLimits
    ) -> None:
        path = pack(("a", images[0]), ("b", images[1]))
        with (
            open_landing(site, CohortQuery()) as landing,
            pytest.raises(ImportFailedError, match="too many entries"),
        ):
            import_archive(path, landing, silent, limits)

    @pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"no archive" * 100])
    def test_what_is_no_archive_brings_nothing(self, tmp_path: Path, run: Any, content: bytes) -> None:
        (tmp_path / "a.zip").write_bytes(content)
        report = run(bring(tmp_path / "a.zip"))
        assert report.brought_in == 0
        assert report.problem is not None or content.startswith(b"PK\x05\x06")

    @pytest.mark.parametrize("cut", [30, 200, -30])
    def test_a_truncated_archive_is_reported(self, pack: Any, images: list[bytes], run: Any, cut: int) -> None:
        path = pack(*((str(k), raw) for k, raw in enumerate(images)))
        path.write_bytes(path.read_bytes()[:cut])
        assert "missing, damaged" in str(run(bring(path)).problem)


class TestIsHostileName:
    @pytest.mark.parametrize("name", ["a.dcm", "study 1/series.2/IM..1", "ä/b"])
    def test_names_of_every_day_are_not(self, name: str) -> None:
        assert not is_hostile_name(name)

    @pytest.mark.parametrize("name", ["..", "a\0b", "c:/x", "\\x", "//host/share/x"])
    def test_others_are(self, name: str) -> None:
        assert is_hostile_name(name)


class TestMost:
    def test_a_small_file_may_unpack_to_a_gigabyte_and_a_large_one_to_a_hundred_times_its_size(self) -> None:
        assert ZipLimits().most(1000) == 10**9
        assert ZipLimits().most(10**9) == 10**11
        assert ZipLimits(total_bytes=5).most(10**9) == 5
