"""A bad site in front of the product's own app: its data or its update are spoilt, all others answer as ever."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from eucaim_fl.cohorts.cohort import Cohort
from eucaim_fl.compose import resolve
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import PlanError, SiteFileError
from eucaim_fl.federation import client_app, poisoned_app
from eucaim_fl.federation.client_app import asked
from eucaim_fl.federation.messages import instruction_content, read_reply, to_record
from eucaim_fl.federation.poison import LONGER, Poison
from eucaim_fl.federation.poisoned_app import client_app_of, poisoned_cohort
from eucaim_fl.site.node import initial_arrays

pytestmark = pytest.mark.integration


@pytest.fixture
def update_of(hospital, recipe):
    """The update of one round at hospital `a`, asked through an app."""
    site_file = hospital("a")
    plan = resolve(recipe([site_file])).plan
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
    specs, weights = initial_arrays(plan)

    def ask(app):
        client_app._node.cache_clear()
        content = instruction_content(plan.canonical_json(), 1, to_record(weights))
        message = Message(content, dst_node_id=1, message_type="train")
        reply = read_reply(app(message, Context(1, 1, {"site-file": str(site_file)}, RecordDict(), {})), specs)
        return {spec.name: reply.update[spec.name].copy() for spec in specs if spec.trainable}

    return ask


def bad(kind, site="a"):
    return getattr(poisoned_app, client_app_of(Poison(kind, site)).partition(":")[2])


class TestApp:
    def test_each_kind_spoils_what_it_says(self, update_of) -> None:
        honest = update_of(client_app.app)
        scaled, noisy, flipped = (update_of(bad(kind)) for kind in ("scale", "noise", "flip"))
        assert all(np.array_equal(scaled[name], np.float32(LONGER * honest[name])) for name in honest)
        assert any(not np.array_equal(noisy[name], honest[name]) for name in honest)
        assert any(not np.array_equal(flipped[name], honest[name]) for name in honest)

    def test_other_sites_answer_as_ever(self, update_of) -> None:
        honest, other = update_of(client_app.app), update_of(bad("scale", "b"))
        assert all(np.array_equal(honest[name], other[name]) for name in honest)

    def test_there_is_an_app_for_every_poison_and_no_other_name(self) -> None:
        assert callable(bad("turn"))
        with pytest.raises(AttributeError):
            _ = poisoned_app.nothing


class TestAsked:
    def test_a_message_without_plan_and_a_node_without_site_file_are_refused(self) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
        context = Context(1, 1, {}, RecordDict(), {})
        with pytest.raises(PlanError, match="not an instruction"):
            asked(Message(RecordDict(), dst_node_id=1, message_type="train"), context)
        with pytest.raises(SiteFileError, match="names no site file"):
            asked(Message(instruction_content("{}", 1), dst_node_id=1, message_type="train"), context)


class TestPoisonedCohort:
    @pytest.fixture
    def cohort(self, prepared_case):
        image = np.arange(8.0).reshape(2, 2, 2)
        case = prepared_case(image, np.array([[[1, 0], [0, 0]], [[0, 0], [0, 2]]]), target=0)
        return Cohort("a", {"train": (case,), "validation": (), "test": ()}, (), "f")

    def test_labels_are_exchanged(self, cohort, plan_for) -> None:
        case = poisoned_cohort(cohort, plan_for(), Poison("flip", "a")).cases("train")[0]
        assert case.label().tolist() == [[[0, 1], [1, 1]], [[1, 1], [1, 0]]]
        assert np.array_equal(case.image(), cohort.cases("train")[0].image())

    def test_classes_are_taken_in_reverse_order(self, cohort, plan_for) -> None:
        task = ClassificationConfig(target="x", classes=("0", "1", "2"))
        plan = plan_for(task, model={"name": "small_cnn", "args": {}})
        assert poisoned_cohort(cohort, plan, Poison("flip", "a")).cases("train")[0].target == 2

    def test_images_are_turned_and_labels_are_not(self, cohort, plan_for) -> None:
        case, before = (
            poisoned_cohort(cohort, plan_for(), Poison("turn", "a")).cases("train")[0],
            cohort.cases("train")[0],
        )
        assert np.array_equal(case.image(), before.image()[:, ::-1, ::-1])
        assert np.array_equal(case.label(), before.label())
