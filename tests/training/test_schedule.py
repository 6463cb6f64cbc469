"""The learning rate over the rounds: where it begins, how it falls, where it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import ScheduleConfig
from eucaim_fl.training.schedule import factor

KINDS = ("constant", "linear", "cosine")
schedules = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(KINDS),
    warmup_rounds=st.integers(0, 20),
    floor=st.floats(0.0, 1.0),
)


def over(rounds: int, **values: Any) -> list[float]:
    schedule = ScheduleConfig.model_validate(values)
    return [factor(schedule, number, rounds) for number in range(1, rounds + 1)]


class TestFactor:
    def test_a_plan_that_says_nothing_has_one_rate(self) -> None:
        assert over(4) == [1.0] * 4

    def test_linear_falls_by_equal_steps(self) -> None:
        assert over(4, kind="linear") == [1.0, 0.75, 0.5, 0.25]

    def test_cosine_is_one_half_of_it_in_the_middle(self) -> None:
        assert over(2, kind="cosine") == [1.0, pytest.approx(0.5)]
        assert over(4, kind="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)

    def test_the_floor_is_reached_after_the_last_round(self) -> None:
        assert over(4, kind="linear", floor=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])
        for kind in ("linear", "cosine"):
            assert factor(ScheduleConfig(kind=kind, floor=0.2), 5, 4) == pytest.approx(0.2)

    @pytest.mark.parametrize("kind", KINDS)
    def test_warm_up_rises_by_equal_steps_to_the_whole_rate(self, kind: str) -> None:
        assert over(6, kind=kind, warmup_rounds=3)[:4] == [0.25, 0.5, 0.75, 1.0]

    def test_after_the_warm_up_it_falls_over_the_rounds_that_are_left(self) -> None:
        assert over(6, kind="linear", warmup_rounds=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])

    def test_a_warm_up_may_take_all_rounds(self) -> None:
        assert over(2, kind="cosine", warmup_rounds=2) == pytest.approx([1 / 3, 2 / 3])

    @given(schedules, st.integers(1, 60))
    def test_every_round_learns_and_none_more_than_the_plan_says(self, schedule: ScheduleConfig, rounds: int) -> None:
        assert all(0 < factor(schedule, number, rounds) <= 1 for number in range(1, rounds + 1))

    @given(schedules, st.integers(1, 60))
    def test_it_rises_to_the_end_of_the_warm_up_and_never_after(self, schedule: ScheduleConfig, rounds: int) -> None:
        found = [factor(schedule, number, rounds) for number in range(1, rounds + 4)]
        warm, after = found[: schedule.warmup_rounds], found[schedule.warmup_rounds :]
        assert all(a < b for a, b in pairwise(warm))
        assert all(a >= b for a, b in pairwise(after))
        if rounds > schedule.warmup_rounds:
            assert after[0] == 1.0
            assert found[-1] == (1.0 if schedule.kind == "constant" else pytest.approx(schedule.floor))

    @pytest.mark.parametrize(("number", "rounds"), [(0, 3), (-1, 3), (1, 0)])
    def test_rounds_count_from_1(self, number: int, rounds: int) -> None:
        with pytest.raises(ValueError, match="rounds count from 1"):
            factor(ScheduleConfig(), number, rounds)
