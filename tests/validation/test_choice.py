"""The model that a site chooses by its own validation patients."""

from __future__ import annotations

from eucaim_fl.records import ModelName, SiteMetrics, SplitName
from eucaim_fl.validation.choice import CHOSEN, best_model, by_model

ALL: tuple[ModelName, ...] = ("common", "personal", "local")


def told(model: ModelName, split: SplitName = "validation", **values: float) -> SiteMetrics:
    return SiteMetrics(split, 9, values, model=model)


class TestBestModel:
    def test_the_best_by_the_task_s_own_metric_is_chosen(self) -> None:
        figures = [told("common", dice=0.7, hd95_mm=1.0), told("personal", dice=0.8, hd95_mm=9.0)]
        assert best_model("segmentation", ALL[:2], figures) == "personal"

    def test_a_figure_to_fall_back_on_chooses_none(self) -> None:
        """Where nobody has the disease, a model that never finds it has the best Brier score."""
        figures = [told("common", brier=0.2), told("personal", auc=0.9, brier=0.3), told("local", brier=0.1)]
        assert best_model("classification", ALL, figures) == "common"
        assert best_model("classification", ALL[1:], figures) == "personal"

    def test_of_equals_the_first_is_chosen(self) -> None:
        figures = [told(model, dice=0.5) for model in reversed(ALL)]
        assert best_model("segmentation", ALL, figures) == "common"
        assert best_model("segmentation", ALL[1:], figures) == "personal"

    def test_test_patients_do_not_count(self) -> None:
        figures = [told(model, dice=0.5) for model in ALL] + [told("local", "test", dice=0.9)]
        assert best_model("segmentation", ALL, figures) == "common"

    def test_nothing_is_chosen_where_a_model_was_not_measured(self) -> None:
        withheld = SiteMetrics("validation", 0, withheld="by_the_sites_rules", model="common")
        assert best_model("segmentation", ALL[:2], [withheld, told("personal", dice=0.9)]) is None
        assert best_model("segmentation", ALL[:2], [told("personal", dice=0.9)]) is None
        assert best_model("segmentation", ALL[:2], [told(m, hd95_mm=1.0) for m in ALL[:2]]) is None


class TestByModel:
    def test_each_site_s_own_choice_stands_beside_the_models(self) -> None:
        common, local = told("common", "test", dice=0.7), told("local", "test", dice=0.8)
        metrics = {"b": [common, local, told("local", dice=0.1)], "a": [common, local], "c": [common]}
        found = by_model(metrics, {"a": "local", "b": "common"}, "test")
        assert {model: list(sites) for model, sites in found.items()} == {
            "common": ["a", "b", "c"], "local": ["a", "b"], CHOSEN: ["a", "b"],
        }  # fmt: skip
        assert (found[CHOSEN]["a"], found[CHOSEN]["b"]) == (local, common)

    def test_nobody_s_choice_is_left_out(self) -> None:
        assert set(by_model({"a": [told("common")]}, {}, "validation")) == {"common"}
