from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts.cache import Cache, Entry
from eucaim_fl.cohorts.cache_folder import Folder, Lease
from eucaim_fl.cohorts.preprocess import Prepared
from eucaim_fl.errors import CohortError

pytestmark = pytest.mark.integration

VOXELS = 10_000
ROOM = VOXELS * 4 + 1000  # one entry: its tensor, and less than 1000 bytes beside it


def some() -> Prepared:
    values = np.arange(VOXELS, dtype=np.float32).reshape(1, 100, 100, 1)
    return Prepared(values, None, None, (1.0, 1.0, 1.0))


def never() -> Prepared:
    raise AssertionError("it should be there")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def keep(folder: Path, *keys: str, limit: int | None = None) -> list[Entry]:
    """One opening that uses some entries; each is last used a moment after the one before."""
    cache = Cache(folder, limit)
    cache.expect(len(keys))
    entries = [cache.obtain(key, some) for key in keys]
    now = time.time()
    for age, entry in enumerate(reversed(entries), start=1):
        for path in folder.glob(f"{entry.image_path.name[:64]}*"):
            os.utime(path, (now - 10 * age, now - 10 * age))
    return entries


def present(folder: Path) -> int:
    return len(list(folder.glob("*-image.npy")))


class TestLimit:
    def test_without_one_everything_stays(self, folder):
        keep(folder, *map(str, range(6)))
        assert present(folder) == 6
        assert not (folder / ".leases").exists()

    def test_what_was_not_used_for_longest_is_removed_first(self, folder):
        keep(folder, "a", "b", "c")
        gc.collect()
        keep(folder, "a")  # used again
        keep(folder, "d", limit=3 * ROOM)
        assert present(folder) == 3
        kept = Cache(folder)
        for key in ("a", "c", "d"):
            kept.obtain(key, never)
        assert kept.find("b") is None

    def test_an_entry_is_removed_whole(self, folder):
        keep(folder, "a")
        keep(folder, "b", limit=ROOM)
        names = [path.name for path in folder.iterdir() if path.is_file()]
        assert len({name[:64] for name in names}) == 1
        assert len(names) == 2

    def test_what_this_opening_uses_is_never_removed(self, folder):
        cache = Cache(folder, 2 * ROOM)
        entries = [cache.obtain(key, some) for key in ("a", "b")]
        with pytest.raises(CohortError, match="needs about"):
            cache.obtain("c", some)
        assert all(entry.image_path.exists() for entry in entries)

    def test_a_cohort_that_is_larger_alone_says_what_it_needs(self, folder):
        cache = Cache(folder, 10**5)
        cache.expect(100)
        for key in ("a", "b"):
            cache.obtain(key, some)
        with pytest.raises(CohortError, match=r"may take 0.0001 GB, but this cohort needs about 0.004\d+ GB") as caught:
            cache.obtain("c", some)
        assert "cache.limit_gb" in caught.value.fix
        assert str(folder) not in str(caught.value)

    def test_what_was_found_there_counts_too(self, folder):
        keep(folder, "a", "b", "c")
        cache = Cache(folder, 2 * ROOM)
        assert [isinstance(cache.find(key), Entry) for key in ("b", "c")] == [True, True]
        assert present(folder) == 2
        keep(folder, "a")
        with pytest.raises(CohortError, match="needs about"):
            cache.find("a")

    def test_remains_without_a_record_are_removed_as_well(self, folder):
        keep(folder, "a")
        (folder / f"{'0' * 64}-image.npy").write_bytes(b"x" * ROOM)
        os.utime(folder / f"{'0' * 64}-image.npy", (1, 1))
        keep(folder, "b", limit=2 * ROOM)
        assert present(folder) == 2
        assert not (folder / f"{'0' * 64}-image.npy").exists()

    def test_other_files_are_not_touched(self, folder):
        (folder / "index").mkdir(parents=True)
        (folder / "index" / "x.parquet").write_bytes(b"x" * ROOM)
        (folder / "notes.json").write_bytes(b"x" * ROOM)
        keep(folder, "a", limit=ROOM)
        keep(folder, "b", limit=ROOM)
        assert (folder / "notes.json").exists()
        assert (folder / "index" / "x.parquet").exists()


