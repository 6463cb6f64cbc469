from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.splits import HeldOut, split_patients
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


KEY = bytes(range(32))
MANY = {f"p{i}": "" for i in range(5000)}
DECLARED = [("test",), ("validation",), ("validation", "test")]


def declared_names(declared):
    return "+".join(declared)


def shares(parts, of=5000):
    return [len(parts[name]) / of for name in ("train", "validation", "test")]


class TestHeldOut:
    @pytest.mark.parametrize("declared", DECLARED, ids=declared_names)
    def test_nobody_who_trains_in_one_plan_is_test_data_of_another(self, declared):
        strata, held_out = {f"p{i}": "" for i in range(60)}, HeldOut(0.3, declared, KEY)
        trained, told = set(), set()
        for seed in range(20):
            for validation, test in ((0.1, 0.3), (0.4, 0.1), (0.01, 0.89), (0.45, 0.45)):
                config = SplitConfig(validation=validation, test=test)
                parts = split_patients(strata, config, seed, "a", each_alone=True, held_out=held_out)
                trained |= set(parts["train"])
                told |= {patient for name in declared for patient in parts[name]}
                assert sorted(p for part in parts.values() for p in part) == sorted(strata)
        assert not trained & told
        assert told == {patient for patient in strata if held_out.holds(patient)}
        assert trained == set(strata) - told  # and so all others may be chosen to train

    @given(names=st.sets(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=40), seed=st.integers(0, 99))
    def test_nobody_moves_when_one_patient_goes(self, names, seed):
        held_out, gone = HeldOut(0.4, ("test",), KEY), min(names)
        whole = split_patients(dict.fromkeys(names, ""), SplitConfig(), seed, "a", held_out=held_out)
        rest = split_patients(dict.fromkeys(names - {gone}, "other"), SplitConfig(), seed, "a", held_out=held_out)
        assert {name: set(part) - {gone} for name, part in whole.items()} == {n: set(p) for n, p in rest.items()}

    @pytest.mark.parametrize(
        ("declared", "expected"),
        [
            (("test",), [0.7 * 0.5 / 0.6, 0.7 * 0.1 / 0.6, 0.3]),
            (("validation",), [0.7 * 0.5 / 0.9, 0.3, 0.7 * 0.4 / 0.9]),
            (("validation", "test"), [0.7, 0.3 * 0.1 / 0.5, 0.3 * 0.4 / 0.5]),
        ],
        ids=["test", "validation", "both"],
    )
    def test_the_shares_are_met_on_average(self, declared, expected):
        config = SplitConfig(validation=0.1, test=0.4)
        parts = split_patients(MANY, config, 1, "a", held_out=HeldOut(0.3, declared, KEY))
        assert shares(parts) == pytest.approx(expected, abs=0.03)  # four standard deviations and more

    def test_it_is_the_key_that_decides_not_seed_or_site(self):
        def held(seed, site, key):
            return split_patients(MANY, SplitConfig(), seed, site, held_out=HeldOut(0.2, ("test",), key))["test"]

        assert held(0, "a", KEY) == held(1, "b", KEY)
        assert held(0, "a", KEY) != held(0, "a", KEY[::-1])

    def test_a_larger_share_holds_the_same_patients_and_more(self):
        few, many = (HeldOut(share, ("test",), KEY) for share in (0.1, 0.2))
        assert {p for p in MANY if few.holds(p)} < {p for p in MANY if many.holds(p)}

    def test_the_draw_is_the_hmac_of_the_patient(self):
        # HMAC-SHA256 of RFC 4231, test case 1, begins with b0344c61d8db3853
        place = 0xB0344C61D8DB3853 / 2**64
        assert HeldOut(place + 1e-9, ("test",), b"\x0b" * 20).holds("Hi There")
        assert not HeldOut(place - 1e-9, ("test",), b"\x0b" * 20).holds("Hi There")

    def test_the_key_is_not_shown(self):
        assert "key" not in repr(HeldOut(0.2, ("test",), KEY))

    @pytest.mark.parametrize(("share", "declared"), [(0.0, ("test",)), (1.0, ("test",)), (0.2, ())])
    def test_what_draws_nobody_or_everybody_is_no_draw(self, share, declared):
        with pytest.raises(ValueError, match="a share between 0 and 1"):
            HeldOut(share, declared, KEY)
