from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.facts import FileFacts
from eucaim_fl.cohorts.stacks import split_stacks

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
COUNTER = iter(range(10**9))


def image(z: float | None = None, **facts: Any) -> FileFacts:
    """An axial image at z mm, or one without a place."""
    number = next(COUNTER)
    place = {} if z is None else {"position": (0.0, 0.0, float(z)), "orientation": AXIAL, "spacing": (1.0, 1.0)}
    fixed: dict[str, Any] = {"path": f"{number}", "size": 1, "mtime_ns": 0, "ctime_ns": 0, "inode": 0}
    return FileFacts(**{**fixed, "rows": 4, "columns": 4, "sop_uid": f"1.{number}", **place, **facts})


def stacks(images: list[FileFacts]) -> dict[str, list[FileFacts]]:
    found = split_stacks(images)
    assert sorted(n for _, members in found for n in members) == list(range(len(images)))  # everybody, once
    return {name: [images[n] for n in members] for name, members in found}


class TestOneStack:
    def test_no_images_are_no_stacks(self):
        assert split_stacks([]) == []

    def test_slices_at_different_places_are_one_stack_whatever_else_differs(self):
        images = [image(z, acquisition=z, echo_time_ms=float(z), image_type=("A", str(z))) for z in range(5)]
        assert list(stacks(images)) == [""]

    def test_what_nothing_tells_apart_stays_together_for_the_reader_to_refuse(self):
        assert list(stacks([image(z) for z in (0, 1, 2, 0)])) == [""]

    def test_copies_of_an_instance_do_not_make_a_second_stack(self):
        assert list(stacks([image(0, sop_uid="1.2"), image(1), image(0, sop_uid="1.2")])) == [""]

    def test_one_uid_for_all_slices_does_not_make_them_copies(self):
        images = [image(z, sop_uid="1.2", b_value=b) for z in range(3) for b in (0, 800)]
        assert {name: len(members) for name, members in stacks(images).items()} == {"b=0": 3, "b=800": 3}

    def test_a_slice_that_lost_its_place_stays_with_the_others(self):
        assert list(stacks([image(0), image(1), image(None)])) == [""]

    def test_places_that_differ_by_rounding_are_the_same(self):
        images = [image(z + noise, echo_time_ms=echo) for z in (0, 3) for noise, echo in ((0, 1.5), (0.004, 3.0))]
        assert list(stacks(images)) == ["echo=1.5ms", "echo=3ms"]


class TestPlanes:
    @pytest.mark.parametrize(
        "other", [{"rows": 5}, {"columns": 5}, {"orientation": CORONAL}, {"spacing": (1.0, 2.0)}], ids=str
    )
    def test_another_size_orientation_or_spacing_is_always_another_stack(self, other):
        found = stacks([image(0), image(3), image(6, **other)])
        assert sorted(found) == ["plane=1", "plane=2"]
        assert sorted(map(len, found.values())) == [1, 2]

    def test_orientations_within_rounding_are_one_plane(self):
        assert list(stacks([image(0), image(3, orientation=(1.0, 0.0, 0.0, 0.0, 0.9999, 0.0001))])) == [""]

    def test_a_plane_is_divided_further(self):
        images = [image(z, b_value=b) for z in (0, 3) for b in (0, 800)] + [image(0, orientation=CORONAL)]
        assert sorted(stacks(images)) == ["plane=1", "plane=2,b=0", "plane=2,b=800"] or sorted(stacks(images)) == [
            "plane=1,b=0",
            "plane=1,b=800",
            "plane=2",
        ]


