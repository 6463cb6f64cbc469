"""What a site says beside its arrays: strict, without free text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.report import MetricsRecord, SiteReport, largest_sum

REPORT: dict[str, Any] = {
    "kind": "round",
    "site": "a",
    "plan_sha256": "0" * 64,
    "cohort_sha256": "f" * 64,
    "round": 1,
    "patients": 10,
}
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.sampled_from(["dice", "dice_lesion", "hd95_mm", "auc", "balanced_accuracy", "brier"])


class TestMetricsRecord:
    @given(
        st.builds(
            SiteMetrics,
            split=st.sampled_from(["train", "validation", "test"]),
            patients=st.integers(0, 10**6),
            values=st.dictionaries(names, finite),
            sums=st.dictionaries(
                names | st.sampled_from(["confusion", "scores_1_positive"]), st.lists(finite).map(tuple)
            ),
            withheld=st.sampled_from(["", "by_the_sites_rules"]),
        )
    )
    def test_metrics_come_back_as_they_were(self, metrics: SiteMetrics) -> None:
        travelled = MetricsRecord.model_validate_json(MetricsRecord.of(metrics).model_dump_json())
        assert travelled.plain() == metrics

    @pytest.mark.parametrize(
        "name", ["patient_007", "dice lesion", "dice_Anna", "dice_", "auc_007", "scores", "", "x" * 99]
    )
    @pytest.mark.parametrize("kind", ["values", "sums"])
    def test_a_metric_that_no_task_has_is_refused(self, name: str, kind: str) -> None:
        with pytest.raises(ValidationError, match="should match pattern"):
            MetricsRecord.model_validate(
                {"split": "test", "patients": 5, kind: {name: 0.5 if kind == "values" else (0.5,)}}
            )

    def test_a_histogram_is_a_sum_and_no_value(self) -> None:
        with pytest.raises(ValidationError, match="should match pattern"):
            MetricsRecord.model_validate({"split": "test", "patients": 5, "values": {"scores_1_positive": 1.0}})

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"patients": -1}, "greater than or equal to 0"),
            ({"split": "all"}, "'train', 'validation' or 'test'"),
            ({"values": {"dice": float("nan")}}, "finite number"),
            ({"sums": {"dice": (1.0, float("inf"))}}, "finite number"),
            ({"sums": {"confusion": (0.0,) * (largest_sum + 1)}}, "at most 4096 items"),
            ({"withheld": "Patient 007 objected"}, "should match pattern"),
            ({"note": "hello"}, "Extra inputs"),
        ],
    )
    def test_a_wrong_value_is_refused(self, changes: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            MetricsRecord.model_validate({"split": "test", "patients": 5, **changes})


class TestSiteReport:
    def test_it_comes_back_as_it_was(self) -> None:
        report = SiteReport.model_validate({**REPORT, "metrics": [{"split": "test", "patients": 5}], "seconds": 1.5})
        assert SiteReport.model_validate_json(report.model_dump_json()) == report

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"kind": "news"}, "'hello', 'statistics', 'round' or 'final'"),
            ({"site": "../a"}, "should match pattern"),
            ({"plan_sha256": "F" * 64}, "should match pattern"),
            ({"cohort_sha256": "P007"}, "should match pattern"),
            ({"round": -1}, "greater than or equal to 0"),
            ({"patients": -1}, "greater than or equal to 0"),
            ({"train_loss": float("nan")}, "finite number"),
            ({"seconds": -1.0}, "greater than or equal to 0"),
            ({"metrics": [{"split": "test", "patients": 5}] * 9}, "at most 8 items"),
            ({"comment": "P007"}, "Extra inputs"),
        ],
    )
    def test_a_wrong_value_is_refused(self, changes: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            SiteReport.model_validate({**REPORT, **changes})
