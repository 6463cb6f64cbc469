"""The comparison: equal steps, the same patients, honest intervals, no confidential data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eucaim_fl.comparison import (
    FEDERATED,
    POOLED,
    Held,
    check_comparable,
    check_one_model,
    compare_models,
    held_out,
    train_alone,
)
from eucaim_fl.compose import resolve
from eucaim_fl.errors import GateError, RecipeError
from eucaim_fl.records import INPUT_MEAN

pytestmark = pytest.mark.integration


def held(model, values, seed=0):
    return Held(model, seed, {("a" if i < 2 else "b", f"p{i}"): (v, 1.0) for i, v in enumerate(values)})


class TestCompareModels:
    @pytest.fixture
    def table(self):
        return compare_models(
            [
                held("local a", [0.2, 0.4, 0.0, 0.2]),
                held("local b", [0.0, 0.2, 0.4, 0.6]),
                held(POOLED, [0.5, 0.5, 0.5, 0.7]),
                held(FEDERATED, [0.6, 0.6, 0.6, 0.8]),
            ],
            "segmentation",
            0,
        )

    def test_estimates_are_means_over_the_same_patients(self, table):
        assert table["models"][FEDERATED]["estimate"] == pytest.approx(0.65)
        assert table["models"]["local a"]["by_site"] == pytest.approx({"a": 0.3, "b": 0.1})
        assert table["mean_of_local"] == pytest.approx(0.25)

    def test_differences_are_paired_by_patient(self, table):
        difference = table["differences"]["federated - pooled"]
        assert difference["estimate"] == pytest.approx(0.1)
        assert difference["low"] == pytest.approx(0.1)  # every patient differs by exactly 0.1
        assert difference["high"] == pytest.approx(0.1)

    def test_a_patient_held_out_under_two_seeds_counts_once(self):
        runs = [
            held(m, v, s) for m in ("local a", POOLED, FEDERATED) for s, v in ((0, [0, 0, 0, 0]), (1, [1, 1, 1, 1]))
        ]
        table = compare_models(runs, "segmentation", 0)
        assert table["models"][POOLED]["patients"] == 4
        assert table["models"][POOLED]["estimate"] == 0.5
        assert table["models"][POOLED]["by_seed"] == {"0": 0.0, "1": 1.0}

    def test_a_patient_with_an_undefined_value_is_left_out_for_all_and_counted(self):
        table = compare_models(
            [held("local a", [0.2, np.nan, 0, 0]), held(POOLED, [1, 1, 0, 0]), held(FEDERATED, [1, 1, 0, 0])],
            "segmentation",
            0,
        )
        assert table["undefined"] == 1
        assert {row["patients"] for row in table["models"].values()} == {3}
        assert table["models"][POOLED]["estimate"] == pytest.approx(1 / 3)

    def test_a_site_without_any_value_is_null_not_nan(self):
        gone = [0.5, 0.5, np.nan, np.nan]
        table = compare_models([held(m, gone) for m in ("local a", POOLED, FEDERATED)], "segmentation", 0)
        assert json.dumps(table, allow_nan=False)

    def test_two_classes_are_compared_by_auc(self):
        values = {
            ("a", f"p{i}"): (1 - score, score, truth)
            for i, (score, truth) in enumerate([(0.1, 0), (0.4, 1), (0.35, 0), (0.8, 1)])
        }
        worse = {k: (s, r, t) for k, (r, s, t) in values.items()}
        table = compare_models(
            [Held("local a", 0, worse), Held(POOLED, 0, values), Held(FEDERATED, 0, values)], "classification", 0
        )
        assert table["metric"] == "auc"
        assert table["models"][POOLED]["estimate"] == 1.0
        assert table["models"]["local a"]["estimate"] == 0.0

    def test_three_classes_are_compared_by_the_mean_of_their_areas(self):
        values = {("a", f"p{i}"): (*np.eye(3)[i % 3], i % 3) for i in range(6)}
        runs = [Held(name, 0, values) for name in ("local a", POOLED, FEDERATED)]
        assert compare_models(runs, "classification", 0)["models"][POOLED]["estimate"] == 1.0


class TestTraining:
    def test_a_federation_of_one_site_is_that_site_alone(self, hospital, recipe):
        """One site, plain averaging: the federated rounds are the local training, up to rounding of the differences."""
        from eucaim_fl.site.node import SiteNode, initial_arrays

        path = hospital("a")
        plan = resolve(recipe([path], rounds=1)).plan
        _, weights = initial_arrays(plan)
        update = SiteNode(path, plan).round(1, weights).update
        weights = {n: weights[n] + u if u.dtype.kind == "f" else u for n, u in update.items()}
        alone = train_alone(plan, [path], "a")
        assert all(np.allclose(alone[n], weights[n], atol=1e-5) for n in weights)

    @pytest.mark.parametrize("whose", ["site", "federation"])
    def test_inputs_are_standardised_as_in_the_federation(self, hospital, recipe, whose):
        files = {name: hospital(name) for name in "ab"}
        plan = resolve(recipe(list(files.values()), rounds=1, data={"standardise": whose})).plan
        arrays = train_alone(plan, list(files.values()), POOLED)
        assert (arrays[INPUT_MEAN] == 0).all() == (whose == "site")  # there each site's cases were, before the network
        assert {site for site, _ in held_out(plan, files, arrays)} == {"a", "b"}

    def test_every_site_is_tested(self, hospital, recipe):
        files = {name: hospital(name) for name in "ab"}
        plan = resolve(recipe(list(files.values()), rounds=1)).plan
        values = held_out(plan, files, train_alone(plan, list(files.values()), POOLED))
        assert {site for site, _ in values} == {"a", "b"}


class TestCheckComparable:
    def test_confidential_data_is_refused(self, hospital, recipe):
        path = hospital("a", data_is="confidential")
        with pytest.raises(GateError, match="confidential"):
            check_comparable(resolve(recipe([path])).plan, {"a": path})

    def test_a_plan_with_noise_is_refused_and_its_patients_are_not_called_the_same(self, hospital, recipe):
        path = hospital("a")
        noise = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0}
        with pytest.raises(RecipeError, match="trained without noise") as told:
            check_comparable(resolve(recipe([path], privacy=noise)).plan, {"a": path})
        assert told.value.fix.endswith("its held-out patients are others.")

    def test_epochs_are_refused(self, hospital, recipe):
        path = hospital("a")
        epochs = {"batch_size": 4, "local_steps": None, "local_epochs": 1}
        with pytest.raises(RecipeError, match="equal numbers"):
            check_comparable(resolve(recipe([path], training=epochs)).plan, {"a": path})

    def test_weights_to_begin_with_are_refused(self, hospital, recipe):
        path = hospital("a")
        warm = resolve(recipe([path])).plan.model_copy(update={"start_sha256": "0" * 64})
        with pytest.raises(RecipeError, match="begin with random weights"):
            check_comparable(warm, {"a": path})

    def test_many_classes_are_not_refused(self, hospital, recipe):
        path = hospital("a")
        task = {"name": "classification", "spatial_dims": 2, "target": "malignant", "classes": ["0", "1", "2"]}
        config = recipe([path]).model_dump() | {"task": task, "model": {"name": "small_cnn"}}
        check_comparable(resolve(type(recipe([path])).model_validate(config)).plan, {"a": path})

    def test_hospitals_whose_cohorts_are_elsewhere_are_refused(self, hospital, recipe):
        path = hospital("a")
        with pytest.raises(RecipeError, match="cohorts on this machine"):
            check_comparable(resolve(recipe([path])).plan, {})


class TestOneModel:
    def test_arrays_that_stay_at_the_sites_leave_none_to_compare(self, hospital, recipe):
        path = hospital("a")
        own = resolve(recipe([path], method={"personal": {"arrays": "normalization"}})).plan
        with pytest.raises(RecipeError, match="no federated model to compare"):
            check_one_model(own)
        check_one_model(resolve(recipe([path])).plan)

    def test_a_blended_model_is_the_mean_of_two(self, hospital, recipe):
        path = hospital("a")
        plan = resolve(recipe([path], rounds=1)).plan
        arrays = train_alone(plan, [path], POOLED)
        assert held_out(plan, {"a": path}, arrays, arrays) == held_out(plan, {"a": path}, arrays)
