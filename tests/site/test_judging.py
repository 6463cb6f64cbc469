"""What a site tells of frozen models, what it keeps, and what its gate stops."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import yaml

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.compose import resolve
from eucaim_fl.errors import (
    CohortError,
    JournalError,
    ModelRefusedError,
    ModelTimeError,
    PlanError,
    PolicyRefusalError,
)
from eucaim_fl.inference.runtime import prepare
from eucaim_fl.models.planned import initial_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site import judging
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.differencing import Told
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.judging import JudgingNode
from eucaim_fl.site.node import SiteNode
from eucaim_fl.site.report import MetricsRecord
from eucaim_fl.validation.record import EVERYBODY, TOO_FEW, ScopeRecord
from eucaim_fl.validation_config import InferenceLimits, ValidationConfig
from tests.conftest import tiny_recipe, write_hospital


@pytest.fixture(scope="module")
def site_file(tmp_path_factory):
    return write_hospital(tmp_path_factory.mktemp("hospital"), "a")


@pytest.fixture(scope="module")
def training(site_file, tmp_path_factory):
    return resolve(tiny_recipe(tmp_path_factory.mktemp("recipe"), [site_file], rounds=1)).plan


@pytest.fixture(scope="module")
def content(training):
    return b"".join(encode_arrays(initial_arrays(training)[1]))


@pytest.fixture(scope="module")
def plan_of(training, content):
    def make(**model):
        whole = {
            "name": "lesions",
            "format": "network",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "network": training.model.model_dump(),
            "data": training.data.model_dump(),
            "intended_use": "Finds lesions, for research.",
            **model,
        }
        asked = ValidationConfig.model_validate({"models": [whole], "subgroups": [{"by": "sex"}]})
        return FederationPlan.model_validate({**training.model_dump(), "validation": asked.model_dump()})

    return make


@pytest.fixture(scope="module")
def node(site_file, plan_of):
    return JudgingNode(site_file, plan_of())


@pytest.fixture(scope="module")
def answer(node, content):
    return node.validate(2, {"lesions": memoryview(content)})


@pytest.fixture
def failing(monkeypatch):
    """Puts a model in place that takes too long over the first so many images; returns the limits it was given."""
    limits = []

    def put(times):
        left = [times]

        class Model:
            layers = ()

            def allow(self, images):
                assert images == 1

            def predict(self, images):
                if left[0]:
                    left[0] -= 1
                    raise ModelTimeError("It took too long.")
                return np.full((len(images), 2, *images.shape[2:]), 0.5, np.float32)

            def close(self):
                pass

        def opened(contract, task, model, given, **more):
            limits.append(given)
            return Model()

        monkeypatch.setattr(judging, "open_model", opened)
        return limits

    return put


@pytest.fixture
def unlocked(monkeypatch):
    """Models are opened in this process, and answer the same: what these tests ask is what becomes of the answers."""

    class Model:
        layers = ()

        def __init__(self, contract, task, model, limits, *, native):
            self.predict = prepare(contract, task, limits.threads, native=native)(memoryview(model))

        def allow(self, images):
            pass

        def close(self):
            pass

    monkeypatch.setattr(judging, "open_model", Model)


class TestJudgingNode:
    def test_a_plan_that_trains_is_not_judged_and_the_reverse(self, site_file, training, plan_of):
        with pytest.raises(PlanError, match="asks for no validation"):
            JudgingNode(site_file, training)
        with pytest.raises(PlanError, match="trains nothing"):
            SiteNode(site_file, plan_of())

    def test_hello_opens_no_model(self, node):
        report = node.hello().report
        assert (report.kind, report.validated, report.patients > 0) == ("hello", None, True)

    def test_everybody_is_judged_and_passes_the_gate(self, node, answer):
        record = answer.report.validated
        assert record.scopes[0].scope == EVERYBODY
        assert record.scopes[0].patients == answer.report.patients
        assert not refusals(answer, node.plan, (), node.bounds)

    def test_what_each_patient_got_is_kept_here_with_every_model(self, node, answer):
        place = node.site.records_folder() / "validations" / f"{node.plan.sha256()}.json"
        patients = json.loads(place.read_text())["patients"]
        assert len(patients) == answer.report.validated.scopes[0].patients
        assert all(set(one["models"]) == {"lesions"} for one in patients.values())

    def test_an_image_without_an_answer_is_counted_and_its_patient_is_in_no_figure(self, node, content, failing):
        failing(1)
        found = node.validate(2, {"lesions": memoryview(content)})
        record, people = found.report.validated, len({case.patient for case in node._cases(node.cohort)})
        assert record.failed == {"timed_out": 1}
        assert record.scopes[0].patients == people - 1
        assert not refusals(found, node.plan, (), node.bounds)
        kept = json.loads((node.site.records_folder() / "validations" / f"{node.plan.sha256()}.json").read_text())
        (patient,) = kept["without_answer"]["lesions"]
        assert patient not in kept["patients"]
        assert len(kept["patients"]) == people - 1

    def test_validate_says_why_where_too_many_images_have_no_answer(self, node, content, failing):
        failing(2)
        with pytest.raises(ModelTimeError, match="too long"):
            node.validate(2, {"lesions": memoryview(content)})

    def test_a_model_has_no_more_threads_than_the_site_gives(self, node, plan_of, content, failing):
        greedy = node.asked.model_copy(update={"limits": InferenceLimits(threads=64)})
        asked = failing(0)
        node.asked, before = greedy, node.asked
        node.validate(2, {"lesions": memoryview(content)})
        node.asked = before
        assert {limits.threads for limits in asked} == {node.site.compute.threads}

    def test_the_models_file_is_never_on_the_disk(self, node, site_file, content, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        piece, really, seen = content[len(content) // 2 :][:256], judging.open_model, []

        def written():
            folders = (site_file.parent, node.site.records_folder(), node.site.cache_folder(), tmp_path)
            files = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
            return [file for file in files if piece in file.read_bytes()]

        def looking(*given, **more):
            model = really(*given, **more)
            seen.append(written())
            return model

        monkeypatch.setattr(judging, "open_model", looking)
        node.validate(2, {"lesions": memoryview(content)})
        assert (seen, written()) == ([[]], [])
        (tmp_path / "copy").write_bytes(content)
        assert written() == [tmp_path / "copy"]  # or it would be found nowhere

    def test_validate_refuses_another_file(self, node, content):
        with pytest.raises(ModelRefusedError, match="not the one that its contract describes"):
            node.validate(2, {"lesions": memoryview(bytes(len(content)))})

    def test_a_program_is_refused_where_no_policy_allows_it(self, site_file, plan_of, content):
        judging = JudgingNode(site_file, plan_of(format="torchscript", network=None))
        with pytest.raises(ModelRefusedError, match="is a program"):
            judging.validate(2, {"lesions": memoryview(content)})

    def test_validate_needs_enough_patients_whose_consent_stands(self, node, content, monkeypatch):
        monkeypatch.setattr(node, "bounds", replace(node.bounds, minimum_metric_patients=10_000))
        with pytest.raises(CohortError, match="Too few patients are left"):
            node.validate(2, {"lesions": memoryview(content)})

    def test_patients_who_are_too_few_to_train_on_can_be_judged(self, tmp_path, plan_of):
        place = write_hospital(tmp_path / "one", "a", minimum_patients=1000)
        assert JudgingNode(place, plan_of()).hello().report.patients > 5
        few = write_hospital(tmp_path / "other", "a", minimum_metric_patients=1000)
        with pytest.raises(CohortError, match="Too few patients would be judged at this site") as caught:
            JudgingNode(few, plan_of())
        assert not any(letter.isdigit() for letter in str(caught.value).partition("EFL")[0])

    @pytest.mark.usefixtures("unlocked")
    def test_validate_says_so_where_nothing_can_be_kept(self, node, content):
        folder = node.site.records_folder() / "validations"
        folder.rename(folder.with_name("elsewhere"))
        folder.write_text("a file in its place")
        with pytest.raises(JournalError, match="can't be kept at the site"):
            node.validate(2, {"lesions": memoryview(content)})
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)

    def test_judgingnode_needs_as_much_privacy_as_the_policy(self, site_file, plan_of, tmp_path):
        policy = {"schema": "eucaim-fl-policy/1", "privacy": {"mechanism": "dp", "epsilon": 3.0, "delta": 0.00001}}
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
        values = {**yaml.safe_load(site_file.read_text()), "policy": str(tmp_path / "policy.yaml")}
        strict = tmp_path / "strict.yaml"
        strict.write_text(yaml.safe_dump(values))
        with pytest.raises(PolicyRefusalError, match="privacy"):
            JudgingNode(strict, plan_of())


class TestToldBefore:
    @pytest.mark.usefixtures("unlocked")
    def test_a_record_counts_other_plans_whose_figures_of_the_model_left(self, tmp_path, plan_of, content):
        file = write_hospital(tmp_path, "a")
        first = JudgingNode(file, plan_of())
        answer = first.validate(2, {"lesions": memoryview(content)})
        other = JudgingNode(file, plan_of(trained_on="Something else, so another plan."))
        assert other.validate(2, {"lesions": memoryview(content)}).report.validated.told_before == 0  # nothing left yet
        first.remember(answer)
        assert other.validate(2, {"lesions": memoryview(content)}).report.validated.told_before == 1
        again = first.validate(2, {"lesions": memoryview(content)})
        assert (again.report.validated.told_before, again.report.validated.data_is) == (0, "synthetic")
        assert not refusals(again, first.plan, (), first.bounds)

    def test_what_tells_nothing_is_not_remembered(self, node, answer):
        silent = ScopeRecord(EVERYBODY, 0, withheld=TOO_FEW)
        record = replace(answer.report.validated, scopes=(silent,))
        node.remember(Answer(answer.report.model_copy(update={"validated": record}), {}))
        node.remember(node.hello())
        assert Told(node.site.records_folder()).other_plans("0" * 64, [node.asked.models[0].sha256]) == 0

    def test_remember_says_so_where_it_can_not_be_noted(self, tmp_path, plan_of, answer):
        node = JudgingNode(write_hospital(tmp_path, "a"), plan_of())
        node.site.records_folder().mkdir(parents=True, exist_ok=True)
        (node.site.records_folder() / "told.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(JournalError, match="can't be read or written"):
            node.remember(answer)


class TestConfidential:
    @pytest.fixture(scope="class")
    def judged(self, tmp_path_factory, plan_of, content):
        """Plans that differ in something or nothing → what a hospital with confidential data tells, in turn."""
        release = {"data_is": "confidential", "minimum_patients": 10, "minimum_metric_patients": 5}
        file = write_hospital(tmp_path_factory.mktemp("confidential"), "a", patients=40, **release)

        def judge(without=(), **model):
            node = JudgingNode(file, plan_of(**model))
            node.cohort = node.cohort.without(without)
            found = node.validate(2, {"lesions": memoryview(content)})
            assert not refusals(found, node.plan, (), node.bounds)
            return found.report

        return judge

    @pytest.mark.usefixtures("unlocked")
    def test_counts_are_rounded_and_one_patient_less_does_not_show(self, judged):
        first = judged()
        assert first.patients % 5 == 0
        assert first.validated.scopes[0].patients % 5 == 0
        assert first.validated.scopes[0].models[0].moments["dice"][0] % 5 == 0
        second = judged(without={"PATIENT-000"}, trained_on="Something else, so another plan.")
        told, again = first.validated.scopes[0], second.validated.scopes[0]
        assert again.withheld or again.models == told.models or _far(told.patients, again.patients)


def _far(one: int, other: int) -> bool:
    """Whether two sets are told to differ by so many that no single patient shows."""
    return abs(one - other) >= 5


class TestGate:
    def refused(self, node, answer, **changes):
        other = Answer(answer.report.model_copy(update=changes), answer.update, answer.pictures)
        return " ".join(refusals(other, node.plan, (), node.bounds))

    def test_nothing_else_leaves_beside_the_record(self, node, answer):
        metrics = (MetricsRecord(split="test", patients=5, values={"dice": 0.5}),)
        assert "more than a validation tells" in self.refused(node, answer, metrics=metrics)
        assert "more than a validation tells" in self.refused(node, answer, train_loss=0.5)

    def test_a_record_comes_when_it_is_asked_for_and_then_only(self, node, answer):
        assert "none where they were" in self.refused(node, answer, validated=None)
        assert "not asked for" in self.refused(node, answer, kind="hello", round=0)

    def test_a_plan_that_trains_carries_no_record(self, node, answer, training):
        told = answer.report.model_copy(update={"plan_sha256": training.sha256()})
        said = refusals(Answer(told, {}), training, (), node.bounds)
        assert said == ("figures of frozen models that nobody asked for, or of another site",)

    def test_a_record_of_another_site_is_stopped(self, node, answer):
        assert "of another site" in self.refused(node, answer, validated=replace(answer.report.validated, site="b"))

    def test_figures_of_few_are_stopped(self, node, answer, monkeypatch):
        monkeypatch.setattr(node, "bounds", replace(node.bounds, minimum_metric_patients=10_000))
        said = self.refused(node, answer)
        assert "below the site's minimum" in said
        assert "fewer patients than the site's minimum" in said

    def test_exact_figures_are_stopped_where_they_are_confidential(self, node, answer, monkeypatch):
        monkeypatch.setattr(node, "bounds", replace(node.bounds, base=7))
        assert "exact" in self.refused(node, answer)

    def test_figures_that_the_policy_does_not_list_are_stopped(self, node, answer, monkeypatch):
        monkeypatch.setattr(node, "bounds", replace(node.bounds, metrics=frozenset({"dice"})))
        assert "not on the list" in self.refused(node, answer)

    def test_a_record_of_another_plan_is_stopped(self, node, answer):
        record = replace(answer.report.validated, plan_sha256="0" * 64)
        assert "the plan does not ask for" in self.refused(node, answer, validated=record)

    def test_the_audit_log_names_what_was_told(self, node, answer):
        told = answer.report.told(node.plan)["validation"]
        assert "moments" in told
        assert "scope all" in told
