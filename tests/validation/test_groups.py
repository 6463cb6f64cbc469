"""Groups of patients: by the plan's rules, by closed names, and exactly one for each rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.index.terms import vendor
from eucaim_fl.validation.groups import MAKERS, PatientValues, group_of, groups_of, maker, possible_groups, sex_letter
from eucaim_fl.validation_config import SubgroupConfig

AGE = SubgroupConfig(by="age", edges=(50.0, 70.0))
RULES = (
    SubgroupConfig(by="sex"),
    AGE,
    SubgroupConfig(by="manufacturer"),
    SubgroupConfig(by="field_strength_t", edges=(2.0,)),
    SubgroupConfig(by="slice_thickness_mm", edges=(1.5, 3.0)),
    SubgroupConfig(by="lesion_volume_ml", edges=(1.0,)),
)

numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)
values = st.builds(
    PatientValues,
    sex=st.text(max_size=8) | st.sampled_from(["F", "male", "O", "unknown"]),
    age=numbers,
    manufacturer=st.text(max_size=30) | st.sampled_from([*MAKERS, "SIEMENS", "Mary Smith"]),
    field_strength_t=numbers,
    slice_thickness_mm=numbers,
    lesion_volume_ml=numbers,
)


class TestGroupOf:
    @given(values)
    def test_whatever_a_hospital_writes_only_names_of_the_closed_list_come_out(self, one):
        assert all(group_of(one, rule) in possible_groups(rule) for rule in RULES)

    @pytest.mark.parametrize("age", [None, math.nan, math.inf, -1.0])
    def test_a_number_that_is_missing_or_impossible_is_not_known(self, age):
        assert group_of(PatientValues(age=age), AGE) == "age=unknown"

    @pytest.mark.parametrize(("age", "group"), [(0, "age<50"), (50, "age=50-70"), (69.9, "age=50-70"), (70, "age>=70")])
    def test_the_lower_edge_belongs_to_its_group(self, age, group):
        assert group_of(PatientValues(age=age), AGE) == group


class TestGroupsOf:
    @given(st.lists(values, max_size=4))
    def test_a_patient_is_in_exactly_one_group_of_each_rule(self, images):
        found = groups_of(images, RULES)
        assert [len(found & set(possible_groups(rule))) for rule in RULES] == [1] * len(RULES)

    @given(st.lists(values, min_size=1, max_size=4), st.randoms())
    def test_the_order_of_images_changes_nothing(self, images, random):
        mixed = images.copy()
        random.shuffle(mixed)
        assert groups_of(mixed, RULES) == groups_of(images, RULES)

    def test_images_of_two_scanners_leave_the_patient_in_no_makers_group(self):
        images = [PatientValues(manufacturer="GE", age=60), PatientValues(manufacturer="Siemens")]
        assert groups_of(images, RULES) >= {"manufacturer=unknown", "age=50-70", "sex=unknown"}


class TestMaker:
    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("GE MEDICAL SYSTEMS", "GE"),
            ("General Electric", "GE"),
            ("Siemens Healthineers", "Siemens"),
            ("Philips Medical Systems", "Philips"),
            ("FUJI PHOTO FILM Co., Ltd.", "Fujifilm"),
            ("FUJIFILM Corporation", "Fujifilm"),
            ("HOLOGIC, Inc.", "Hologic"),
            ("UIH", "United Imaging"),
            ("Canon Medical Systems", "Canon"),
            ("Gendex", "other"),
            ("Dr. Smith", "other"),
            ("", ""),
        ],
    )
    def test_makers_are_known_by_their_words(self, text, name):
        assert maker(text) == name

    @pytest.mark.parametrize("name", MAKERS)
    def test_a_name_of_the_list_stays_itself_and_is_what_the_index_calls_it(self, name):
        assert maker(name) == name
        assert maker(vendor(name)) == name


class TestSexLetter:
    @pytest.mark.parametrize(("text", "letter"), [("F", "F"), ("male", "M"), ("Other", "O"), ("U", ""), ("fem", "")])
    def test_it_is_a_letter_of_dicom_or_nothing(self, text, letter):
        assert sex_letter(text) == letter
