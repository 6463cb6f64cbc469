from __future__ import annotations

import pytest

from eucaim_fl.cohorts.deidentification import patterns


class TestDays:
    @pytest.mark.parametrize(
        "text",
        ["12.03.1953", "1953-03-12", "03/12/1953", "3/14/1953", "19530312", "12031953", "12 Mar 1953", "12marzo1953"],
    )
    def test_a_day_in_any_usual_order(self, text: str) -> None:
        assert patterns.days(f"on {text}.") == 1

    @pytest.mark.parametrize("text", ["2018-01-01", "20180101", "01.01.2018", "1 Jan 2018", "1/1/2018"])
    def test_1_january_stands_for_a_year(self, text: str) -> None:
        assert patterns.days(text) == 0

    @pytest.mark.parametrize("text", ["2018", "1.2.3", "99999999", "20189999", "version 1.12.2", "00702"])
    def test_other_numbers_are_no_days(self, text: str) -> None:
        assert patterns.days(text) == 0

    def test_without_days_takes_1_january_away_too(self) -> None:
        assert "2018" not in patterns.without_days("20180101 and 2018-05-06")


class TestShapes:
    def test_an_address_of_a_mail_box(self) -> None:
        assert patterns.emails("write to a.b+c@klinik.example.org or d@e.de") == 2
        assert patterns.emails("T2 @ 3T") == 0

    @pytest.mark.parametrize("text", ["+49 170 1234567", "(0650) 123-4567", "+390612345678", "0043 1 23 45 67 89"])
    def test_a_telephone_number(self, text: str) -> None:
        assert patterns.phones(text) == 1

    @pytest.mark.parametrize("text", ["4.000000-t2tsetra-00702", "0 50 400 800", "0.9765625", "512 512 24"])
    def test_numbers_of_scanners_are_no_telephone_numbers(self, text: str) -> None:
        assert patterns.phones(text) == 0

    def test_a_bank_account(self) -> None:
        assert patterns.ibans("DE89 3704 0044 0532 0130 00") == 1
        assert patterns.ibans("COM1001370") == 0

    def test_a_counter_with_leading_zeros_is_no_long_number(self) -> None:
        assert patterns.long_numbers("0000012") == 0
        assert patterns.long_numbers("0123456") == 1

    def test_what_is_long_and_random_is_taken_away(self) -> None:
        text = (
            "1.2.840.113619.2.55 3f2b8c1e-1234-4abc-9def-001122334455 d41d8cd98f00b204e9800998ecf8427e EUCAIM-12345678"
        )
        assert patterns.without_opaque(text).strip(" \x1f") == ""

    def test_a_number_with_a_letter_is_no_hash(self) -> None:
        assert patterns.without_opaque("12345678A") == "12345678A"


class TestIsPseudonym:
    def test_only_the_prefix_and_a_hash(self) -> None:
        assert patterns.is_pseudonym("EUCAIM-00a1b2c3d4e5f607")
        assert not patterns.is_pseudonym("EUCAIM-Rossi")
        assert not patterns.is_pseudonym("PAT1")
