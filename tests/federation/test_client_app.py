"""The site's app as Flower calls it: it answers what it is asked, and nothing slips out when it fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from eucaim_fl.arrays import GUIDE
from eucaim_fl.compose import resolve
from eucaim_fl.federation import client_app
from eucaim_fl.federation.messages import Refusal, instruction_content, read_reply, to_record
from eucaim_fl.records import INPUT_MEAN, Past
from eucaim_fl.site.lineage import Lineage
from eucaim_fl.site.node import initial_arrays
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.training.statistics import conditioning

pytestmark = pytest.mark.integration


@pytest.fixture
def ask(hospital, recipe):
    """Send one message to the real app of one tiny hospital; returns the checked reply."""
    site_file = hospital("a")
    return asking(site_file, resolve(recipe([site_file])).plan)


def asking(site_file, plan):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
    specs, weights = initial_arrays(plan)

    def send(kind, number=1, plan_json=None, arrays=weights, config=None, past=Past()):  # noqa: B008  frozen
        record = None if arrays is None else to_record(arrays)
        text = plan.canonical_json() if plan_json is None else plan_json
        content = instruction_content(text, number, record, past)
        message = Message(content, dst_node_id=1, message_type=kind)
        context = Context(1, 1, {"site-file": str(site_file)} if config is None else config, RecordDict(), {})
        return read_reply(client_app.app(message, context), specs)

    send.plan, send.weights, send.site_file = plan, weights, site_file
    client_app._node.cache_clear()
    return send


class TestAnswers:
    def test_hello_tells_the_number_of_training_patients(self, ask):
        reply = ask("query", arrays=None)
        assert reply.report.kind == "hello"
        assert reply.report.patients == 8
        assert reply.update == {}

    def test_training_answers_with_metrics_of_the_arriving_model_and_an_update(self, ask):
        reply = ask("train")
        assert [m.split for m in reply.report.metrics] == ["validation"]
        assert reply.report.steps == 3
        assert any(np.abs(a).max() > 0 for a in reply.update.values() if a.dtype.kind == "f")

    def test_the_same_question_has_the_same_answer(self, ask):
        first, second = ask("train"), ask("train")
        assert all(np.array_equal(first.update[n], second.update[n]) for n in first.update)

    def test_the_last_exchange_measures_validation_and_test_patients(self, ask):
        reply = ask("evaluate", number=3)
        assert [m.split for m in reply.report.metrics] == ["validation", "test"]
        assert reply.update == {}
        assert reply.pictures is not None


class TestThePast:
    """What the coordinator says of the rounds before reaches what the site keeps."""

    @pytest.fixture
    def stateful(self, hospital, recipe):
        site_file = hospital("a")
        changes = {
            "method": {"objective": {"name": "scaffold"}, "personal": {"local": True}},
            "training": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0}},
        }
        return asking(site_file, resolve(recipe([site_file], **changes)).plan)

    def test_a_round_begins_with_what_counted(self, stateful):
        run = "a" * 32
        stateful("train", 1, past=Past(run, 0))
        expected = stateful("train", 3, past=Past(run, 1)).update
        for number in (1, 2):
            stateful("train", number, past=Past(run, number - 1))
        found = stateful("train", 3, past=Past(run, 1)).update
        assert all(np.array_equal(found[name], expected[name]) for name in expected)

    def test_the_last_exchange_measures_models_of_this_run_alone(self, stateful):
        untrained = [m.values for m in stateful("evaluate", 3, past=Past("b" * 32, 0)).report.metrics]
        stateful("train", 1, past=Past("a" * 32, 0))
        trained = [m.values for m in stateful("evaluate", 3, past=Past("a" * 32, 1)).report.metrics]
        again = [m.values for m in stateful("evaluate", 3, past=Past("b" * 32, 0)).report.metrics]
        assert again == untrained != trained

    def test_one_that_can_not_be_is_refused(self, stateful):
        refusal = stateful("train", 1, past=Past("a" * 32, 1))
        assert (refusal.code, refusal.reason[:37]) == ("EFL102", "The instruction names a last round th")


class TestStatistics:
    """One question before the first round; its answer becomes a part of the model that arrives in each."""

    @pytest.fixture
    def standardised(self, hospital, recipe):
        site_file = hospital("a")
        return asking(site_file, resolve(recipe([site_file], data={"standardise": "federation"})).plan)

    def test_a_site_tells_sums_over_its_training_patients_and_nothing_else(self, standardised):
        reply = standardised("query.statistics", number=0, arrays=None)
        assert (reply.report.kind, reply.report.round, reply.report.statistics.patients) == ("statistics", 0, 8)
        assert reply.report.metrics == ()
        assert reply.update == {}
        used = Lineage(load_site_file(standardised.site_file).records_folder()).contributions()
        assert [(one.use, one.rounds, one.patients) for one in used] == [("train", (0, 0), 8)]

    def test_a_model_that_has_them_is_trained_and_they_stay_as_they_are(self, standardised):
        told = standardised("query.statistics", number=0, arrays=None).report.statistics
        found = conditioning([told], standardised.plan)
        assert 0 < found[INPUT_MEAN][0] < 1
        reply = standardised("train", arrays={**standardised.weights, **found})
        assert all(not reply.update[name].any() for name in found)
        assert any(name.startswith("network.") and reply.update[name].any() for name in reply.update)

    def test_a_plan_that_asks_for_none_gets_none(self, ask):
        refusal = ask("query.statistics", number=0, arrays=None)
        assert (refusal.code, refusal.reason) == ("EFL102", "The plan asks for no statistics.")


class TestPolicy:
    """What the hospital's policy says counts where no federation asks, too, and from the next message on."""

    @pytest.fixture
    def written(self, ask):
        def write(**changes):
            site = yaml.safe_load(ask.site_file.read_text())
            ask.site_file.write_text(yaml.safe_dump({**site, "policy": "policy.yaml"}))
            policy = {
                "schema": "eucaim-fl-policy/1",
                "patients": {"training": 2, "metric": 1},
                "metrics": {"names": ["dice", "hd95_mm"], "decimals": 2},
                "sent_mb": {"message": 10, "plan": 10, "day": 10},
                "update": {"largest_norm": 1000},
                "privacy": {"mechanism": "none"},
                **changes,
            }
            ask.site_file.with_name("policy.yaml").write_text(yaml.safe_dump(policy))

        return write

    def test_figures_are_rounded_and_only_those_on_its_list_leave(self, ask, written):
        written(metrics={"names": ["dice"], "decimals": 1})
        (metrics,) = ask("train").report.metrics
        assert set(metrics.values) == set(metrics.sums) == {"dice"}
        assert all(round(value, 1) == value for value in metrics.values.values())

    def test_a_change_counts_at_once(self, ask, written):
        assert ask("query", arrays=None).report.patients == 8
        written(patients={"training": 9, "metric": 1})
        assert isinstance(ask("train"), Refusal)
        written()
        assert ask("train").report.patients == 8
        written(update={"largest_norm": 1e-9})
        reply = ask("train")
        assert reply.code == "EFL304"
        assert "longer" in reply.reason

    def test_noise_that_it_requires_is_required_here_too(self, ask, written):
        written(privacy={"mechanism": "dp", "epsilon": 3, "delta": 1e-3})
        refusal = ask("train")
        assert (refusal.code, refusal.reason) == ("EFL310", "The site's policy refuses the plan: privacy.")


