"""PET values as standardised uptake by body weight: SUVbw = activity concentration x weight / dose at that time.

Source: DICOM PS3.3 C.8.9.1 (PET Series), C.8.9.2 (PET Isotope), C.8.9.4 (PET Image); QIBA FDG-PET/CT Profile, annex on
vendor-neutral computation of SUV (2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from eucaim_fl.errors import SeriesError

__all__ = ["PetFacts", "seconds_of_day", "suv_factors"]

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PetFacts:
    """What one PET slice's header says that SUV needs. Texts as DICOM writes them, empty where absent; numbers None.

    injected: RadiopharmaceuticalStartDateTime, else RadiopharmaceuticalStartTime. corrected: CorrectedImage.
    frame_reference_ms, duration_ms: FrameReferenceTime, ActualFrameDuration. philips_suv, philips_activity:
    (7053,1000) and (7053,1009) of the creator "Philips PET Private Group".
    """

    units: str = ""
    suv_type: str = ""
    decay_correction: str = ""
    corrected: tuple[str, ...] = ()
    weight_kg: float | None = None
    dose_bq: float | None = None
    half_life_s: float | None = None
    injected: str = ""
    series_date: str = ""
    series_time: str = ""
    acquisition_date: str = ""
    acquisition_time: str = ""
    frame_reference_ms: float | None = None
    duration_ms: float | None = None
    philips_suv: float | None = None
    philips_activity: float | None = None


def seconds_of_day(text: str) -> float | None:
    """Seconds since midnight of a DICOM TM (HHMMSS.ffffff, shorter forms, or the old HH:MM:SS); None if it is none.

    >>> seconds_of_day("101530.5")
    36930.5
    """
    whole, _, fraction = text.strip().replace(":", "").partition(".")
    if len(whole) not in (2, 4, 6) or not whole.isascii() or not whole.isdigit():
        return None
    hours, minutes, seconds = (int(whole[n : n + 2] or 0) for n in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 60 or (fraction and not (fraction.isascii() and fraction.isdigit())):
        return None
    return hours * 3600 + minutes * 60 + seconds + float(f"0.{fraction[:6] or 0}")


def _day(text: str) -> datetime | None:
    digits = text.strip().replace(".", "")
    try:
        return datetime.strptime(digits, "%Y%m%d") if len(digits) == 8 else None
    except ValueError:
        return None


def _missing(what: str) -> SeriesError:
    return SeriesError(
        f"SUV can't be computed for a PET series: {what} is missing or makes no sense.",
        fix="Ask for the series with this attribute, as the scanner wrote it.",
    )


def _positive(value: float | None, what: str) -> float:
    if value is None or not math.isfinite(value) or value <= 0:
        raise _missing(what)
    return value


def _apart(later_date: str, later: float, earlier_date: str, earlier: float) -> float:
    """Seconds from one time to another; the nearest such difference where a date is not stated."""
    days = _day(later_date), _day(earlier_date)
    if days[0] is not None and days[1] is not None:
        return (days[0] - days[1]) / timedelta(seconds=1) + later - earlier
    return (later - earlier + _DAY_S / 2) % _DAY_S - _DAY_S / 2


def _start_of_scan(facts: PetFacts, half_life_s: float) -> float:
    """Seconds from the slice's acquisition time back to the time that its decay correction refers to (negative)."""
    reference_s = facts.frame_reference_ms
    if reference_s is None or not math.isfinite(reference_s):
        raise _missing("FrameReferenceTime, needed because SeriesTime is later than AcquisitionTime,")
    duration_s = _positive(facts.duration_ms, "ActualFrameDuration") / 1000
    rate = math.log(2) / half_life_s
    average_s = math.log(rate * duration_s / -math.expm1(-rate * duration_s)) / rate
    return average_s - reference_s / 1000


def _elapsed(facts: PetFacts, earliest_s: float, half_life_s: float) -> float:
    """Seconds from the injection to the time that the slice's decay correction refers to.

    earliest_s: from SeriesTime to the earliest AcquisitionTime of the series. SeriesTime is the reference unless the
    series was made later from other images.
    """
    text = facts.injected.partition("+")[0].partition("-")[0]  # local times are compared, zones are the same
    digits = text.partition(".")[0]
    date, time = (text[:8], text[8:]) if len(digits) > 8 else ("", text)
    injected = seconds_of_day(time)
    if injected is None:
        raise _missing("RadiopharmaceuticalStartDateTime")
    series = seconds_of_day(facts.series_time)
    if series is None:
        raise _missing("SeriesTime")
    day, reference = facts.series_date, series
    if earliest_s < 0:
        acquired = seconds_of_day(facts.acquisition_time)
        if acquired is None:
            raise _missing("AcquisitionTime")
        day, reference = facts.acquisition_date, acquired + _start_of_scan(facts, half_life_s)
    if _day(date) is None or _day(day) is None:
        return (reference - injected) % _DAY_S
    elapsed = _apart(day, reference, date, injected)
    if not 0 <= elapsed < 20 * half_life_s:
        raise _missing("the time between injection and scan")
    return elapsed


def _of_slice(facts: PetFacts, earliest_s: float) -> float:
    if not facts.units:
        raise _missing("Units")
    if facts.units == "GML" and facts.suv_type in ("", "BW"):
        return 1.0
    scale = 1.0
    if facts.units == "CNTS":
        if facts.philips_suv is not None and math.isfinite(facts.philips_suv) and facts.philips_suv > 0:
            return facts.philips_suv
        scale = _positive(facts.philips_activity, "Philips' SUV Scale Factor (7053,1000)")
    elif facts.units != "BQML":
        raise SeriesError("A PET series is stored in a unit from which SUV by body weight can't be computed.")
    if facts.corrected and not {"ATTN", "DECY"} <= set(facts.corrected):
        raise SeriesError(
            "A PET series is not corrected for attenuation and decay, so its values are no activity.",
            fix="Use the corrected series of the same scan.",
        )
    weight_kg = _positive(facts.weight_kg, "PatientWeight")
    dose_bq = _positive(facts.dose_bq, "RadionuclideTotalDose")
    if facts.decay_correction == "ADMIN":
        return scale * weight_kg * 1000 / dose_bq
    if facts.decay_correction != "START":
        raise _missing("DecayCorrection")
    half_life_s = _positive(facts.half_life_s, "RadionuclideHalfLife")
    decayed = dose_bq * 2 ** (-_elapsed(facts, earliest_s, half_life_s) / half_life_s)
    return scale * weight_kg * 1000 / decayed


def suv_factors(slices: Sequence[PetFacts]) -> tuple[float, ...]:
    """For each slice of one series, what its rescaled values are multiplied with to be SUVbw in g/ml.

    BQML: weight in g / dose, the dose decayed from the injection to the time that the image's decay is corrected to
    (START; not at all for ADMIN). Times without dates may lie on both sides of midnight. CNTS: Philips' own factor,
    or its factor to Bq/ml. GML: 1, if it is by body weight.
    Raises SeriesError if the unit is another, the images are not corrected for attenuation and decay, or an attribute
    is missing or makes no sense; the message says which.
    """
    waits = []
    for facts in slices:
        series, acquired = seconds_of_day(facts.series_time), seconds_of_day(facts.acquisition_time)
        if series is not None and acquired is not None:
            waits.append(_apart(facts.acquisition_date, acquired, facts.series_date, series))
    earliest_s = min(waits, default=0.0)
    return tuple(_of_slice(facts, earliest_s) for facts in slices)
