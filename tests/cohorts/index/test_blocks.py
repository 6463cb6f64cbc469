from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eucaim_fl.cohorts.index.blocks import Blocks

NAMES = st.lists(st.text(alphabet="aP1-/é0", min_size=1, max_size=6).map(lambda s: s.strip("/")), max_size=40)


def table(path: Path, folders: list[str], rows_a_group: int, statistics: bool = True) -> Blocks:
    columns = {"folder": sorted(folders), "number": list(range(len(folders)))}
    schema = pa.schema({"folder": pa.string(), "number": pa.int64()})
    pq.write_table(pa.table(columns, schema), path, row_group_size=rows_a_group, write_statistics=statistics)
    return Blocks(path, ["number", "folder"])


class TestBlocks:
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        folders=NAMES, group=st.integers(1, 5), statistics=st.booleans(), wanted=st.sampled_from(["", "P1", "a", "é"])
    )
    def test_rows_are_those_that_a_look_at_each_would_find(
        self, tmp_path: Path, folders: list[str], group: int, statistics: bool, wanted: str
    ) -> None:
        blocks = table(tmp_path / "x.parquet", folders, group, statistics)
        own = [name for name in sorted(folders) if name == wanted]
        below = [name for name in sorted(folders) if name.startswith(f"{wanted}/") or not wanted]
        assert [folder for _, folder in blocks.rows(wanted)] == own
        assert [folder for _, folder in blocks.rows(wanted, recursive=True)] == (below if not wanted else own + below)
        skip = len(wanted) + 1 if wanted else 0
        assert blocks.folders(wanted) == sorted({name[skip:].partition("/")[0] for name in below} - {""})
        blocks.close()

    def test_only_a_few_groups_stay_in_memory(self, tmp_path: Path) -> None:
        blocks = table(tmp_path / "x.parquet", [f"{n:03d}" for n in range(100)], 2)
        assert len(list(blocks.rows("", recursive=True))) == 100
        assert len(blocks._kept) == 4
        assert blocks.folders("") == [f"{n:03d}" for n in range(100)]

    def test_a_missing_table_is_pyarrows_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"x\.parquet"):
            Blocks(tmp_path / "x.parquet", [])