class TestRefusals:
    @pytest.mark.parametrize(
        "change",
        [
            {"model": {"name": "unet", "args": {"_target_": "os.system"}}},
            {"model": {"name": "os", "args": {}}},
            {"model": {"name": "unet", "args": {"channels": [10**6, 10**6], "strides": [2]}}},
            {"data": {"cache": "/etc"}},
            {"seed": "${oc.env:HOME}"},
            {"rounds": 10**9},
            {"schema_version": 2},
            {"sites": ["b"]},
        ],
        ids=["target", "module", "huge", "path", "environment", "rounds", "schema", "other site"],
    )
    def test_a_hostile_plan_is_refused_with_a_code(self, ask, change):
        values = {**json.loads(ask.plan.canonical_json()), **change}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        refusal = ask("train", plan_json=text)
        assert isinstance(refusal, Refusal)
        assert refusal.code.startswith("EFL1")

    def test_weights_of_another_network_are_refused(self, ask):
        refusal = ask("train", arrays={"w": np.zeros(3, np.float32)})
        assert isinstance(refusal, Refusal)
        assert refusal.code == "EFL102"

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_control_variate_that_is_not_finite_is_refused(self, hospital, recipe, value):
        site_file = hospital("a")
        sgd = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0}}
        method = {"objective": {"name": "scaffold"}}
        guided = asking(site_file, resolve(recipe([site_file], training=sgd, method=method)).plan)
        trainable = [spec for spec in initial_arrays(guided.plan)[0] if spec.trainable]
        guide = {GUIDE + spec.name: np.zeros(spec.shape, np.float32) for spec in trainable}
        assert guided("train", arrays={**guided.weights, **guide}).report.steps == 3
        first = next(iter(guide))
        refusal = guided("train", arrays={**guided.weights, **guide, first: guide[first] + np.float32(value)})
        assert refusal.code == "EFL102"
        assert "is not finite" in refusal.reason

    def test_an_instruction_without_weights_is_refused(self, ask):
        for kind in ("train", "evaluate"):
            assert "no weights" in ask(kind, arrays=None).reason

    def test_a_node_without_site_file_says_so(self, ask):
        refusal = ask("query", config={})
        assert refusal.code == "EFL103"
        assert refusal.site == ""

    @pytest.mark.parametrize(
        ("where", "error"),
        [
            ("eucaim_fl.site.node.train_round", RuntimeError("/data/PATIENT-7/scan.dcm")),
            ("eucaim_fl.site.telling.evaluate", OSError(2, "No such file", "/data/PATIENT-7")),
            ("eucaim_fl.site.node.open_cohort", KeyError("PATIENT-7")),
            ("eucaim_fl.federation.client_app.refusals", ValueError("PATIENT-7")),
            ("eucaim_fl.site.node.train_round", MemoryError("PATIENT-7")),
        ],
    )
    def test_no_exception_carries_a_patient_or_a_path_out(self, ask, monkeypatch, where, error):
        def fail(*_args, **_kwargs):
            raise error

        monkeypatch.setattr(where, fail)
        refusal = ask("train")
        assert isinstance(refusal, Refusal)
        assert "PATIENT" not in refusal.reason
        assert "/" not in refusal.reason
        assert refusal.site == "a"

    def test_a_site_that_could_not_open_its_cohort_tries_again_at_the_next_message(self, ask, monkeypatch):
        with monkeypatch.context() as broken:
            broken.setattr("eucaim_fl.site.node.open_cohort", lambda *_, **__: 1 / 0)
            assert isinstance(ask("query", arrays=None), Refusal)
        assert ask("query", arrays=None).report.patients == 8

    def test_the_gate_stands_between_answer_and_wire(self, ask, monkeypatch):
        monkeypatch.setattr("eucaim_fl.federation.client_app.refusals", lambda *_: ("a reason",))
        refusal = ask("train")
        assert refusal.code == "EFL304"
        assert "a reason" in refusal.reason
