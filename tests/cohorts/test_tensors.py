"""Small tensors stay in memory, within bounds; large ones are mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts.tensors import Tensors


def written(folder: Path, name: str, numbers: int) -> Path:
    path = folder / f"{name}.npy"
    np.save(path, np.arange(numbers, dtype=np.float32))
    return path


class TestTensors:
    def test_a_small_one_is_read_once(self, tmp_path: Path) -> None:
        tensors, path = Tensors(), written(tmp_path, "a", 8)
        first = tensors.read(path)
        path.unlink()
        assert tensors.read(path) is first
        assert first.tolist() == list(range(8))

    def test_a_large_one_is_mapped(self, tmp_path: Path) -> None:
        assert isinstance(Tensors(small_bytes=100).read(written(tmp_path, "a", 64)), np.memmap)

    @pytest.mark.parametrize("small", [0, 10**6], ids=["mapped", "kept"])
    def test_neither_can_be_written_to(self, tmp_path: Path, small: int) -> None:
        with pytest.raises(ValueError, match="read-only"):
            Tensors(small_bytes=small).read(written(tmp_path, "a", 64))[0] = 1

    def test_the_one_that_was_longest_unused_makes_room(self, tmp_path: Path) -> None:
        tensors = Tensors(kept_bytes=80)
        a, b, c = (written(tmp_path, name, 8) for name in "abc")  # 32 bytes each
        first, _ = tensors.read(a), tensors.read(b)
        tensors.read(a)
        tensors.read(c)
        b.unlink()
        assert tensors.read(a) is first
        with pytest.raises(FileNotFoundError, match="b"):
            tensors.read(b)
