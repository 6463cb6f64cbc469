"""Bounded types of network arguments."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from eucaim_fl.models.bounds import Channels, Kernel, Strides, Switch, axes, require_groups


class TestAxes:
    def test_one_number_holds_for_every_axis(self) -> None:
        assert axes(2, 3) == (2, 2, 2)

    def test_numbers_per_axis_stay_as_they_are(self) -> None:
        assert axes((1, 2, 2), 3) == (1, 2, 2)


class TestStrides:
    def test_an_entry_is_one_number_or_one_per_axis(self) -> None:
        assert TypeAdapter(Strides).validate_python([2, [1, 2, 2]]) == (2, (1, 2, 2))

    @pytest.mark.parametrize("entry", [0, 5, "2", 2.0, True, None, [2], [2, 2, 2, 2], [2, "2"], [2, 0], {"x": 2}])
    def test_anything_else_is_refused_in_one_sentence(self, entry: object) -> None:
        with pytest.raises(ValidationError, match="expected a whole number from 1 to 4, or one for each of 2 or 3"):
            TypeAdapter(Strides).validate_python([2, entry])


class TestStrictness:
    @pytest.mark.parametrize("width", ["16", 16.0, True, 1, 1025])
    def test_a_width_is_a_bounded_whole_number(self, width: object) -> None:
        with pytest.raises(ValidationError, match="Input should be"):
            TypeAdapter(Channels).validate_python([width])

    def test_a_kernel_has_a_middle(self) -> None:
        with pytest.raises(ValidationError, match="odd number"):
            TypeAdapter(Kernel).validate_python(4)

    def test_a_switch_is_true_or_false(self) -> None:
        with pytest.raises(ValidationError, match="valid boolean"):
            TypeAdapter(Switch).validate_python("yes")


class TestRequireGroups:
    def test_group_normalisation_wants_channels_in_groups_of_eight(self) -> None:
        with pytest.raises(ValueError, match=r"divisible by 8, got \[16, 12\]"):
            require_groups("group", [16, 12])

    def test_the_others_take_any_number(self) -> None:
        require_groups("batch", [16, 12])
        require_groups("instance", [7])
        require_groups("group", [8, 64])