class TestLease:
    def test_what_another_opening_uses_is_not_removed_as_long_as_its_entries_live(self, folder):
        held = keep(folder, "a", limit=2 * ROOM)
        keep(folder, "b", limit=2 * ROOM)
        gc.collect()
        keep(folder, "c", limit=2 * ROOM)
        assert held[0].image_path.exists()
        with pytest.raises(CohortError, match=r"beside 4\.\d+e-05 GB that other runs use"):
            keep(folder, "c", "d", limit=2 * ROOM)
        del held
        gc.collect()
        keep(folder, "c", "d", limit=2 * ROOM)
        assert present(folder) == 2

    def test_it_ends_with_its_process_however_that_ends(self, folder):
        folder.mkdir()
        code = (
            "import os, sys; from pathlib import Path; from eucaim_fl.cohorts.cache_folder import Lease;"
            "lease = Lease(Path(sys.argv[1]) / '.leases'); lease.add(sys.argv[2]); os._exit(1)"
        )
        (entry,) = keep(folder, "a")
        name = entry.image_path.name[:64]
        subprocess.run([sys.executable, "-c", code, str(folder), name], check=False)
        assert len(list((folder / ".leases").glob("*.lease"))) == 1
        keep(folder, "b", limit=ROOM)
        assert not entry.image_path.exists()
        assert not list((folder / ".leases").glob("*.lease"))

    def test_it_leaves_no_file_behind(self, tmp_path):
        lease = Lease(tmp_path / "leases")
        lease.add("a")
        assert len(list((tmp_path / "leases").iterdir())) == 1
        del lease
        gc.collect()
        assert list((tmp_path / "leases").iterdir()) == []

    def test_a_forked_child_does_not_end_it(self, tmp_path):
        lease = Lease(tmp_path / "leases")
        child = os.fork()
        if not child:
            try:
                del lease
                gc.collect()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert len(list((tmp_path / "leases").glob("*.lease"))) == 1


class TestSweep:
    def test_parts_of_killed_writers_and_old_ones_are_removed_and_others_stay(self, folder):
        Cache(folder)
        parts = folder / ".parts"
        code = (
            "import os, sys, tempfile; from pathlib import Path; from eucaim_fl.cohorts.cache_folder import Folder\n"
            "def end(*_): os._exit(1)\n"
            "Path.replace = end\n"
            "Folder(Path(sys.argv[1]), None).write('x', [b'abc'])"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
        (killed,) = parts.iterdir()
        assert re.fullmatch(r"[0-9a-f]{12}-\d+-.+\.part", killed.name)
        elsewhere, old = parts / "0123456789ab-1-x.part", parts / "0123456789ab-1-y.part"
        mine = parts / f"{killed.name.split('-')[0]}-{os.getpid()}-z.part"
        for path in (elsewhere, old, mine):
            path.touch()
        os.utime(old, (time.time() - 3700, time.time() - 3700))
        Folder(folder, None)
        assert sorted(parts.iterdir()) == sorted([elsewhere, mine])

    def test_a_folder_that_can_not_be_made_is_an_error(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CohortError, match="can't be written"):
            Folder(tmp_path / "file" / "cache", None)

    def test_an_entry_for_which_there_is_no_room_is_an_error(self, folder):
        keep(folder, "a")
        (name,) = {path.name[:64] for path in folder.glob("*.npy")}
        files = Folder(folder, 100)
        files.use(name)
        with pytest.raises(CohortError, match="needs about"):
            files.count(name)

    def test_a_file_that_can_not_be_written_is_an_error(self, folder):
        files = Folder(folder, None)
        (folder / "x").mkdir()
        with pytest.raises(CohortError, match="can't be written"):
            files.write("x", [b"abc"])
        assert list((folder / ".parts").iterdir()) == []
