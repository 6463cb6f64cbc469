"""A validation of frozen models over processes: what comes out is what the patients of all sites together give."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.compose import resolve
from eucaim_fl.errors import JournalError, PlanError, RecipeError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.messages import reply_content, to_record
from eucaim_fl.federation.model_files import FOLDER, arrived_files, file_specs, read_files
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.federation.validation_result import records_of, signatures_of
from eucaim_fl.models.networks import set_arrays
from eucaim_fl.models.planned import initial_arrays, network_for
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import RoundRecord
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.node import SiteNode
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.tracking.journal import Journal
from eucaim_fl.tracking.registration import read_registration
from eucaim_fl.tracking.summary import list_runs
from eucaim_fl.training.evaluation import patient_results
from eucaim_fl.validation.document import Circumstances, Told, make_document, to_bytes
from eucaim_fl.validation.record import EVERYBODY, ModelFigures, ScopeRecord, ValidationRecord
from eucaim_fl.validation.signed import PURPOSE, statement
from eucaim_fl.validation.verification import verify_report
from eucaim_fl.validation_config import ValidationConfig
from tests.conftest import tiny_recipe, write_hospital


def contract(plan: FederationPlan, content: bytes, **changes):
    return {
        "name": "lesions",
        "format": "network",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "network": plan.model.model_dump(),
        "data": plan.data.model_dump(),
        "intended_use": "Finds lesions, for research.",
        **changes,
    }


def validating(plan: FederationPlan, *models, **changes) -> FederationPlan:
    asked = ValidationConfig.model_validate({"models": models, **changes})
    return FederationPlan.model_validate({**plan.model_dump(), "rounds": 1, "validation": asked.model_dump()})


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospitals")
    return [write_hospital(folder, name) for name in "ab"]


@pytest.fixture(scope="module")
def training(hospitals, tmp_path_factory):
    """The configuration, plan and site files of a training over the same hospitals."""
    config = tiny_recipe(tmp_path_factory.mktemp("recipe"), hospitals, rounds=1)
    return config, resolve(config)


@pytest.fixture(scope="module")
def weights(training):
    return initial_arrays(training[1].plan)[1]


@pytest.fixture(scope="module")
def done(training, weights):
    """The plan of a finished validation, and its folder."""
    config, resolved = training
    content = b"".join(encode_arrays(weights))
    plan = validating(resolved.plan, contract(resolved.plan, content), subgroups=[{"by": "sex"}])
    folder = create_run(config, plan, resolved.site_files)
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "lesions").write_bytes(content)
    execute(folder, config, resolved.site_files)
    return plan, folder


class Asked(Listener):
    """Counts how often sites are asked."""

    def __init__(self) -> None:
        self.rounds = 0

    def round_started(self, number, sites):
        self.rounds += 1


@pytest.mark.federated
class TestWholeRun:
    def test_the_mean_is_that_of_all_patients_of_all_sites(self, done, training, weights):
        network = network_for(training[1].plan, 0)
        set_arrays(network, weights)
        network.eval()
        values = []
        for file in training[1].site_files.values():
            node = SiteNode(file, training[1].plan)
            for split in ("train", "validation", "test"):
                results = patient_results(network, node.cohort.cases(split), training[1].plan)
                values += [one["dice"] for one in results.values()]
        report = json.loads((done[1] / "report.json").read_text())
        found = report["result"]["models"][0]["scopes"][0]
        assert found["figures"]["dice"]["value"] == pytest.approx(np.mean(values), rel=1e-6)
        assert found["patients"] == len(values)
        assert report["plan_sha256"] == done[0].sha256()

    def test_the_page_and_the_patients_own_results_are_there(self, done, training):
        page = (done[1] / "report.html").read_text()
        assert "lesions" in page
        for file in training[1].site_files.values():
            place = load_site_file(file).records_folder() / "validations" / f"{done[0].sha256()}.json"
            assert place.stat().st_mode & 0o077 == 0

    def test_the_plan_was_registered_before_the_first_record_came(self, done):
        found = read_registration(done[1])
        assert found.plan_sha256 == done[0].sha256()
        assert len(found.came) == 1
        assert found.at <= found.came[0]
        assert found.came[0][:10] in (done[1] / "report.html").read_text()

    def test_report_and_page_verify_and_nobody_signed(self, done):
        content, page = ((done[1] / name).read_bytes() for name in ("report.json", "report.html"))
        found = verify_report(content, None, page)
        assert found.holds
        assert not found.vouched
        assert not verify_report(content, {"a": {PrivateKey.create().public}}, page).holds
        assert hashlib.sha256(content).hexdigest().encode() in page
        assert b"have no keys" in page
        assert b"Made-up data" in page

    def test_another_plan_over_the_same_model_is_said_to_have_come_after_figures(self, done, training, weights):
        config, resolved = training
        content = b"".join(encode_arrays(weights))
        plan = validating(resolved.plan, contract(resolved.plan, content), tolerance_mm=3.0)
        folder = create_run(config, plan, resolved.site_files)
        (folder / FOLDER).mkdir()
        (folder / FOLDER / "lesions").write_bytes(content)
        execute(folder, config, resolved.site_files)
        assert "At 2 of 2 sites figures of this model had been told before" in (folder / "report.html").read_text()
        assert [one.told_before for one in records_of(Journal(folder).records())] == [1, 1]
        assert verify_report((folder / "report.json").read_bytes()).holds

    def test_a_finished_run_is_not_done_again(self, done, training):
        before = (done[1] / "report.json").read_bytes()
        execute(done[1], training[0], training[1].site_files)
        assert (done[1] / "report.json").read_bytes() == before

    def test_a_coordinator_that_died_before_the_report_makes_it_when_resumed_and_asks_nobody(
        self, done, training, tmp_path
    ):
        folder = tmp_path / done[1].name
        shutil.copytree(done[1], folder)
        for name in ("report.json", "report.html", "result.json"):
            (folder / name).unlink()
        (folder / "status.json").write_text('{"state": "running"}')
        assert [row.state for row in list_runs(tmp_path)] == ["interrupted"]
        asked = Asked()
        execute(folder, training[0], training[1].site_files, asked)
        for name in ("report.json", "report.html"):
            assert (folder / name).read_bytes() == (done[1] / name).read_bytes()
        assert json.loads((folder / "status.json").read_text()) == {"state": "finished"}
        assert (asked.rounds, [row.state for row in list_runs(tmp_path)]) == (0, ["finished"])

    def test_the_models_files_lie_where_they_were_put_and_are_no_model_of_the_run(self, done):
        assert not (done[1] / "models").exists()

    def test_nothing_was_trained(self, done, weights):
        records = Journal(done[1]).records()
        assert [record.final for record in records] == [True]
        assert records[0].aggregated_from == ()


class TestModelFiles:
    @pytest.fixture
    def asked(self, training):
        return validating(training[1].plan, contract(training[1].plan, b"weights")).validation

    def record(self, content=b"weights", name="file.lesions") -> ArrayRecord:
        return to_record({name: np.frombuffer(content, np.uint8)})

    def test_what_is_read_is_what_arrives(self, asked, tmp_path):
        (tmp_path / FOLDER).mkdir()
        (tmp_path / FOLDER / "lesions").write_bytes(b"weights")
        sent = read_files(tmp_path, asked)
        assert [(name, array.shape) for name, array in sent.items()] == [(s.name, s.shape) for s in file_specs(asked)]
        assert bytes(arrived_files(to_record(sent), asked)["lesions"]) == b"weights"

    @pytest.mark.parametrize("content", [None, b"weightz", b"weights and more"])
    def test_read_files_refuses_another_file(self, asked, tmp_path, content):
        (tmp_path / FOLDER).mkdir()
        if content is not None:
            (tmp_path / FOLDER / "lesions").write_bytes(content)
        with pytest.raises(RecipeError, match="file of the model 'lesions'"):
            read_files(tmp_path, asked)

    def test_arrived_files_refuses_what_is_not_the_plans(self, asked):
        with pytest.raises(PlanError, match="holds no model"):
            arrived_files(None, asked)
        with pytest.raises(PlanError, match="1 missing, 1 foreign"):
            arrived_files(self.record(name="file.other"), asked)
        with pytest.raises(PlanError, match="another shape or type"):
            arrived_files(self.record(b"weights and more"), asked)
        with pytest.raises(PlanError, match="not the one that the plan names"):
            arrived_files(self.record(b"weightz"), asked)


class TestSignatures:
    """Over a grid that knows its sites' keys, as the deployed one does."""

    def record(self, plan, site, **changes):
        figures = ModelFigures(moments={"dice": (10.0, 5.0, 2.5)})
        return ValidationRecord(site, plan.sha256(), (ScopeRecord(EVERYBODY, 10, (figures,)),), **changes)

    @pytest.fixture
    def asked(self, make_federation, fakes):
        """Asks sites of a plan; answers: site → record and signature."""
        training, journal, state = make_federation("ab")
        plan = validating(training, contract(training, b"weights"))

        def ask(answers, keys):
            def answer(site, message):
                kind = "hello" if message.metadata.message_type == "query" else "final"
                if kind == "hello":
                    return Message(reply_content(fakes.report(plan, kind, site, 0), {}, None), reply_to=message)
                record, signature = answers(plan, site)
                report = fakes.report(plan, kind, site, 2, metrics=(), validated=asdict(record))
                return Message(reply_content(report, {}, None, signature), reply_to=message)

            grid = fakes.Grid("ab", answer)
            if keys is not None:
                grid.site_keys = {site: key.public for site, key in keys.items()}
            Coordinator(grid, plan, journal, fakes.SPECS).run(replace(state))
            return plan, journal

        return ask

    def test_key_and_signature_are_in_the_journal_and_fit(self, asked):
        keys = {site: PrivateKey.create() for site in "ab"}

        def answers(plan, site):
            record = self.record(plan, site, data_is="public")
            return record, keys[site].sign(PURPOSE, statement(record))

        plan, journal = asked(answers, keys)
        found = signatures_of(journal.records())
        assert {site: one.key for site, one in found.items()} == {site: key.public for site, key in keys.items()}
        told = Told(records_of(journal.records()), found)
        content = to_bytes(make_document(plan, told, Circumstances()))
        assert verify_report(content, {site: {key.public} for site, key in keys.items()}).vouched

    @pytest.mark.parametrize("how", ["none", "another key", "another record"])
    def test_a_record_whose_signature_does_not_fit_is_refused(self, asked, how):
        keys = {site: PrivateKey.create() for site in "ab"}

        def answers(plan, site):
            record = self.record(plan, site)
            if site == "a":
                return record, keys["a"].sign(PURPOSE, statement(record))
            if how == "none":
                return record, ""
            key = keys["a" if how == "another key" else "b"]
            signed = replace(record, told_before=1) if how == "another record" else record
            return record, key.sign(PURPOSE, statement(signed))

        _, journal = asked(answers, keys)
        (final,) = journal.records()
        states = {one.site: (one.status, one.code) for one in final.participation}
        assert states == {"a": ("took_part", ""), "b": ("rejected", "EFL306")}
        assert set(final.validated) == set(final.signatures) == {"a"}

    def test_without_keys_nobody_is_believed_to_have_signed(self, asked):
        _, journal = asked(lambda plan, site: (self.record(plan, site), "x" * 86), None)
        assert set(journal.records()[-1].validated) == {"a", "b"}
        assert signatures_of(journal.records()) == {}

    def test_signatures_of_an_older_journal_are_none_and_damaged_ones_an_error(self, asked):
        _, journal = asked(lambda plan, site: (self.record(plan, site), ""), None)
        values = journal.records()[-1].to_json()
        del values["signatures"]
        for record in values["validated"].values():
            del record["told_before"], record["data_is"]
        older = RoundRecord.from_json(values)
        assert [one.told_before for one in records_of([older])] == [0, 0]
        assert signatures_of([older]) == {}
        with pytest.raises(JournalError, match="signature that can't be read"):
            signatures_of([replace(older, signatures={"a": {"key": "x"}})])


class TestRecordsOf:
    def test_records_of_a_training_are_none(self, done):
        record = Journal(done[1]).records()[-1]
        assert [one.site for one in records_of([record])] == ["a", "b"]
        with pytest.raises(JournalError, match="no validation"):
            records_of([replace(record, validated={})])
        with pytest.raises(JournalError, match="can't be read"):
            records_of([replace(record, validated={"a": {"site": "a"}})])
