"""Configuration is frozen, knows its keys, and names every fault with its place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eucaim_fl.config import PURPOSES, ExperimentConfig, SplitConfig, parse
from eucaim_fl.errors import PlanError, RecipeError

GOOD: dict[str, Any] = {
    "name": "tiny",
    "sites": ["a", "b"],
    "task": {"name": "segmentation", "labels": ["lesion"]},
    "model": {"name": "unet"},
    "training": {"local_steps": 3},
}
CLASSIFICATION = {"name": "classification", "target": "malignant", "classes": ["no", "yes"]}


def with_change(place: str, value: object) -> dict[str, Any]:
    """GOOD with the value at a dotted place replaced."""
    head, _, rest = place.partition(".")
    if not rest:
        return {**GOOD, head: value}
    inner = dict(GOOD.get(head, {}))
    middle, _, last = rest.partition(".")
    inner[middle] = {**inner.get(middle, {}), last: value} if last else value
    return {**GOOD, head: inner}


class TestParse:
    def test_a_good_recipe_gets_its_defaults(self) -> None:
        config = parse(ExperimentConfig, GOOD, "The recipe")
        assert (config.rounds, config.training.batch_size, config.method.rule.name) == (10, 8, "weighted_mean")

    @pytest.mark.parametrize(
        ("place", "meant"),
        [
            ("round", "rounds"),
            ("training.batchsize", "batch_size"),
            ("training.optimizer.learning", "weight_decay"),
            ("method.server_optimiser", "server_optimizer"),
            ("data.intensity.hihg", "high"),
            ("task.lables", "labels"),
        ],
    )
    def test_an_unknown_key_is_refused_with_the_nearest_known_one_at_its_place(self, place: str, meant: str) -> None:
        values = with_change(place, 1)
        with pytest.raises(RecipeError, match=rf"unknown key '[\w.]*{place.split('.')[-1]}'.*\b{meant}\b"):
            parse(ExperimentConfig, values, "The recipe")

    def test_the_tag_of_a_task_leads_to_the_keys_of_that_task(self) -> None:
        values = {**GOOD, "task": {**CLASSIFICATION, "klasses": 1}}
        with pytest.raises(RecipeError, match="Did you mean 'classes'") as caught:
            parse(ExperimentConfig, values, "The recipe")
        assert "labels" not in str(caught.value)

    @pytest.mark.parametrize(
        ("place", "value", "complaint"),
        [
            ("rounds", 0, r"rounds: input should be greater than or equal to 1 \(got 0\)"),
            ("name", "../x", "name: must be lower-case letters"),
            ("name", "Tiny", "name: must be lower-case letters"),
            ("seed", -1, "seed: input should be greater than or equal to 0"),
            ("sites", [], "sites: tuple should have at least 1 item"),
            ("sites", ["a", "a"], "a site is named twice"),
            ("federation.quorum", 3, "federation.quorum is 3, but there are 2 sites"),
            ("training.local_epochs", 1, "exactly one of training.local_steps and training.local_epochs"),
            ("training.local_steps", None, "exactly one of training.local_steps and training.local_epochs"),
            ("training.optimizer.lr", float("nan"), "input should be a finite number"),
            ("training.optimizer.momentum", 1.0, "less than 1"),
            ("data.orientation", "RAX", "data.orientation: string should match pattern"),
            ("data.spacing_mm", [1, 1, 0], r"data.spacing_mm.2: input should be greater than 0"),
            ("data.intensity.low", 240.0, r"intensity\.low must be below intensity\.high"),
            ("data.intensity", {"kind": "percentile", "low": -1, "high": 99}, "percentiles lie between 0 and 100"),
            ("data.split.test", 0.8, "validation and test together may take at most 0.9"),
            ("task", {**CLASSIFICATION, "classes": ["no", "no"]}, "classes must differ"),
            ("task", {"name": "detection"}, "task: input tag 'detection'"),
            ("privacy.mechanism", "dp", "privacy.mechanism: input should be 'none'"),
            ("model.name", "__import__", "model.name: string should match pattern"),
        ],
    )
    def test_a_wrong_value_is_refused_with_its_place(self, place: str, value: object, complaint: str) -> None:
        with pytest.raises(RecipeError, match=complaint):
            parse(ExperimentConfig, with_change(place, value), "The recipe")

    def test_all_faults_are_named_at_once(self) -> None:
        with pytest.raises(RecipeError, match=r"seed: .*; rounds: .*; unknown key 'sed'") as caught:
            parse(ExperimentConfig, {**GOOD, "seed": "x", "rounds": 0, "sed": 1}, "The recipe")
        assert "Did you mean 'seed'" in caught.value.fix

    def test_small_bounds_are_written_as_people_do(self) -> None:
        privacy = {"mechanism": "update_dp", "noise_multiplier": 1.0, "delta": -0.001, "clipping_norm": 1.0}
        with pytest.raises(RecipeError, match=r"greater than or equal to 1e-15 \(got -0.001\)") as caught:
            parse(ExperimentConfig, {**GOOD, "privacy": privacy}, "The recipe")
        assert caught.value.fix == "Give a value within the range."

    def test_several_unknown_keys_get_one_list(self) -> None:
        with pytest.raises(RecipeError, match=r"unknown key 'training\.rl'") as caught:
            parse(ExperimentConfig, {**GOOD, "training": {**GOOD["training"], "rl": 1, "los": 1}}, "The recipe")
        assert caught.value.fix.count("Known:") == 1
        assert "Did you mean 'loss' instead of 'los'?" in caught.value.fix

    def test_what_is_no_mapping_is_refused(self) -> None:
        with pytest.raises(RecipeError, match=r"\(top\): input should be a valid dictionary"):
            parse(ExperimentConfig, ["a"], "The recipe")

    def test_a_long_value_is_not_repeated(self) -> None:
        with pytest.raises(RecipeError, match="seed: ") as caught:
            parse(ExperimentConfig, {**GOOD, "seed": "x" * 61}, "The recipe")
        assert "got" not in str(caught.value)

    def test_values_of_other_files_are_a_local_detail(self) -> None:
        with pytest.raises(PlanError, match=r"^The plan is not valid: seed: ") as caught:
            parse(ExperimentConfig, {**GOOD, "seed": "P007"}, "The plan", PlanError)
        assert "P007" not in str(caught.value)
        assert caught.value.local_detail == "seed: (got 'P007')"


class TestFrozen:
    def test_a_value_can_not_be_changed(self) -> None:
        config = parse(ExperimentConfig, GOOD, "The recipe")
        with pytest.raises(ValidationError, match="frozen"):
            config.rounds = 3

    @given(st.floats(0.01, 0.89), st.floats(0.01, 0.89))
    def test_a_split_always_leaves_a_tenth_to_train_on(self, validation: float, test: float) -> None:
        try:
            split = SplitConfig(validation=validation, test=test)
        except ValidationError:
            assert validation + test > 0.9
        else:
            assert 1 - split.validation - split.test >= 0.1 - 1e-9


class TestFederation:
    def test_hospitals_and_a_home_belong_together(self) -> None:
        for values in ({"engine": "superlink"}, {"engine": "local", "home": "federations/liver"}):
            with pytest.raises(RecipeError, match="belong together"):
                parse(ExperimentConfig, {**GOOD, "federation": values}, "The recipe")

    def test_how_many_hospitals_there_are_is_not_the_recipe_s_to_say(self) -> None:
        values = {"engine": "superlink", "home": "federations/liver", "quorum": 7}
        assert parse(ExperimentConfig, {**GOOD, "federation": values}, "The recipe").federation.quorum == 7

    @pytest.mark.parametrize("ratio", [1.0, 0.0, -20.0, float("nan"), float("inf")])
    def test_a_ratio_that_leaves_out_the_median_is_refused(self, ratio: float) -> None:
        with pytest.raises(RecipeError, match="largest_norm_ratio"):
            parse(ExperimentConfig, {**GOOD, "federation": {"largest_norm_ratio": ratio}}, "The recipe")

    def test_the_purposes_are_those_of_the_regulation(self) -> None:
        assert len(PURPOSES) == 6
        assert parse(ExperimentConfig, GOOD, "The recipe").purpose == "scientific_research"
        with pytest.raises(RecipeError, match="purpose"):
            parse(ExperimentConfig, {**GOOD, "purpose": "marketing"}, "The recipe")
