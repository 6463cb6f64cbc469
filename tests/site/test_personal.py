"""What a site has beside the common model: it stays there, and a round that is repeated gives the same bits."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eucaim_fl.arrays import GUIDE, Array, ArrayFile, Arrays, arrays_sha256
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import JournalError, NotFiniteError, PlanError, StorageLimitError
from eucaim_fl.models.planned import first_arrays
from eucaim_fl.plan import make_plan
from eucaim_fl.records import Past
from eucaim_fl.site import personal
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.node import SiteNode, initial_arrays
from eucaim_fl.site.state_store import StateStore, part
from eucaim_fl.training.loop import TrainingOutcome, train_round
from tests.conftest import write_hospital

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

Hospital = Callable[..., Path]
Recipe = Callable[..., ExperimentConfig]
SCAFFOLD: dict[str, Any] = {
    "method": {"objective": {"name": "scaffold"}},
    "training": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0}},
}
BOTH: dict[str, Any] = {"objective": {"name": "scaffold"}, "personal": {"arrays": "normalization"}}


KEPT: dict[str, Any] = {"training": {"optimizer": {"name": "adam", "lr": 0.01, "kept": True}}}


class Place:
    """Site `a`, whose node can be thrown away, and rounds as a coordinator with this one site would make them."""

    def __init__(self, site_file: Path, config: ExperimentConfig) -> None:
        self.plan = make_plan(config, ("a",))
        self._file = site_file
        self.fresh()

    def fresh(self) -> None:
        self.node = SiteNode(self._file, self.plan)

    @property
    def store(self) -> StateStore:
        return StateStore(self.node.site.records_folder(), self.plan.sha256())

    @property
    def folder(self) -> Path:
        return self.node.site.records_folder() / "models" / self.plan.sha256()

    def rounds(self, weights: Mapping[str, Array], *numbers: int) -> list[Answer]:
        """Each round begins where the last one's update led to; its answer passes the gate."""
        answers, arriving = [], dict(weights)
        for number in numbers:
            answers.append(answer := self.node.round(number, arriving))
            assert refusals(answer, self.plan, self.node.specs(), self.node.bounds) == ()
            arriving = after(arriving, answer.update)
        return answers

    def state(self, number: int, run: str = "") -> Arrays:
        return self.store.before(number + 1, run)


def after(arriving: Mapping[str, Array], update: Mapping[str, Array]) -> Arrays:
    return {name: array + update[name] if array.dtype.kind == "f" else update[name] for name, array in arriving.items()}


