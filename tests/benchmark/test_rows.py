"""What a recipe's rows mean, and which can't stand in one table."""

from __future__ import annotations

import re

import pytest

from eucaim_fl.benchmark.rows import FLOWER, Row, as_shipped, check_row, poisoned_name, rows_of
from eucaim_fl.config import MethodConfig
from eucaim_fl.errors import RecipeError
from eucaim_fl.federation.poison import Poison
from eucaim_fl.parsing import SITE_NAME


class TestRowsOf:
    def test_the_benchmarks_own_rows_come_first(self) -> None:
        rows = rows_of({"fedavg": ("method=fedavg",)})
        assert [(row.name, row.trained) for row in rows] == [
            ("local", "local"),
            ("pooled", "pooled"),
            (FLOWER, "flower"),
            ("fedavg", "federation"),
        ]

    def test_the_benchmarks_own_words_are_no_overrides(self) -> None:
        row = rows_of({"bad": ("method=median", "poison=flip:a", "rounds=3")}, ["bad"])[0]
        assert row == Row("bad", ("method=median", "rounds=3"), "federation", Poison("flip", "a"))

    def test_a_row_of_the_recipe_takes_the_place_of_a_built_in_one(self) -> None:
        rows = rows_of({"pooled": ("trained=pooled", "training.optimizer.lr=0.1")})
        assert rows[1].overrides == ("training.optimizer.lr=0.1",)
        assert len(rows) == 3

    def test_names_that_no_row_has_are_refused_with_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match="no benchmark row 'fedvag'") as told:
            rows_of({"fedavg": ()}, ["fedvag"])
        assert "fedavg" in told.value.fix

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (("trained=magic",), "no way to train"),
            (("poison=flip",), "KIND:SITE"),
            (("poison=burn:a",), "KIND:SITE"),
            (("trained=pooled", "poison=flip:a"), "trained=federation"),
        ],
        ids=["way", "no-site", "kind", "poison-without-federation"],
    )
    def test_other_words_are_refused(self, overrides: tuple[str, ...], words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            rows_of({"x": overrides})

    def test_names_of_the_tables_own_are_refused(self) -> None:
        with pytest.raises(RecipeError, match="name already"):
            rows_of({"local_mean": ()})


class TestCheckRow:
    def test_rounds_times_steps_are_what_counts(self, plan_for) -> None:
        base = plan_for(rounds=2, training={"local_steps": 3})
        check_row(Row("few", ()), plan_for(rounds=1, training={"local_steps": 6}), base)
        with pytest.raises(RecipeError, match="makes 9 optimizer steps and the recipe 6"):
            check_row(Row("more", ()), plan_for(rounds=3, training={"local_steps": 3}), base)

    def test_other_patients_are_refused(self, plan_for) -> None:
        other = plan_for(data={"split": {"test": 0.3}})
        with pytest.raises(RecipeError, match=r"changes data\.split"):
            check_row(Row("x", ()), other, plan_for())

    @pytest.mark.parametrize("trained", ["federation", "local", "pooled", "flower"])
    def test_no_row_begins_with_weights_that_were_trained_before(self, plan_for, trained) -> None:
        warm = plan_for().model_copy(update={"start_sha256": "0" * 64})
        for base in (plan_for(), warm):
            with pytest.raises(RecipeError, match=r"benchmark\.rows\.x begins with given weights"):
                check_row(Row("x", (), trained), warm, base)

    def test_a_bad_site_must_be_one_of_the_plans(self, plan_for) -> None:
        with pytest.raises(RecipeError, match="no site 'z'"):
            check_row(Row("x", (), "federation", Poison("flip", "z")), plan_for(), plan_for())

    def test_flowers_own_rounds_have_no_models_of_the_sites(self, plan_for) -> None:
        plan = plan_for(method={"personal": {"ditto": 0.1}})
        with pytest.raises(RecipeError, match="no rounds of statistics"):
            check_row(Row("x", (), "flower"), plan, plan)


class TestAsShipped:
    def test_only_what_flower_has_is_left(self, recipe) -> None:
        config = recipe(["a.yaml"], method={"objective": {"name": "proximal"}}, data={"standardise": "federation"})
        shipped = as_shipped(config)
        assert shipped.method == MethodConfig()
        assert shipped.data.standardise == "none"
        assert shipped.training.optimizer == config.training.optimizer


class TestPoisonedName:
    def test_a_run_with_a_bad_site_has_a_name_of_its_own(self) -> None:
        assert poisoned_name("demo", None) == "demo"
        assert poisoned_name("demo" * 20, Poison("scale", "a" * 60))[:20] == ("demo" * 20)[:20]
        assert len(poisoned_name("demo" * 20, Poison("scale", "a" * 60))) <= 63

    def test_names_that_have_to_be_cut_stay_different(self) -> None:
        poisons = [Poison("scale", "a" * 60), Poison("scale", "a" * 59 + "b"), Poison("noise", "a" * 60)]
        found = {poisoned_name(name, poison) for poison in poisons for name in ("demo" * 12, "demo" * 12 + "s")}
        assert len(found) == 6
        assert all(re.fullmatch(SITE_NAME, name) for name in found)

    def test_names_that_need_no_cut_are_whole(self) -> None:
        assert poisoned_name("x" * 50, Poison("flip", "a")) == "x" * 50 + "-flip-a"
