"""A site's client: what it answers, what it keeps for itself, and that it can be thrown away at any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from eucaim_fl.arrays import arrays_sha256
from eucaim_fl.config import ClassificationConfig, ExperimentConfig, ModelConfig
from eucaim_fl.errors import CohortError, ConsentError, NotFiniteError, PlanError, PolicyError, SiteFileError
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.site.disclosure import WITHHELD
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.lineage import Lineage
from eucaim_fl.site.node import SiteNode, initial_arrays, network_image_size
from eucaim_fl.training.loop import TrainingOutcome

pytestmark = pytest.mark.integration

Hospital = Callable[..., Path]
Recipe = Callable[..., ExperimentConfig]
CLASSES = ClassificationConfig(spatial_dims=2, target="malignant", classes=("0", "1"))


@pytest.fixture
def node_of(hospital: Hospital, recipe: Recipe) -> Callable[..., SiteNode]:
    """Opens site `a` with the given release rules and recipe."""

    def make(release: dict[str, Any] | None = None, **changes: Any) -> SiteNode:
        path = hospital("a", **(release or {}))
        return SiteNode(path, make_plan(recipe([path], **changes), ("a",)))

    return make


class TestOpening:
    def test_a_plan_that_does_not_name_the_site_is_refused(self, hospital: Hospital, recipe: Recipe) -> None:
        path = hospital("a")
        plan = make_plan(recipe([path]), ("b",))
        with pytest.raises(PlanError, match="The plan does not name this site"):
            SiteNode(path, plan)

    def test_a_gpu_that_is_not_there_is_not_replaced_silently(
        self, hospital: Hospital, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = hospital("a")
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "compute": {"device": "cuda"}}))
        plan = make_plan(recipe([path]), ("a",))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SiteFileError, match=r"asks for a GPU, but there is none\. Set compute\.device to cpu"):
            SiteNode(path, plan)

    def test_a_policy_that_is_missing_or_wrong_is_refused(self, hospital: Hospital, recipe: Recipe) -> None:
        path = hospital("a")
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "policy": "policy.yaml"}))
        plan = make_plan(recipe([path]), ("a",))
        with pytest.raises(PolicyError, match="missing or can't be read"):
            SiteNode(path, plan)
        path.with_name("policy.yaml").write_text("schema: eucaim-fl-policy/1\nrounds: many\n")
        with pytest.raises(PolicyError, match=r"not valid: line 2 \(rounds\)"):
            SiteNode(path, plan)

    def test_with_a_policy_the_stricter_bounds_count(self, hospital: Hospital, recipe: Recipe) -> None:
        path = hospital("a", minimum_patients=3)
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "policy": "policy.yaml"}))
        policy = {
            "schema": "eucaim-fl-policy/1",
            "patients": {"training": 2, "metric": 4},
            "metrics": {"names": ["dice"], "decimals": 2},
            "privacy": {"mechanism": "none"},
        }
        path.with_name("policy.yaml").write_text(yaml.safe_dump(policy))
        bounds = SiteNode(path, make_plan(recipe([path]), ("a",))).bounds
        assert (bounds.minimum_patients, bounds.minimum_metric_patients) == (3, 4)
        assert (bounds.metrics, bounds.digits, bounds.pictures) == ({"dice"}, 2, False)

    def test_a_site_file_that_is_missing_is_refused(
        self, tmp_path: Path, plan_for: Callable[..., FederationPlan]
    ) -> None:
        with pytest.raises(SiteFileError, match="missing"):
            SiteNode(tmp_path / "a.yaml", plan_for())

    def test_too_few_training_patients_are_refused(self, hospital: Hospital, recipe: Recipe) -> None:
        path = hospital("a", patients=6, minimum_patients=7)
        plan = make_plan(recipe([path]), ("a",))
        with pytest.raises(CohortError, match="Too few patients would train at this site"):
            SiteNode(path, plan)

    def test_what_cpu_threads_it_takes_stands_in_the_site_file(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        torch.set_num_threads(2)  # as another site in the same process may have left it
        node.hello()
        assert torch.get_num_threads() == node.site.compute.threads == 1


class TestHello:
    def test_it_says_who_is_there_and_computes_nothing(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        answer = node.hello()
        assert (answer.report.kind, answer.report.site, answer.report.round) == ("hello", "a", 0)
        assert answer.report.patients == node.cohort.patients("train") == 8
        assert answer.report.plan_sha256 == node.plan.sha256()
        assert answer.report.cohort_sha256 == node.cohort.fingerprint
        assert (answer.report.metrics, dict(answer.update), answer.pictures) == ((), {}, None)

    @pytest.mark.parametrize(("aside", "told"), [(0, 0), (1, 0), (4, 0), (5, 5), (13, 10)])
    def test_how_many_were_set_aside_is_told_in_steps_of_the_site_s_minimum(
        self, node_of: Callable[..., SiteNode], aside: int, told: int
    ) -> None:
        node = node_of({"minimum_metric_patients": 5})
        node.cohort = replace(node.cohort, quarantined=(object(),) * aside)
        answer = node.hello()
        assert answer.report.quarantined == told
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()


class TestRound:
    def test_twice_gives_the_same_bits(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        _, weights = initial_arrays(node.plan)
        before = arrays_sha256(weights)
        once, again, next_round = (node.round(number, weights) for number in (1, 1, 2))
        assert arrays_sha256(once.update) == arrays_sha256(again.update) != arrays_sha256(next_round.update)
        assert once.report.metrics == again.report.metrics
        assert once.report.train_loss == again.report.train_loss
        assert arrays_sha256(weights) == before

    def test_a_node_that_was_thrown_away_changes_nothing(self, hospital: Hospital, recipe: Recipe) -> None:
        path = hospital("a")
        plan = make_plan(recipe([path]), ("a",))
        _, weights = initial_arrays(plan)
        warm = SiteNode(path, plan)
        warm.round(1, weights)
        assert arrays_sha256(warm.round(2, weights).update) == arrays_sha256(
            SiteNode(path, plan).round(2, weights).update
        )

    def test_the_answer_is_the_change_of_every_weight(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        specs, weights = initial_arrays(node.plan)
        answer = node.round(1, weights)
        assert node.specs() == specs
        assert set(answer.update) == {spec.name for spec in specs}
        trainable = [answer.update[spec.name] for spec in specs if spec.trainable]
        assert any(array.any() for array in trainable)
        counter = next(name for name in weights if name.endswith("num_batches_tracked"))
        assert int(answer.update[counter]) == answer.report.steps == 3
        assert refusals(answer, node.plan, specs, node.bounds) == ()

    def test_every_site_and_round_has_random_numbers_of_its_own(
        self, hospital: Hospital, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds: list[int] = []

        def recorded(network: Any, cases: Any, plan: Any, seed: int, **_: Any) -> TrainingOutcome:
            seeds.append(seed)
            return TrainingOutcome(0.0, 1, patients=8, lr_sum=0.1)

        monkeypatch.setattr("eucaim_fl.site.node.train_round", recorded)
        paths = [hospital("a"), hospital("b")]
        plan = make_plan(recipe(paths), ("a", "b"))
        _, weights = initial_arrays(plan)
        for path in paths:
            for number in (1, 2):
                SiteNode(path, plan).round(number, weights)
        assert len(set(seeds)) == 4

    @pytest.mark.parametrize(("steps", "seen"), [(1, 2), (3, 6), (20, 8)])
    def test_it_tells_how_many_patients_its_steps_saw_and_the_gate_looks_at_them(
        self, node_of: Callable[..., SiteNode], steps: int, seen: int
    ) -> None:
        node = node_of({"minimum_patients": 7}, training={"local_steps": steps, "batch_size": 2})
        specs, weights = initial_arrays(node.plan)
        answer = node.round(1, weights)
        assert (answer.report.patients, answer.report.seen, answer.report.steps) == (8, seen, steps)
        refused = ("an update from steps that saw fewer patients than the site's minimum",)
        assert refusals(answer, node.plan, specs, node.bounds) == (() if seen >= 7 else refused)

    def test_a_process_serves_one_site_after_the_other(self, hospital: Hospital, recipe: Recipe) -> None:
        paths = [hospital("a"), hospital("b")]
        plan = make_plan(recipe(paths), ("a", "b"))
        _, weights = initial_arrays(plan)
        answers = [SiteNode(path, plan).round(1, weights) for path in paths]
        assert [answer.report.site for answer in answers] == ["a", "b"]
        assert arrays_sha256(answers[0].update) == arrays_sha256(SiteNode(paths[0], plan).round(1, weights).update)

    def test_it_measures_the_arriving_weights_on_the_validation_patients(
        self, node_of: Callable[..., SiteNode]
    ) -> None:
        node = node_of()
        _, weights = initial_arrays(node.plan)
        answer = node.round(1, weights)
        (measured,) = answer.report.metrics
        (final, _) = node.final(3, weights).report.metrics
        assert (measured.split, measured.patients) == ("validation", 2)
        assert measured == final
        assert answer.pictures is None

    def test_metrics_below_the_sites_minimum_are_withheld(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of({"minimum_metric_patients": 3})
        _, weights = initial_arrays(node.plan)
        (measured,) = node.round(1, weights).report.metrics
        assert measured.withheld == WITHHELD
        assert (measured.patients, measured.values, measured.sums) == (0, {}, {})

    def test_arrays_of_another_network_are_refused(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        _, weights = initial_arrays(node.plan)
        name = next(iter(weights))
        for wrong in (
            {},
            {**weights, "patient_007": np.zeros(1)},
            {**weights, name: weights[name][None]},
            {**weights, name: weights[name].astype(np.float64)},
        ):
            with pytest.raises(PlanError, match=r"not this network's|should be") as caught:
                node.round(1, wrong)
            assert "007" not in str(caught.value)

    def test_training_that_diverges_sends_nothing(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of(training={"optimizer": {"lr": 1e30}})
        _, weights = initial_arrays(node.plan)
        with pytest.raises(NotFiniteError, match="not finite"):
            node.round(1, weights)

    def test_weights_that_are_not_finite_after_the_last_step_are_noticed(
        self, node_of: Callable[..., SiteNode]
    ) -> None:
        node = node_of(training={"local_steps": 1, "optimizer": {"lr": 1e38, "weight_decay": 1e10}})
        _, weights = initial_arrays(node.plan)
        with pytest.raises(NotFiniteError, match=r"A weight is not finite after training\."):
            node.round(1, weights)

    @pytest.mark.parametrize("leave", [True, False])
    def test_a_classification_sends_histograms_only_with_leave(
        self, hospital: Hospital, recipe: Recipe, leave: bool
    ) -> None:
        config = recipe([path := hospital("a", score_histograms=leave)])
        model = ModelConfig(name="small_cnn", args={"channels": [8], "strides": [2]})
        node = SiteNode(path, make_plan(config.model_copy(update={"task": CLASSES, "model": model}), ("a",)))
        specs, weights = initial_arrays(node.plan)
        answer = node.round(1, weights)
        assert any(name.startswith("scores_") for name in answer.report.metrics[0].sums) is leave
        assert refusals(answer, node.plan, specs, node.bounds) == ()


class TestFinal:
    def test_it_measures_validation_and_test_and_trains_nothing(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        _, weights = initial_arrays(node.plan)
        answer = node.final(3, weights)
        assert [(m.split, m.patients) for m in answer.report.metrics] == [("validation", 2), ("test", 2)]
        assert dict(answer.update) == {}
        assert (answer.report.kind, answer.report.round, answer.report.steps) == ("final", 3, 0)

    @pytest.mark.parametrize("data_is", ["synthetic", "public"])
    def test_pictures_of_test_patients_come_from_data_that_may_be_shown(
        self, node_of: Callable[..., SiteNode], data_is: str
    ) -> None:
        node = node_of({"data_is": data_is})
        _, weights = initial_arrays(node.plan)
        answer = node.final(3, weights)
        assert answer.pictures is not None
        assert answer.pictures.shape == (2, 192, 192, 3)
        assert answer.report.shares_pictures

    def test_a_confidential_site_never_gives_pictures(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of({"data_is": "confidential", "patients": 16})
        _, weights = initial_arrays(node.plan)
        answer = node.final(3, weights)
        assert answer.pictures is None
        assert not answer.report.shares_pictures
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()


class TestInitialArrays:
    def test_they_follow_from_the_plan_alone(self, plan_for: Callable[..., FederationPlan]) -> None:
        specs, weights = initial_arrays(plan_for())
        assert arrays_sha256(weights) == arrays_sha256(initial_arrays(plan_for())[1])
        assert arrays_sha256(weights) != arrays_sha256(initial_arrays(plan_for(seed=1))[1])
        assert [spec.name for spec in specs] == sorted(weights)


class TestNetworkImageSize:
    def test_the_patch_goes_before_the_grid(self, plan_for: Callable[..., FederationPlan]) -> None:
        assert network_image_size(plan_for()) == (16, 16)
        assert network_image_size(plan_for(training={"patch_voxels": [8, 8]})) == (8, 8)
        assert network_image_size(plan_for(data={"size_voxels": [None, 16, None]})) is None


class TestConsent:
    def table(self, path: Path, *withdrawn: str) -> None:
        """The site's consent table: everybody's consent, and some withdrawals."""
        rows = [f"PATIENT-{number:03d},given,2024-01-01,research" for number in range(12)]
        rows += [f"{patient},withdrawn,2025-01-01," for patient in withdrawn]
        (path.parent / "consent.csv").write_text("\n".join(["patient_id,status,date,purposes", *rows]) + "\n")

    def site(self, hospital: Hospital, **release: Any) -> Path:
        path = hospital("a", **release)
        values = yaml.safe_load(path.read_text())
        values["consent"] = {"table": str(path.parent / "consent.csv")}
        path.write_text(yaml.safe_dump(values))
        self.table(path)
        return path

    def test_who_withdraws_between_two_rounds_is_not_in_the_second(self, hospital: Hospital, recipe: Recipe) -> None:
        path = self.site(hospital)
        node = SiteNode(path, make_plan(recipe([path]), ("a",)))
        _, weights = initial_arrays(node.plan)
        before = {name: {c.patient for c in node.cohort.cases(name)} for name in ("train", "validation", "test")}
        assert node.round(1, weights).report.patients == 8
        gone = min(before["train"])
        self.table(path, gone)
        report = node.round(2, weights).report
        assert report.patients == 7
        after = {name: {c.patient for c in node.cohort.cases(name)} for name in before}
        assert after == {**before, "train": before["train"] - {gone}}

    def test_the_others_stay_in_their_splits_when_the_cohort_is_opened_anew(
        self, hospital: Hospital, recipe: Recipe
    ) -> None:
        path = self.site(hospital)
        plan = make_plan(recipe([path]), ("a",))
        whole = SiteNode(path, plan)
        gone = min(case.patient for case in whole.cohort.cases("train"))
        self.table(path, gone)
        shrunk = SiteNode(path, plan)
        assert shrunk.cohort.fingerprint == whole.cohort.fingerprint
        for name in ("train", "validation", "test"):
            kept = {case.patient for case in whole.cohort.cases(name)} - {gone}
            assert {case.patient for case in shrunk.cohort.cases(name)} == kept

    def test_a_site_left_with_too_few_patients_stops(self, hospital: Hospital, recipe: Recipe) -> None:
        path = self.site(hospital, minimum_patients=8)
        node = SiteNode(path, make_plan(recipe([path]), ("a",)))
        _, weights = initial_arrays(node.plan)
        self.table(path, min(case.patient for case in node.cohort.cases("train")))
        with pytest.raises(CohortError, match="Too few patients would train at this site"):
            node.round(1, weights)

    def test_a_table_that_can_not_be_trusted_any_more_stops_the_site(self, hospital: Hospital, recipe: Recipe) -> None:
        path = self.site(hospital)
        node = SiteNode(path, make_plan(recipe([path]), ("a",)))
        _, weights = initial_arrays(node.plan)
        (path.parent / "consent.csv").unlink()
        with pytest.raises(ConsentError, match="until then no patient is used"):
            node.final(1, weights)


class TestLineage:
    def test_who_was_used_in_which_round_is_known_at_the_site(self, node_of: Callable[..., SiteNode]) -> None:
        node = node_of()
        _, weights = initial_arrays(node.plan)
        node.round(1, weights)
        node.final(2, weights)
        trained, tested = (min(case.patient for case in node.cohort.cases(name)) for name in ("train", "test"))
        lineage = Lineage(node.site.records_folder())
        assert [(c.use, c.rounds) for c in lineage.contributions([trained])] == [("train", (1, 1))]
        (found,) = lineage.contributions([tested])
        assert (found.use, found.rounds, found.model_sha256) == ("test", (2, 2), arrays_sha256(weights))
        assert found.plan_sha256 == node.plan.sha256()