def own(**personal: Any) -> dict[str, Any]:
    return {"method": {"personal": personal}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny hospital for all tests: what is kept of a plan lies by plan, and each test begins without."""
    return write_hospital(tmp_path_factory.mktemp("personal"), "a")


@pytest.fixture
def place(written: Path, recipe: Recipe) -> Callable[..., Place]:
    def make(**changes: Any) -> Place:
        here = Place(written, recipe([written], **changes))
        shutil.rmtree(here.folder.parent, ignore_errors=True)
        return here

    return make


class TestRepeating:
    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({**SCAFFOLD, "method": BOTH}, id="scaffold"),
            pytest.param(own(ditto=0.5, local=True, choose=True), id="ditto"),
            pytest.param({**own(arrays="head"), "data": {"standardise": "site"}}, id="head"),
            pytest.param({**own(local=True), **KEPT}, id="optimizer"),
        ],
    )  # fmt: skip
    def test_a_round_that_is_asked_again_has_the_same_bits_and_keeps_the_same_state(
        self, place: Callable[..., Place], changes: dict[str, Any]
    ) -> None:
        here = place(**changes)
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1, 2)
        once, state = here.node.round(3, weights), arrays_sha256(here.state(3))
        here.fresh()
        again = here.node.round(3, weights)
        assert arrays_sha256(once.update) == arrays_sha256(again.update)
        assert (once.report.metrics, once.report.train_loss) == (again.report.metrics, again.report.train_loss)
        assert arrays_sha256(here.state(3)) == state != arrays_sha256(here.state(2))

    def test_a_history_that_was_undone_is_forgotten(self, place: Callable[..., Place]) -> None:
        here = place(**own(ditto=0.5))
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1, 2)
        expected = arrays_sha256(here.state(2))
        here.node.round(3, {name: array * 0 for name, array in weights.items()})
        here.node.round(2, after(weights, here.node.round(1, weights).update))
        assert arrays_sha256(here.state(99)) == expected

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({**SCAFFOLD, "method": BOTH}, id="scaffold"),
            pytest.param(own(ditto=0.5, local=True), id="ditto"),
            pytest.param({**own(local=True), **KEPT}, id="optimizer"),
        ],
    )  # fmt: skip
    def test_the_same_plan_run_again_begins_afresh_even_where_the_site_misses_the_first_round(
        self, place: Callable[..., Place], changes: dict[str, Any]
    ) -> None:
        here = place(**changes)
        _, weights = initial_arrays(here.plan)
        told = 0 if "training" in changes and "objective" in changes.get("method", {}) else None
        expected = here.node.round(2, weights, Past("b" * 32, told))
        end = arrays_sha256(here.state(2, "b" * 32))
        here.store.remove()
        for number in (1, 2, 3):
            here.node.round(number, after(weights, expected.update), Past("a" * 32))
        again = here.node.round(2, weights, Past("b" * 32, told))
        assert arrays_sha256(again.update) == arrays_sha256(expected.update)
        assert arrays_sha256(here.state(99, "b" * 32)) == end

    def test_a_lost_state_begins_anew_and_the_log_says_so(
        self, place: Callable[..., Place], caplog: pytest.LogCaptureFixture
    ) -> None:
        here = place(**own(local=True))
        _, weights = initial_arrays(here.plan)
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            here.node.round(1, weights)
            assert "Nothing is kept here" not in caplog.text
            here.store.remove()
            here.node.round(2, weights)
        assert "Nothing is kept here of rounds before 2" in caplog.text

    def test_a_kept_optimizer_goes_on_with_what_it_remembers_of_the_round_before(
        self, place: Callable[..., Place]
    ) -> None:
        here, fresh = place(**KEPT), place(training={"optimizer": {"name": "adam", "lr": 0.01}})
        _, weights = initial_arrays(here.plan)
        first, second = (one.rounds(weights, 1, 2) for one in (here, fresh))
        assert arrays_sha256(first[0].update) == arrays_sha256(second[0].update)
        assert arrays_sha256(first[1].update) != arrays_sha256(second[1].update)
        steps = {array.item() for name, array in part(here.state(2), "moments").items() if name.startswith("step.")}
        assert steps == {6.0}  # two rounds of three

    def test_a_plan_without_a_state_touches_no_disk(self, place: Callable[..., Place]) -> None:
        here = place()
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1)
        here.node.final(3, weights)
        assert not here.folder.parent.exists()

    def test_a_state_that_can_not_be_kept_lets_nothing_leave(self, place: Callable[..., Place]) -> None:
        here = place(**own(local=True))
        here.folder.parent.write_text("no folder")
        try:
            with pytest.raises(JournalError, match="keeps of its own models can't be read or written"):
                here.node.round(1, initial_arrays(here.plan)[1])
        finally:
            here.folder.parent.unlink()


class TestRoom:
    @pytest.fixture
    def small(self, hospital: Hospital) -> Path:
        """A site that lets plans keep a kilobyte."""
        path = hospital("a")
        path.write_text(path.read_text() + "records: {models_gb: 1.0e-6}\n")
        return path

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param(SCAFFOLD, id="scaffold"),
            pytest.param(own(fine_tune_steps=2), id="models of the end alone"),
            pytest.param(KEPT, id="optimizer"),
        ],
    )  # fmt: skip
    def test_a_plan_that_needs_more_is_refused_before_anything_is_trained(
        self, small: Path, recipe: Recipe, changes: dict[str, Any]
    ) -> None:
        here = Place(small, recipe([small], **changes))
        with pytest.raises(StorageLimitError, match="has no room for this plan's"):
            here.node.hello()
        assert not here.folder.exists()

    def test_nor_is_anything_kept_beyond_it_later(self, small: Path, recipe: Recipe) -> None:
        here = Place(small, recipe([small], **own(fine_tune_steps=2, local=True)))
        _, weights = initial_arrays(here.plan)
        with pytest.raises(StorageLimitError, match="has no room for this plan's"):
            here.node.round(1, weights)
        with pytest.raises(StorageLimitError, match="has no room for this plan's"):
            here.node.final(3, weights)
        assert [path.name for path in here.folder.iterdir()] == ["plan.json"]

    def test_a_plan_that_keeps_nothing_needs_no_room(self, small: Path, recipe: Recipe) -> None:
        here = Place(small, recipe([small]))
        here.folder.parent.parent.mkdir(exist_ok=True)
        here.folder.parent.write_text("no folder")
        assert here.node.hello().report.kind == "hello"

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({**SCAFFOLD, "method": BOTH}, id="scaffold"),
            pytest.param({**own(ditto=0.5, local=True), **KEPT}, id="ditto"),
            pytest.param(KEPT, id="optimizer"),
        ],
    )  # fmt: skip
    def test_what_is_reserved_is_no_less_than_what_a_run_comes_to_keep(
        self, place: Callable[..., Place], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, asked = place(**changes), list[int]()
        monkeypatch.setattr(StateStore, "check_space", lambda self, needed, run: asked.append(needed))
        here.node.hello()
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1, 2, 3, 4)
        here.node.final(5, weights)
        files = [ArrayFile(path) for path in here.folder.rglob("*.safetensors")]
        kept = sum(array.nbytes for file in files for array in file.load().values())
        assert kept <= asked[0] <= 4 * kept

    def test_a_folder_that_can_not_be_read_is_said(self, place: Callable[..., Place]) -> None:
        here = place(**own(local=True))
        here.folder.parent.write_text("no folder")
        try:
            with pytest.raises(JournalError, match="can't be read or written"):
                here.node._own.check_space(here.node._network()[0])
        finally:
            here.folder.parent.unlink()


RUN = "a" * 32


class TestAnswersThatDidNotCount:
    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param(SCAFFOLD, id="scaffold"),
            pytest.param({**SCAFFOLD, "method": {"objective": {"name": "dynamic", "mu": 0.1}}}, id="dynamic"),
        ],
    )  # fmt: skip
    def test_what_the_method_remembers_is_as_if_they_had_not_been_asked_for(
        self, place: Callable[..., Place], changes: dict[str, Any]
    ) -> None:
        updates, states = [], []
        for lost in ((), (2,), (2, 3, 4, 5)):
            here = place(**changes)
            _, weights = initial_arrays(here.plan)
            first = here.node.round(1, weights, Past(RUN, 0))
            arriving = after(weights, first.update)
            for number in lost:
                here.node.round(number, arriving, Past(RUN, 1))
            here.fresh()
            updates.append(arrays_sha256(here.node.round(6, arriving, Past(RUN, 1)).update))
            states.append(arrays_sha256(here.state(6, RUN)))
        assert len(set(updates)) == len(set(states)) == 1

    def test_a_round_after_one_that_counted_is_what_it_was(self, place: Callable[..., Place]) -> None:
        here = place(**SCAFFOLD)
        _, weights = initial_arrays(here.plan)
        untold = here.rounds(weights, 1, 2)
        here.store.remove()
        told = [
            here.node.round(1, weights, Past(RUN, 0)),
            here.node.round(2, after(weights, untold[0].update), Past(RUN, 1)),
        ]
        assert [arrays_sha256(a.update) for a in told] == [arrays_sha256(a.update) for a in untold]

    def test_the_site_s_own_models_go_on_from_the_newest(self, place: Callable[..., Place]) -> None:
        """They concern nobody else: what they learnt in a round that did not count is not thrown away."""
        here = place(**{**SCAFFOLD, "method": {"objective": {"name": "scaffold"}, "personal": {"local": True}}})
        _, weights = initial_arrays(here.plan)
        here.node.round(1, weights, Past(RUN, 0))
        here.node.round(2, weights, Past(RUN, 1))
        network = here.node._network()[0]
        start = here.node._own.start(network, weights, here.node.cohort.cases("train"), 3, Past(RUN, 1))
        assert arrays_sha256(part(start.state, "local")) == arrays_sha256(part(here.state(2, RUN), "local"))
        assert arrays_sha256(part(start.state, "control")) == arrays_sha256(part(here.state(1, RUN), "control"))


class TestScaffold:
    def test_the_control_variate_is_the_mean_gradient_of_the_round(self, place: Callable[..., Place]) -> None:
        here = place(**SCAFFOLD)
        _, weights = initial_arrays(here.plan)
        (answer,) = here.rounds(weights, 1)
        control = part(here.state(1), "control")
        specs = {spec.name for spec in here.node.specs() if spec.trainable}
        assert set(control) == specs
        for name in specs:
            assert control[name] == pytest.approx(-answer.update[name] / 0.3, rel=1e-5, abs=1e-7)

    def test_what_the_server_tells_moves_every_step(self, place: Callable[..., Place]) -> None:
        here = place(**SCAFFOLD)
        specs, weights = initial_arrays(here.plan)
        name = next(spec.name for spec in specs if spec.trainable and spec.name.endswith("bias"))
        guide = {GUIDE + spec.name: np.zeros(spec.shape, np.float32) for spec in specs if spec.trainable}
        plain = here.node.round(1, weights).update
        zero = here.node.round(1, {**weights, **guide}).update
        told = here.node.round(1, {**weights, **guide, GUIDE + name: guide[GUIDE + name] + 1}).update
        assert arrays_sha256(plain) == arrays_sha256(zero) != arrays_sha256(told)
        assert set(told) == set(weights)


class TestOwnArrays:
    def test_what_stays_at_the_site_is_in_neither_direction(self, place: Callable[..., Place]) -> None:
        here = place(**own(arrays="normalization"))
        _, weights = initial_arrays(here.plan)
        (answer,) = here.rounds(weights, 1)
        stays = set(first_arrays(here.plan)) - set(weights)
        assert stays
        assert set(answer.update) == set(weights) == {spec.name for spec in here.node.specs()}
        assert set(part(here.state(1), "own")) == stays

    def test_arrays_that_stay_at_the_site_are_not_taken_from_elsewhere(self, place: Callable[..., Place]) -> None:
        here = place(**own(arrays="head"))
        network, cases = here.node._network()[0], here.node.cohort.cases("train")
        with pytest.raises(PlanError, match="Arrays arrived that stay at the site"):
            here.node._own.start(network, first_arrays(here.plan), cases, 1)

    def test_records_that_can_not_be_read_are_not_taken_for_a_first_round(self, place: Callable[..., Place]) -> None:
        here = place(**own(arrays="head"))
        network, cases = here.node._network()[0], here.node.cohort.cases("train")
        here.folder.parent.write_text("no folder")
        try:
            with pytest.raises(JournalError, match="can't be read or written"):
                here.node._own.start(network, initial_arrays(here.plan)[1], cases, 2)
        finally:
            here.folder.parent.unlink()

    def test_the_next_round_goes_on_from_them(self, place: Callable[..., Place]) -> None:
        here = place(**own(arrays="normalization"))
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1)
        start = here.node._own.start(here.node._network()[0], weights, here.node.cohort.cases("train"), 2)
        counter = next(name for name in start.whole if name.endswith("num_batches_tracked"))
        assert int(start.whole[counter]) == 3
        assert all((start.whole[name] == array).all() for name, array in part(here.state(1), "own").items())

    def test_the_first_round_begins_with_the_common_network_s_own(self, place: Callable[..., Place]) -> None:
        here = place(**own(arrays="head"))
        _, weights = initial_arrays(here.plan)
        start = here.node._own.start(here.node._network()[0], weights, here.node.cohort.cases("train"), 1)
        assert arrays_sha256(start.whole) == arrays_sha256(first_arrays(here.plan))

    def test_the_model_that_is_measured_is_called_personal(self, place: Callable[..., Place]) -> None:
        here = place(**own(arrays="normalization"))
        _, weights = initial_arrays(here.plan)
        (answer,) = here.rounds(weights, 1)
        assert [(m.split, m.model) for m in answer.report.metrics] == [("validation", "personal")]
        final = here.node.final(3, weights)
        assert {m.model for m in final.report.metrics} == {"personal"}
        assert refusals(final, here.plan, (), here.node.bounds) == ()

    def test_the_site_s_own_input_statistics_come_from_its_training_patients(self, place: Callable[..., Place]) -> None:
        here = place(data={"standardise": "site"})
        _, weights = initial_arrays(here.plan)
        assert "input_mean" not in weights
        start = here.node._own.start(here.node._network()[0], weights, here.node.cohort.cases("train"), 1)
        images = [np.asarray(case.image(), np.float64) for case in here.node.cohort.cases("train")]
        assert start.whole["input_mean"] == pytest.approx([np.mean([image.mean() for image in images])])
        (answer,) = here.rounds(weights, 1)
        assert "input_mean" not in answer.update
        assert not here.folder.exists()


class TestPersonalModels:
    def test_a_strong_pull_holds_the_personal_model_near_the_common_one(self, place: Callable[..., Place]) -> None:
        far: dict[float, float] = {}
        for strength in (1e-9, 5.0):
            here = place(**own(ditto=strength))
            _, weights = initial_arrays(here.plan)
            here.rounds(weights, 1)
            mine = part(here.state(1), "personal")
            trained = [spec.name for spec in here.node.specs() if spec.trainable]
            far[strength] = sum(float(np.square(mine[name] - weights[name]).sum()) for name in trained)
        assert 0 < far[5.0] < far[1e-9]

    def test_the_update_is_the_one_that_a_plan_without_own_models_has(self, place: Callable[..., Place]) -> None:
        here = place()
        _, weights = initial_arrays(here.plan)
        (plain,) = here.rounds(weights, 1)
        other = place(**own(ditto=0.5, local=True))
        (beside,) = other.rounds(weights, 1)
        assert arrays_sha256(plain.update) == arrays_sha256(beside.update)

    def test_a_local_model_sees_nothing_of_the_federation(self, place: Callable[..., Place]) -> None:
        here = place(**own(local=True))
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1, 2)
        alone = arrays_sha256(part(here.state(2), "local"))
        here.node.round(2, {name: array * 0 for name, array in weights.items()})
        assert arrays_sha256(part(here.state(2), "local")) == alone

    def test_a_local_model_begins_as_the_seed_says_whatever_arrives(self, place: Callable[..., Place]) -> None:
        here = place(**own(local=True))
        _, weights = initial_arrays(here.plan)
        network, cases = here.node._network()[0], here.node.cohort.cases("train")
        first = here.node._own.start(network, weights, cases, 1)
        assert arrays_sha256(here.node._own._local(first, cases)) == arrays_sha256(first_arrays(here.plan))
        here.node.round(1, weights)
        alone = arrays_sha256(part(here.state(1), "local"))
        here.node.round(1, {name: array * 2 for name, array in weights.items()})  # of an earlier run, perhaps
        assert arrays_sha256(part(here.state(1), "local")) == alone

    @pytest.fixture
    def diverging(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Lets training of one of the site's own models diverge: by its loss, or by a weight after its last step."""

        def begin(name: str, by: str = "loss") -> None:
            def trained(network: nn.Module, *rest: Any, **how: Any) -> TrainingOutcome:
                if (how["pull"] is None) != (name == "local"):
                    return train_round(network, *rest, **how)
                if by == "loss":
                    raise NotFiniteError("The training loss is not finite.")
                outcome = train_round(network, *rest, **how)
                with torch.no_grad():
                    next(network.parameters()).fill_(np.inf)
                return outcome

            monkeypatch.setattr(personal, "train_round", trained)

        return begin

    @pytest.mark.parametrize(("name", "by"), [("personal", "loss"), ("personal", "weight"), ("local", "loss")])
    def test_one_that_diverges_stays_as_it_was_and_the_common_update_leaves(
        self,
        place: Callable[..., Place],
        diverging: Callable[..., None],
        caplog: pytest.LogCaptureFixture,
        name: str,
        by: str,
    ) -> None:
        other = "local" if name == "personal" else "personal"
        here = place(**own(ditto=0.5, local=True, choose=True), **KEPT)
        _, weights = initial_arrays(here.plan)
        expected = here.rounds(weights, 1, 2)
        before, well = here.state(1), here.state(2)
        diverging(name, by)
        caplog.set_level(logging.WARNING, logger="eucaim_fl.site")
        answer = here.node.round(2, after(weights, expected[0].update))
        assert f"Round 2: training of this site's {name} model diverged" in caplog.text
        assert arrays_sha256(answer.update) == arrays_sha256(expected[1].update)
        for kind in (name, f"moments_{name}"):
            assert arrays_sha256(part(here.state(2), kind)) == arrays_sha256(part(before, kind))
        assert arrays_sha256(part(here.state(2), other)) == arrays_sha256(part(well, other))

    def test_nothing_is_told_of_it_in_the_end_even_if_later_rounds_are_well(
        self, place: Callable[..., Place], diverging: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = place(**own(ditto=0.5, local=True, blend=True, choose=True))
        _, weights = initial_arrays(here.plan)
        diverging("personal")
        here.rounds(weights, 1)
        monkeypatch.setattr(personal, "train_round", train_round)
        here.rounds(weights, 2)
        answer = here.node.final(3, weights)
        assert {m.model for m in answer.report.metrics if m.values} == {"common", "local"}
        assert refusals(answer, here.plan, (), here.node.bounds) == ()
        kept = here.store.final()
        assert kept is not None
        assert all(np.isfinite(array).all() for array in kept.load().values())

    def test_figures_are_told_only_in_rounds_that_validate(self, place: Callable[..., Place]) -> None:
        here = place(stopping={"validate_every": 2})
        _, weights = initial_arrays(here.plan)
        answers = here.rounds(weights, 1, 2, 3)
        assert [len(answer.report.metrics) for answer in answers] == [1, 0, 1]


class TestTheEnd:
    @pytest.fixture
    def ended(self, place: Callable[..., Place]) -> tuple[Place, Answer, Arrays]:
        here = place(**own(fine_tune_steps=2, local=True, blend=True, choose=True))
        _, weights = initial_arrays(here.plan)
        (answer,) = here.rounds(weights, 1)
        weights = after(weights, answer.update)
        return here, here.node.final(3, weights), weights

    def test_every_model_is_measured_on_validation_and_test_patients(self, ended: tuple[Place, Answer, Arrays]) -> None:
        here, answer, _ = ended
        assert [(m.model, m.split) for m in answer.report.metrics] == [
            (model, split) for model in ("common", "personal", "local", "blended") for split in ("validation", "test")
        ]
        assert refusals(answer, here.plan, (), here.node.bounds) == ()

    def test_the_choice_is_the_best_by_the_figures_that_are_told(self, ended: tuple[Place, Answer, Arrays]) -> None:
        _, answer, _ = ended
        dice = {m.model: m.values["dice"] for m in answer.report.metrics if m.split == "validation"}
        assert answer.report.chosen == max(dice, key=lambda model: dice[model])

    def test_a_choice_that_does_not_follow_from_the_figures_does_not_leave(
        self, ended: tuple[Place, Answer, Arrays]
    ) -> None:
        here, answer, _ = ended
        other = next(model for model in ("common", "personal", "local") if model != answer.report.chosen)
        wrong = Answer(answer.report.model_copy(update={"chosen": other}), {})
        reason = "a choice of a model that does not follow from the figures told"
        assert refusals(wrong, here.plan, (), here.node.bounds) == (reason,)

    def test_the_site_keeps_all_of_its_models_complete(self, ended: tuple[Place, Answer, Arrays]) -> None:
        here, answer, weights = ended
        kept = here.store.final()
        assert kept is not None
        assert kept.metadata["chosen"] == answer.report.chosen
        arrays = kept.load()
        assert arrays_sha256(part(arrays, "common")) == arrays_sha256(weights)
        assert all(set(part(arrays, name)) == set(weights) for name in ("personal", "local"))
        assert arrays_sha256(part(arrays, "personal")) != arrays_sha256(weights)
        assert arrays_sha256(part(arrays, "local")) == arrays_sha256(part(here.state(1), "local"))
        assert not part(arrays, "blended")  # it is two of the others

    def test_it_is_the_same_when_it_is_asked_for_again(self, ended: tuple[Place, Answer, Arrays]) -> None:
        here, answer, weights = ended
        here.fresh()
        assert here.node.final(3, weights).report.metrics == answer.report.metrics

    def test_fine_tuning_that_diverges_is_said_here_and_its_figures_stay(
        self, ended: tuple[Place, Answer, Arrays], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, _, weights = ended
        monkeypatch.setattr(personal, "get_arrays", lambda network: {"w": np.array([np.nan], np.float32)})
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            answer = here.node.final(3, weights)
        assert "Fine-tuning diverged" in caplog.text
        assert {m.model for m in answer.report.metrics if m.values} == {"common", "local"}
        assert answer.report.chosen is None
        assert refusals(answer, here.plan, (), here.node.bounds) == ()

    def test_without_figures_nothing_is_chosen(self, hospital: Hospital, recipe: Recipe) -> None:
        path = hospital("a", minimum_metric_patients=3)
        here = Place(path, recipe([path], **own(local=True, choose=True)))
        _, weights = initial_arrays(here.plan)
        here.rounds(weights, 1)
        answer = here.node.final(3, weights)
        assert answer.report.chosen is None
        assert [m.model for m in answer.report.metrics] == ["common", "common", "local", "local"]
        assert refusals(answer, here.plan, (), here.node.bounds) == ()