class TestDiscriminators:
    @pytest.mark.parametrize(
        ("name", "values", "labels"),
        [
            ("b_value", (50.0, 800.0), ["b=50", "b=800"]),
            ("b_value", (None, 800.0), ["b=none", "b=800"]),
            ("echo_time_ms", (2.46, 4.92), ["echo=2.46ms", "echo=4.92ms"]),
            ("temporal_position", (1, 2), ["time=1", "time=2"]),
            ("acquisition", (3, 7), ["acquisition=3", "acquisition=7"]),
            ("image_type", (("D", "P", "ADC"), ("D", "P", "TRACEW")), ["type=ADC", "type=TRACEW"]),
            ("image_type", (("D", "P"), ("D", "P", "ADC")), ["type=other", "type=ADC"]),
        ],
    )
    def test_each_names_its_stacks_in_order(self, name, values, labels):
        images = [image(z, **{name: value}) for z in (6, 0, 3) for value in reversed(values)]
        found = stacks(images)
        assert list(found) == labels
        for label, value in zip(labels, values, strict=True):
            assert {getattr(i, name) for i in found[label]} == {value}

    def test_one_that_is_enough_is_not_joined_by_others(self):
        images = [image(z, b_value=b, acquisition=int(b), echo_time_ms=b + 1) for z in (0, 3) for b in (0.0, 800.0)]
        assert list(stacks(images)) == ["b=0", "b=800"]

    def test_two_are_used_where_one_is_not_enough(self):
        images = [image(z, b_value=b, echo_time_ms=e) for z in (0, 3) for b in (0, 800) for e in (50.0, 90.0)]
        assert list(stacks(images)) == ["b=0,echo=50ms", "b=0,echo=90ms", "b=800,echo=50ms", "b=800,echo=90ms"]

    def test_a_number_that_merely_counts_the_slices_divides_nothing(self):
        images = [image(z, acquisition=n) for n, z in enumerate((0, 1, 2, 3, 0, 1, 2))]
        assert list(stacks(images)) == [""]

    def test_names_hold_nothing_but_what_image_types_are_made_of(self):
        images = [image(0, image_type=(text,)) for text in ("Müller, Anna/../x" * 9, "M\n[red]")]
        for name in stacks(images):
            assert set(name) <= set("type=ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./")
            assert len(name) < 64


class TestPasses:
    def test_complete_passes_are_told_apart_by_instance_number(self):
        images = [image(z, instance_number=10 * p + z) for p in (2, 1, 0) for z in (2, 0, 1)]
        found = stacks(images)
        assert list(found) == ["pass=1", "pass=2", "pass=3"]
        assert {i.instance_number for i in found["pass=2"]} == {10, 11, 12}

    def test_repetitions_of_one_b_value_are_passes_within_it(self):
        images = [image(z, b_value=0, instance_number=z) for z in (0, 1)]
        images += [image(z, b_value=800, instance_number=10 * p + z) for p in (1, 2) for z in (0, 1)]
        assert list(stacks(images)) == ["b=0", "b=800,pass=1", "b=800,pass=2"]

    @pytest.mark.parametrize("numbers", [(1, 2, 3, 4, 5), (1, 3, 2, 4, None, 5), (1, 1, 2, 2, 3, 3)])
    def test_incomplete_or_unnumbered_passes_are_not_guessed(self, numbers):
        images = [image(n // 2, instance_number=number) for n, number in enumerate(numbers)]
        assert list(stacks(images)) == [""]

    def test_mosaics_are_a_stack_each_even_at_different_places(self):
        images = [image(3 * n, instance_number=n, image_type=("M", "MOSAIC")) for n in (1, 2)]
        assert list(stacks(images)) == ["pass=1", "pass=2"]

    def test_images_without_a_place_are_a_stack_each(self):
        assert list(stacks([image(instance_number=n) for n in (7, 3)])) == ["pass=1", "pass=2"]


class TestProperties:
    FACTS = st.fixed_dictionaries(
        {
            "z": st.integers(0, 3),
            "b_value": st.sampled_from([None, 0.0, 800.0]),
            "acquisition": st.sampled_from([None, 1, 2]),
            "image_type": st.sampled_from([(), ("A",), ("A", "B")]),
            "orientation": st.sampled_from([AXIAL, CORONAL]),
            "instance_number": st.integers(1, 9) | st.none(),
        }
    )

    @given(facts=st.lists(FACTS, max_size=12), order=st.randoms(use_true_random=False))
    def test_the_order_of_images_changes_no_stack_and_nobody_is_lost(self, facts, order):
        images = [image(**one) for one in facts]
        found = {name: {i.path for i in members} for name, members in stacks(images).items()}
        assert len(found) == len(split_stacks(images))  # names are different
        shuffled = list(images)
        order.shuffle(shuffled)
        assert {name: {i.path for i in members} for name, members in stacks(shuffled).items()} == found

    @given(facts=st.lists(FACTS, min_size=1, max_size=12))
    def test_a_stack_is_one_plane(self, facts):
        for members in stacks([image(**one) for one in facts]).values():
            assert len({i.orientation for i in members}) == 1

    def test_many_images_that_nothing_tells_apart_cost_little(self):
        assert len(split_stacks([image(instance_number=n) for n in range(20_000)])) == 20_000
