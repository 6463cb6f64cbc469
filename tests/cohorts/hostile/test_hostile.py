"""Nothing that lies in a cohort can crash, hang or bloat a scan or a reading: every file ends as facts or a reason."""

from __future__ import annotations

import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from eucaim_fl.cohorts.index import Index, open_index, update_index
from eucaim_fl.cohorts.isolation import Result, map_isolated
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preparation import case_to_json
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.federated

SECONDS = 10.0
MEMORY_BYTES = 1_500_000_000
HOSTILE_IS_NO_IMAGE = {
    "a-page.dcm", "an-archive.dcm", "empty.dcm", "header-cut.dcm", "link-out.dcm", "link-to-itself.dcm",
    "link-to-zeros.dcm", "pipe.dcm", "preamble-only.dcm", "endless-sequence.dcm", "length-beyond-the-end.dcm",
    "deep-sequences.dcm", "gzip-cut.nii.gz", "huge-dimensions.nii", "pixels-cut.dcm", "absurd-size.dcm",
}  # fmt: skip
"""Seen by the header alone; the others look like images until their pixels are asked for."""
HAND_MADE_IMAGES = {"slope-that-is-infinite.nii"}
"""Odd, and images all the same."""


@pytest.fixture(scope="module")
def scanned(
    tmp_path_factory: pytest.TempPathFactory,
    hand_made: dict[str, Callable[[Path], object]],
    mutated: list[tuple[str, bytes]],
) -> SimpleNamespace:
    """A cohort of nothing but hostile files, each in a folder of its own, after one scan."""
    root = tmp_path_factory.mktemp("hostile")
    cohort = root / "cohort"
    for name, write in hand_made.items():
        (cohort / "hand" / name.replace(".", "-")).mkdir(parents=True)
        write(cohort / "hand" / name.replace(".", "-") / name)
    for name, raw in mutated:
        (cohort / "mutated" / name.replace(".", "-")).mkdir(parents=True)
        (cohort / "mutated" / name.replace(".", "-") / name).write_bytes(raw)
    site = SiteFile.model_validate(
        {
            "name": "a",
            "cohort": {"layout": "folder_csv", "folder": cohort},
            "cache": {"folder": root / "cache"},
            "compute": {"readers": 2},
        }
    )
    before = {path: path.lstat().st_mtime_ns for path in sorted(root.rglob("*")) if "cache" not in path.parts}
    started = time.monotonic()
    report = update_index(site)
    return SimpleNamespace(
        site=site,
        cohort=cohort,
        report=report,
        seconds=time.monotonic() - started,
        index=open_index(site),
        before=before,
        files=sorted(p for p in cohort.rglob("*") if p.is_symlink() or not p.is_dir()),
    )


@pytest.fixture(scope="module")
def results(scanned: SimpleNamespace) -> dict[Path, Result]:
    """What became of each regular file that was read with its pixels, as `site check` does."""
    files = [p for p in scanned.files if stat.S_ISREG(p.lstat().st_mode)]
    cases = (
        case_to_json(Case("P", "", "", (p,), "nifti" if p.name.endswith((".nii", ".nii.gz")) else "dicom"))
        for p in files
    )
    got = map_isolated(
        "eucaim_fl.cohorts.pixel_facts:examine", cases, workers=2, seconds=SECONDS, memory_bytes=MEMORY_BYTES
    )
    return {files[number]: result for number, result in got}


class TestScan:
    def test_the_corpus_is_large_enough(self, scanned: SimpleNamespace) -> None:
        assert len([p for p in scanned.files if "mutated" in p.parts]) >= 300
        assert len([p for p in scanned.files if "hand" in p.parts]) >= 20

    def test_every_file_has_its_row(self, scanned: SimpleNamespace) -> None:
        index: Index = scanned.index
        missing = [p for p in scanned.files if index.file(str(p.relative_to(scanned.cohort))) is None]
        assert missing == []
        assert scanned.report.files == len(scanned.files)

    def test_what_its_header_shows_is_no_image_has_a_reason(self, scanned: SimpleNamespace) -> None:
        index: Index = scanned.index
        for path in scanned.files:
            facts = index.file(str(path.relative_to(scanned.cohort)))
            assert facts is not None
            assert bool(facts.code) == bool(facts.reason)
            if path.name in HOSTILE_IS_NO_IMAGE:
                assert facts.code, path.name
                assert path.name not in facts.reason

    def test_none_took_longer_than_it_may(self, scanned: SimpleNamespace) -> None:
        overdue = [p for p in scanned.files if "longer" in self.reason(scanned, p)]
        assert {p.name for p in overdue} == set()

    def reason(self, scanned: SimpleNamespace, path: Path) -> str:
        facts = scanned.index.file(str(path.relative_to(scanned.cohort)))
        return "" if facts is None else str(facts.reason)

    def test_nothing_was_written_outside_the_cache(self, scanned: SimpleNamespace) -> None:
        root = scanned.cohort.parent
        after = {p: p.lstat().st_mtime_ns for p in sorted(root.rglob("*")) if "cache" not in p.parts}
        assert after == scanned.before

    def test_a_second_scan_opens_none_of_them_again(self, scanned: SimpleNamespace) -> None:
        again = update_index(scanned.site)
        assert (again.new, again.changed, again.deleted) == (0, 0, 0)


class TestReading:
    def test_every_one_ends_as_facts_or_a_reason(self, results: dict[Path, Result]) -> None:
        for path, result in results.items():
            code, reason = (
                (result.code, result.reason) if result.value is None else (result.value["code"], result.value["reason"])
            )
            assert bool(code) == bool(reason), path.name
            assert path.stem not in reason
            if path.name in HAND_MADE_IMAGES:
                assert not code, (path.name, reason)
            elif "hand" in path.parts:
                assert code, path.name

    def test_none_took_longer_than_it_may(self, results: dict[Path, Result]) -> None:
        assert {p.name for p, result in results.items() if "longer" in result.reason} == set()

    def test_some_mutations_left_an_image_and_some_did_not(self, results: dict[Path, Result]) -> None:
        mutated = [r for p, r in results.items() if "mutated" in p.parts]
        good = [r for r in mutated if r.value is not None and not r.value["code"]]
        assert 20 < len(good) < len(mutated) - 20

    def test_our_own_memory_stays_small(self, results: dict[Path, Result]) -> None:
        assert results
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 3 * 10**9
