from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts.cache import Cache, combine
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preprocess import Prepared
from eucaim_fl.errors import CohortError, LabelError, SeriesError, UnreadableFileError

PREPARED = Prepared(
    np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    np.ones((2, 3, 4), np.uint8),
    None,
    (1.0, 2.0, 3.0),
    (0, 3),
    np.array([[0, 1, 2], [1, 2, 3]]),
)


class Maker:
    """Gives PREPARED and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Prepared:
        self.calls += 1
        return PREPARED


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


class TestObtain:
    def test_an_entry_is_made_once_and_then_read(self, folder):
        make = Maker()
        Cache(folder).obtain("k", make)
        entry = Cache(folder).obtain("k", make)
        assert make.calls == 1
        assert np.array_equal(np.load(entry.image_path, mmap_mode="r"), PREPARED.image)
        assert np.array_equal(np.load(entry.label_path), PREPARED.label)
        assert (entry.spacing_mm, entry.foreground_slices) == ((1.0, 2.0, 3.0), (0, 3))
        assert np.array_equal(entry.foreground_voxels, PREPARED.foreground_voxels)

    def test_an_entry_without_label_stays_without(self, folder):
        bare = Prepared(PREPARED.image, None, 1, PREPARED.spacing_mm)
        for _ in range(2):
            entry = Cache(folder).obtain("k", lambda: bare)
            assert entry.label_path is None
            assert entry.foreground_voxels.shape == (0, 3)

    def test_another_key_is_another_entry(self, folder):
        make = Maker()
        for key in ("k", "l"):
            Cache(folder).obtain(key, make)
        assert make.calls == 2

    def test_file_names_hold_hashes_only(self, folder):
        Cache(folder).obtain("patient-17", Maker())
        names = [path.name for path in folder.iterdir() if path.is_file()]
        assert len(names) == 3
        assert all(re.fullmatch(r"[0-9a-f]{64}(-image\.npy|-label\.npy|\.json)", name) for name in names)

    @pytest.mark.parametrize("pattern", ["*-image.npy", "*-label.npy", "*.json"])
    @pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
    def test_a_damaged_entry_is_made_again(self, folder, pattern, damage):
        make = Maker()
        Cache(folder).obtain("k", make)
        (path,) = folder.glob(pattern)
        raw = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            half = len(raw) // 2
            flipped = raw[:half] + bytes([raw[half] ^ 0xFF]) + raw[half + 1 :]
            path.write_bytes({"cut": raw[:-3], "flip": flipped, "empty": b""}[damage])
        entry = Cache(folder).obtain("k", make)
        assert make.calls == 2
        assert np.array_equal(np.load(entry.image_path), PREPARED.image)
        assert np.array_equal(np.load(entry.label_path), PREPARED.label)

    def test_a_copied_cache_is_recognised_by_its_content(self, folder, tmp_path):
        make = Maker()
        Cache(folder).obtain("k", make)
        shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
        Cache(tmp_path / "copy").obtain("k", make)
        assert make.calls == 1

    def test_a_copied_cache_is_read_through_only_once(self, folder, tmp_path, monkeypatch):
        Cache(folder).obtain("k", Maker())
        shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
        Cache(tmp_path / "copy").obtain("k", Maker())
        monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert Cache(tmp_path / "copy").find("k") is not None

    def test_a_channel_is_known_by_its_values_unless_it_holds_a_single_one(self, folder):
        image = np.stack([PREPARED.image[0], np.full((2, 3, 4), 7, np.float32)])
        entry = Cache(folder).obtain("k", lambda: Prepared(image, None, None, (1.0, 1.0, 1.0)))
        alone = Cache(folder).obtain("l", Maker())
        assert entry.channels == (*alone.channels, "")
        assert np.load(entry.image_path).shape == (2, 2, 3, 4)

    @pytest.mark.parametrize("error", [SeriesError("Gap.", local_detail="d"), LabelError("Grid.", fix="f")])
    def test_what_forms_no_volume_is_remembered_with_its_error(self, folder, error):
        def fail() -> Prepared:
            raise error

        with pytest.raises(type(error), match=error.message):
            Cache(folder).obtain("k", fail)
        make = Maker()
        with pytest.raises(type(error), match=error.message) as caught:
            Cache(folder).obtain("k", make)
        assert make.calls == 0
        assert (caught.value.fix, caught.value.local_detail) == (error.fix, error.local_detail)

    def test_what_could_not_be_read_is_tried_again(self, folder):
        def fail() -> Prepared:
            raise UnreadableFileError("Codec missing.")

        with pytest.raises(UnreadableFileError, match="Codec"):
            Cache(folder).obtain("k", fail)
        assert Cache(folder).obtain("k", Maker()).spacing_mm == (1.0, 2.0, 3.0)

    def test_many_writers_of_one_entry_leave_a_whole_one(self, folder):
        def work() -> None:
            for number in range(10):
                Cache(folder).obtain(str(number), Maker())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        make = Maker()
        for number in range(10):
            assert np.array_equal(np.load(Cache(folder).obtain(str(number), make).image_path), PREPARED.image)
        assert make.calls == 0
        assert not list(folder.rglob("*.part"))

    def test_a_full_disk_is_a_clear_error_and_leaves_nothing_behind(self, folder, monkeypatch):
        cache = Cache(folder)

        def full(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(CohortError, match="disk of the site's cache is full"):
            cache.obtain("k", Maker())
        assert [path for path in folder.rglob("*") if path.is_file()] == []

    def test_a_refusal_that_may_be_the_machines_fault_is_forgotten_after_a_day(self, folder, monkeypatch):
        Cache(folder).refuse("k", UnreadableFileError("It took too long."), for_ever=False)
        assert isinstance(Cache(folder).find("k"), UnreadableFileError)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 86_401)
        assert Cache(folder).find("k") is None
        assert Cache(folder).obtain("k", Maker()).spacing_mm == (1.0, 2.0, 3.0)


def image(*paths: Path) -> Case:
    """A case of one series."""
    return Case("P", "", "", paths, "dicom")


class TestState:
    def test_it_changes_with_size_times_and_inode_of_any_file(self, folder, tmp_path):
        a, b = tmp_path / "a", tmp_path / "b"
        cache, case = Cache(folder), dataclasses.replace(image(a), label=(b,), further=(image(tmp_path / "c"),))
        states = [cache.state(case)]
        for path in (a, b, tmp_path / "c"):
            path.write_bytes(b"abc")
            states.append(cache.state(case))
        a.chmod(0o600)  # changes nothing but the time of the last change
        states.append(cache.state(case))
        known = b.stat()
        (tmp_path / "d").write_bytes(b"abd")
        os.utime(tmp_path / "d", ns=(known.st_atime_ns, known.st_mtime_ns))
        (tmp_path / "d").rename(b)
        states.append(cache.state(case))
        assert len({state.signature for state in states}) == len(states)
        assert len({state.place for state in states}) == 1
        assert (states[-1].files, states[-1].size_bytes) == (3, 9)
        assert cache.state(case) == states[-1]


class TestContent:
    def test_names_and_order_of_files_do_not_count_but_roles_do(self, folder, tmp_path):
        a, b, c = (tmp_path / name for name in "abc")
        a.write_bytes(b"1")
        b.write_bytes(b"2")
        c.write_bytes(b"1")
        cache = Cache(folder)
        first = cache.content(Case("P", "", "", (a, b), "dicom"))
        assert cache.content(Case("Q", "s", "t", (b, c), "dicom")) == first
        assert cache.content(Case("P", "", "", (a,), "dicom", (b,), "dicom_seg")) != first
        assert cache.content(Case("P", "", "", (a, b), "nifti")) != first

    def test_a_missing_file_is_unreadable(self, folder, tmp_path):
        with pytest.raises(UnreadableFileError, match="can't be read"):
            Cache(folder).content(Case("P", "", "", (tmp_path / "none",), "dicom"))

    def test_the_stack_and_further_channels_in_their_order_count(self, folder, tmp_path):
        a, b, c = (tmp_path / name for name in "abc")
        for number, path in enumerate((a, b, c)):
            path.write_bytes(bytes([number]))
        cache, first = Cache(folder), image(a)
        contents = [
            cache.content(case)
            for case in (
                first,
                dataclasses.replace(first, stack="b=800"),
                dataclasses.replace(first, further=(image(b),)),
                dataclasses.replace(first, further=(image(b), image(c))),
                dataclasses.replace(first, further=(image(c), image(b))),
            )
        ]
        assert len(set(contents)) == 5

    def test_it_is_remembered_until_a_file_changes(self, folder, tmp_path, monkeypatch):
        path = tmp_path / "x"
        path.write_bytes(b"abc")
        cache = Cache(folder)
        content = cache.content(image(path))
        cache.save()
        with monkeypatch.context() as sealed:
            sealed.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
            again = Cache(folder)
            assert again.content(image(path)) == again.recall(again.state(image(path))) == content
        path.write_bytes(b"abd")
        assert Cache(folder).recall(cache.state(image(path))) is None
        assert Cache(folder).content(image(path)) != content

    def test_what_two_openings_learn_at_a_time_is_not_lost(self, folder, tmp_path):
        paths = [tmp_path / "x", tmp_path / "y"]
        caches = [Cache(folder), Cache(folder)]
        for cache, path in zip(caches, paths, strict=True):
            path.write_bytes(b"abc")
            cache.content(image(path))
        for cache in caches:
            cache.save()
        third = Cache(folder)
        assert all(third.recall(third.state(image(path))) for path in paths)

    @pytest.mark.parametrize("text", ["[", "[]", "{}", '{"a": 1}'])
    def test_a_damaged_index_is_forgotten(self, folder, tmp_path, text):
        (tmp_path / "x").write_bytes(b"abc")
        folder.mkdir()
        (folder / "index.json").write_text(text)
        assert Cache(folder).content(image(tmp_path / "x")) == Cache(tmp_path / "new").content(image(tmp_path / "x"))


class TestTrying:
    def test_a_process_that_ended_inside_is_remembered_until_another_one_comes_through(self, folder):
        code = (
            "import os, sys; from pathlib import Path; from eucaim_fl.cohorts.cache import Cache;"
            "cache = Cache(Path(sys.argv[1])); trying = cache.trying('k'); trying.__enter__(); os._exit(1)"
        )
        assert not Cache(folder).is_suspect("k")
        subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
        cache = Cache(folder)
        assert cache.is_suspect("k")
        assert not cache.is_suspect("l")
        with cache.trying("k"):
            assert not Cache(folder).is_suspect("k")  # somebody is at it
        assert not cache.is_suspect("k")

    def test_an_error_inside_makes_nothing_suspect(self, folder):
        cache = Cache(folder)
        with pytest.raises(SeriesError, match="Gap"), cache.trying("k"):
            raise SeriesError("Gap.")
        assert not cache.is_suspect("k")
        assert not list(folder.rglob("*.trying"))

    def test_a_note_that_can_not_be_written_is_an_error(self, folder):
        cache = Cache(folder)
        shutil.rmtree(folder)
        with pytest.raises(CohortError, match="can't be written"), cache.trying("k"):
            pass


class TestFolder:
    def test_a_folder_that_can_not_be_made_is_an_error(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CohortError, match="can't be written"):
            Cache(tmp_path / "file" / "cache")

    def test_it_is_closed_to_other_users(self, folder):
        Cache(folder)
        assert folder.stat().st_mode & 0o077 == 0

    def test_a_folder_that_vanished_is_an_error_when_something_is_kept(self, folder, tmp_path):
        (tmp_path / "x").touch()
        cache = Cache(folder)
        cache.content(image(tmp_path / "x"))
        shutil.rmtree(folder)
        with pytest.raises(CohortError, match="can't be written"):
            cache.save()
        with pytest.raises(CohortError, match="can't be written"):
            cache.obtain("k", Maker())
        with pytest.raises(CohortError, match="can't be written"):
            cache.refuse("k", SeriesError("Gap."))


class TestCombine:
    def test_the_borders_of_its_parts_count(self):
        assert combine("ab", "c") != combine("a", "bc")
        assert combine() == hashlib.sha256(b"").hexdigest()
