"""Records go to JSON and come back as they were."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.records import Participation, RoundRecord, SiteMetrics

names = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.builds(
    SiteMetrics,
    split=st.sampled_from(["train", "validation", "test"]),
    patients=st.integers(0, 1000),
    values=st.dictionaries(names, numbers, max_size=3),
    sums=st.dictionaries(names, st.lists(numbers, max_size=3).map(tuple), max_size=3),
    withheld=names,
)
participations = st.builds(
    Participation,
    site=names,
    status=st.sampled_from(["took_part", "error", "lost", "deadline", "rejected", "absent"]),
    reason=names,
    seconds=numbers,
)
records = st.builds(
    RoundRecord,
    round=st.integers(1, 100),
    arriving_sha256=names,
    weights_sha256=names,
    participation=st.lists(participations, max_size=3).map(tuple),
    metrics=st.dictionaries(names, st.lists(metrics, max_size=2).map(tuple), max_size=3),
    pooled=st.dictionaries(names, st.dictionaries(names, numbers, max_size=2), max_size=2),
    train_loss=st.dictionaries(names, numbers, max_size=3),
    aggregated_from=st.lists(names, max_size=3).map(tuple),
    seconds=numbers,
)


class TestRoundRecord:
    @given(records)
    def test_it_comes_back_from_a_file_as_it_was(self, record: RoundRecord) -> None:
        text = json.dumps(record.to_json(), allow_nan=False)
        assert RoundRecord.from_json(json.loads(text)) == record

    def test_it_can_not_be_changed(self) -> None:
        record = RoundRecord(1, "a", "b", (), {}, {}, {}, (), 0.0)
        with pytest.raises(FrozenInstanceError, match="round"):
            record.round = 2  # type: ignore[misc]

    def test_a_record_with_a_foreign_key_is_not_read(self) -> None:
        value = RoundRecord(1, "a", "b", (), {}, {}, {}, (), 0.0).to_json()
        with pytest.raises(TypeError, match="colour"):
            RoundRecord.from_json({**value, "colour": "red"})
