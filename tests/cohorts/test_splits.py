from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.splits import split_patients
from eucaim_fl.config import SplitConfig

_STRATA = st.dictionaries(st.text(min_size=1, max_size=6), st.sampled_from(["", "0", "1", "2"]), max_size=40)
_SHARES = st.tuples(st.floats(0.01, 0.44), st.floats(0.01, 0.44)).map(lambda s: SplitConfig(validation=s[0], test=s[1]))


class TestSplitPatients:
    @given(_STRATA, _SHARES, st.integers(0, 2**31))
    def test_every_patient_is_in_exactly_one_split(self, strata, config, seed):
        parts = split_patients(strata, config, seed, "a")
        everyone = [patient for part in parts.values() for patient in part]
        assert sorted(everyone) == sorted(strata)

    @given(_STRATA, _SHARES, st.integers(0, 2**31))
    def test_from_three_patients_on_no_split_is_empty(self, strata, config, seed):
        parts = split_patients(strata, config, seed, "a")
        assert all(parts.values()) == (len(strata) >= 3)

    @given(_STRATA, st.randoms(use_true_random=False))
    def test_the_order_of_patients_changes_nothing(self, strata, random):
        shuffled = list(strata.items())
        random.shuffle(shuffled)
        assert split_patients(dict(shuffled), SplitConfig(), 3, "a") == split_patients(strata, SplitConfig(), 3, "a")

    @given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
    def test_each_class_gives_its_share_to_within_one_patient(self, few, many, seed):
        strata = {f"p{i}": str(int(i < few)) for i in range(few + many)}
        parts = split_patients(strata, SplitConfig(validation=0.25, test=0.25), seed, "a")
        for stratum, size in (("1", few), ("0", many)):
            tested = sum(strata[p] == stratum for p in parts["test"])
            assert abs(tested - size * len(parts["test"]) / (few + many)) <= 1

    def test_ten_patients_become_six_two_and_two(self):
        parts = split_patients({f"p{i}": "" for i in range(10)}, SplitConfig(), 0, "a")
        assert {name: len(part) for name, part in parts.items()} == {"train": 6, "validation": 2, "test": 2}

    def test_with_two_patients_both_train(self):
        assert split_patients({"p": "", "q": ""}, SplitConfig(), 0, "a")["train"] == ("p", "q")

    def test_the_seed_and_the_site_decide(self):
        strata = {f"p{i}": "" for i in range(40)}
        first = split_patients(strata, SplitConfig(), 0, "a")
        assert first == split_patients(strata, SplitConfig(), 0, "a")
        assert first != split_patients(strata, SplitConfig(), 1, "a")
        assert first != split_patients(strata, SplitConfig(), 0, "b")


class TestEachAlone:
    @given(names=st.sets(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=40), seed=st.integers(0, 99))
    def test_nobody_moves_when_one_patient_goes(self, names, seed):
        config = SplitConfig()
        whole = split_patients(dict.fromkeys(names, ""), config, seed, "a", each_alone=True)
        gone = min(names)
        rest = split_patients(dict.fromkeys(names - {gone}, ""), config, seed, "a", each_alone=True)
        assert {name: set(part) - {gone} for name, part in whole.items()} == {n: set(p) for n, p in rest.items()}

    def test_the_shares_are_met_on_average(self):
        parts = split_patients({f"p{i}": "" for i in range(5000)}, SplitConfig(), 1, "a", each_alone=True)
        shares = [len(parts[name]) / 5000 for name in ("train", "validation", "test")]
        assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.025)  # more than four standard deviations
        assert sum(shares) == 1.0
