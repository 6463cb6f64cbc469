"""Each mechanism asks for what it needs, and refuses what belongs to another."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eucaim_fl.errors import RecipeError
from eucaim_fl.parsing import parse
from eucaim_fl.privacy_config import PrivacyConfig

NOISE: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0}
PATIENT: dict[str, Any] = {"mechanism": "patient_dp", "sampling_rate": 0.1, **NOISE}


class TestPrivacyConfig:
    def test_there_is_none_unless_asked_for(self) -> None:
        assert PrivacyConfig().mechanism == "none"

    @pytest.mark.parametrize(
        "values",
        [
            PATIENT,
            {**PATIENT, "noise_multiplier": None, "target_epsilon": 8.0},
            {**PATIENT, "multiplicity": 4, "gradients": "hooks", "metrics_noise": 8.0, "secure": False},
            {**PATIENT, "multiplicity": 4, "gradients": "ghost"},
            {"mechanism": "update_dp", **NOISE, "metrics_noise": 8.0},
            {"mechanism": "central_dp", **NOISE},
        ],
    )
    def test_a_mechanism_with_what_it_needs_is_complete(self, values: dict[str, Any]) -> None:
        assert PrivacyConfig.model_validate(values).secure is values.get("secure", True)

    @pytest.mark.parametrize(
        ("values", "complaint"),
        [
            ({"noise_multiplier": 1.0}, "mechanism none takes no epsilon, noise"),
            ({"sampling_rate": 0.1}, "mechanism none takes no"),
            ({"metrics_noise": 8.0}, "mechanism none takes no"),
            ({**PATIENT, "target_epsilon": 8.0}, "exactly one of privacy.target_epsilon and privacy.noise_multiplier"),
            ({**PATIENT, "noise_multiplier": None}, "exactly one of privacy.target_epsilon"),
            ({**PATIENT, "delta": None}, "patient_dp needs delta and clipping_norm"),
            ({**PATIENT, "clipping_norm": None}, "patient_dp needs delta and clipping_norm"),
            ({**PATIENT, "sampling_rate": None}, "sampling_rate belongs to patient_dp, which needs it"),
            ({"mechanism": "update_dp", **NOISE, "sampling_rate": 0.1}, "sampling_rate belongs to patient_dp"),
            ({"mechanism": "update_dp", **NOISE, "multiplicity": 2}, "multiplicity belongs to patient_dp"),
            ({"mechanism": "central_dp", **NOISE, "metrics_noise": 8.0}, "metrics_noise belongs to patient_dp and"),
            ({**PATIENT, "delta": 1.0}, "delta: input should be less than 1"),
            ({**PATIENT, "sampling_rate": 1.5}, "sampling_rate: input should be less than or equal to 1"),
            ({**PATIENT, "noise_multiplier": 0.01}, "noise_multiplier: input should be greater than or equal to 0.05"),
        ],
    )
    def test_what_is_missing_or_belongs_to_another_is_refused(self, values: dict[str, Any], complaint: str) -> None:
        with pytest.raises(RecipeError, match=re.escape(complaint)):
            parse(PrivacyConfig, values, "The recipe")
