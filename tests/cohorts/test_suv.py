from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.suv import PetFacts, seconds_of_day, suv_factors
from eucaim_fl.errors import SeriesError

FDG = PetFacts(  # 70 kg, 350 MBq, one half life before the scan: 175 MBq are left, so 70000 g / 175e6 Bq
    units="BQML",
    decay_correction="START",
    corrected=("NORM", "DTIM", "ATTN", "SCAT", "DECY"),
    weight_kg=70.0,
    dose_bq=350e6,
    half_life_s=6600.0,
    injected="20240301100000.00",
    series_date="20240301",
    series_time="115000",
    acquisition_date="20240301",
    acquisition_time="115000.000000",
    frame_reference_ms=0.0,
    duration_ms=180_000.0,
)
EXPECTED = 70_000 / 175e6


class TestSuvFactors:
    def test_a_dose_decays_from_the_injection_to_the_scan(self):
        assert suv_factors([FDG]) == pytest.approx([EXPECTED])

    def test_a_dose_that_the_image_is_corrected_to_does_not_decay(self):
        assert suv_factors([replace(FDG, decay_correction="ADMIN", injected="")]) == pytest.approx([EXPECTED / 2])

    @pytest.mark.parametrize("injected", ["100000", "100000.000", "20240301100000.00+0100", "10:00:00"])
    def test_the_injection_is_taken_with_and_without_its_date(self, injected):
        assert suv_factors([replace(FDG, injected=injected)]) == pytest.approx([EXPECTED])

    def test_midnight_may_lie_between_injection_and_scan(self):
        late = replace(FDG, injected="231000", series_time="010000", acquisition_time="010000")
        assert suv_factors([late]) == pytest.approx([EXPECTED])
        dated = replace(late, injected="20240229231000")
        assert suv_factors([dated]) == pytest.approx([EXPECTED])

    def test_later_beds_of_one_scan_share_its_reference(self):
        beds = [FDG, replace(FDG, acquisition_time="120500", frame_reference_ms=900_000.0)]
        assert suv_factors(beds) == pytest.approx([EXPECTED, EXPECTED])

    def test_a_series_made_later_refers_to_the_acquisition(self):
        made_later = replace(FDG, series_time="180000", frame_reference_ms=89_000.0)
        rate = math.log(2) / 6600
        average = math.log(rate * 180 / (1 - math.exp(-rate * 180))) / rate  # a little less than half of the 180 s
        assert 89 < average < 90
        elapsed = 6600 + average - 89
        assert suv_factors([made_later]) == pytest.approx([70_000 / (350e6 * 2 ** (-elapsed / 6600))])

    def test_philips_counts_have_their_own_factor(self):
        assert suv_factors([PetFacts(units="CNTS", philips_suv=0.0004)]) == (0.0004,)
        counts = replace(FDG, units="CNTS", philips_suv=0.0, philips_activity=2.0)
        assert suv_factors([counts]) == pytest.approx([2 * EXPECTED])

    @pytest.mark.parametrize("kind", ["", "BW"])
    def test_values_that_are_suv_by_weight_stay(self, kind):
        assert suv_factors([PetFacts(units="GML", suv_type=kind)]) == (1.0,)

    @given(factor=st.floats(0.1, 10))
    def test_twice_the_weight_is_twice_the_suv_and_twice_the_dose_half_of_it(self, factor):
        heavier = replace(FDG, weight_kg=70 * factor)
        assert suv_factors([heavier])[0] == pytest.approx(EXPECTED * factor)
        assert suv_factors([replace(FDG, dose_bq=350e6 * factor)])[0] == pytest.approx(EXPECTED / factor)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"units": ""}, "Units"),
            ({"weight_kg": None}, "PatientWeight"),
            ({"weight_kg": 0.0}, "PatientWeight"),
            ({"dose_bq": None}, "RadionuclideTotalDose"),
            ({"dose_bq": math.nan}, "RadionuclideTotalDose"),
            ({"half_life_s": None}, "RadionuclideHalfLife"),
            ({"injected": ""}, "RadiopharmaceuticalStartDateTime"),
            ({"injected": "20240301"}, "RadiopharmaceuticalStartDateTime"),
            ({"series_time": ""}, "SeriesTime"),
            ({"decay_correction": "NONE"}, "DecayCorrection"),
            ({"injected": "20240302100000"}, "between injection and scan"),
            ({"injected": "20230301100000"}, "between injection and scan"),
            ({"series_time": "180000", "frame_reference_ms": None}, "FrameReferenceTime"),
            ({"series_time": "180000", "duration_ms": None}, "ActualFrameDuration"),
            ({"units": "CNTS"}, r"\(7053,1000\)"),
        ],
    )
    def test_a_missing_attribute_is_named(self, change, named):
        with pytest.raises(SeriesError, match=named):
            suv_factors([replace(FDG, **change)])

    @pytest.mark.parametrize("change", [{"units": "PROPCNTS"}, {"units": "GML", "suv_type": "LBM"}])
    def test_other_units_are_refused(self, change):
        with pytest.raises(SeriesError, match="unit"):
            suv_factors([replace(FDG, **change)])

    @pytest.mark.parametrize("corrected", [("DECY",), ("ATTN",), ("NORM",)])
    def test_images_without_the_corrections_are_refused(self, corrected):
        with pytest.raises(SeriesError, match="attenuation and decay"):
            suv_factors([replace(FDG, corrected=corrected)])


class TestSecondsOfDay:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("10", 36000), ("1015", 36900), ("101530.25", 36930.25), ("10:15:30", 36930), ("000000", 0)],
    )
    def test_every_form_of_a_time(self, text, seconds):
        assert seconds_of_day(text) == seconds

    @pytest.mark.parametrize("text", ["", "1", "24", "1060", "abcdef", "10153", "101530.x", "²²"])
    def test_what_is_no_time(self, text):
        assert seconds_of_day(text) is None

    @given(text=st.text(max_size=12))
    def test_any_text_gives_a_time_of_day_or_none(self, text):
        found = seconds_of_day(text)
        assert found is None or 0 <= found <= 86_401
