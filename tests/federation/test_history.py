"""A lost answer does not part a site's state from the server's, and a run that is begun anew begins at every site."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message

from eucaim_fl.arrays import GUIDE
from eucaim_fl.errors import QuorumError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.history import pasts
from eucaim_fl.federation.local_grid import LOST
from eucaim_fl.federation.messages import from_record, read_instruction, refusal_content, reply_content, to_record
from eucaim_fl.records import ArraySpec, Past
from eucaim_fl.site.state_store import StateStore, part
from eucaim_fl.tracking.journal import Journal
from eucaim_fl.training.objective import pull_for, state_after

LR = 0.1
TRAINING = {"local_steps": 1, "optimizer": {"name": "sgd", "lr": LR, "momentum": 0.0}}
SCAFFOLD = {"objective": {"name": "scaffold"}}
DYNAMIC = {"objective": {"name": "dynamic", "mu": 0.5}}
TARGETS = {"a": 1.0, "b": -3.0, "c": 5.0}
"""Where each site's own loss, half the squared distance, is least."""
FAULTS = {("b", 2): "lost", ("c", 3): "bad"}


class Federation:
    """Sites of one step of SGD that keep their state as real ones do. Whoever is in `faults` answers so in that round,
    after it has kept its state."""

    def __init__(self, fakes, make_federation, folder: Path, faults=None, run="run", **changes):
        self.fakes, self.faults, self.folder = fakes, faults or {}, folder
        self.told: dict[tuple[str, int], Past] = {}
        self.plan, self.journal, self.state = make_federation("abc", folder=run, **{"training": TRAINING, **changes})

    def store(self, site: str) -> StateStore:
        return StateStore(self.folder / site, self.plan.sha256())

    def handler(self, site, message):
        if message.metadata.message_type != "train":
            return self.fakes.honest(self.plan)(site, message)
        asked = read_instruction(message.content)
        self.told[site, asked.round] = asked.past
        if self.faults.get((site, asked.round)) == "absent":
            return Message(Error(LOST, "It never arrived."), reply_to=message)
        guides = (ArraySpec(f"{GUIDE}w", (3,), "float32", True),) if f"{GUIDE}w" in asked.weights else ()
        arrays = from_record(asked.weights, (*self.fakes.SPECS, *guides))
        guide = {"w": arrays[f"{GUIDE}w"]} if guides else {}
        objective, store = self.plan.method.objective, self.store(site)
        control = part(store.start(asked.round, asked.past, ("control",)), "control")
        pull = pull_for(objective, {"w": arrays["w"]}, control, guide)
        correction = 0 if pull is None else pull.correction.get("w", 0)
        change = (-LR * (arrays["w"] - TARGETS[site] + correction)).astype(np.float32)
        kept = state_after(objective, control, guide, {"w": change}, LR)
        store.keep(asked.round, {f"control:{name}": a for name, a in kept.items()}, "{}", asked.past)
        fault = self.faults.get((site, asked.round))
        if fault == "lost":
            return Message(Error(LOST, "The answer never arrived."), reply_to=message)
        if fault == "refused":
            return Message(refusal_content("EFL304", "The site's gate stopped the reply.", site), reply_to=message)
        content = reply_content(
            self.fakes.report(self.plan, "round", site, asked.round, steps=1),
            {"w": change, "count": arrays["count"] + 1},
            None,
        )
        if fault == "bad":
            content["update"] = to_record({"w": change * np.float32(np.nan), "count": arrays["count"] + 1})
        return Message(content, reply_to=message)

    def run(self, state=None):
        grid = self.fakes.Grid(self.plan.sites, self.handler)
        Coordinator(grid, self.plan, self.journal, self.fakes.SPECS, ()).run(state or self.state)
        return self.journal.load()

    def kept(self, site: str, end) -> np.ndarray:
        """What a site would go on from after the last round of all."""
        past = pasts(self.plan, self.journal.run(), end.records)[site]
        state = part(self.store(site).start(self.plan.rounds + 1, past, ("control",)), "control")
        return state.get("w", np.zeros(3, np.float32))


@pytest.fixture
def federation(fakes, make_federation, tmp_path):
    def make(faults=None, run="run", rounds=5, **changes):
        values = {"method": SCAFFOLD, "rounds": rounds, "federation": {"round_deadline_s": 30.0}, **changes}
        return Federation(fakes, make_federation, tmp_path / "sites", faults, run, **values)

    return make


class TestWhatIsTold:
    def test_the_last_round_of_each_site_that_counted_before_this_one(self, federation):
        here = federation({("b", 2): "bad", ("b", 3): "lost", ("c", 1): "refused"})
        here.run()
        counted = {site: [here.told[site, number].counted for number in range(1, 6)] for site in "abc"}
        assert counted == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 1, 1, 4], "c": [0, 0, 2, 3, 4]}
        assert {past.run for past in here.told.values()} == {here.journal.run()}

    def test_only_the_run_where_the_server_has_no_state_of_its_own(self, federation):
        kept = {"local_steps": 1, "optimizer": {"name": "adam", "lr": LR, "kept": True}}
        here = federation(method={}, training=kept, rounds=2)
        assert pasts(here.plan, "r", ()) == dict.fromkeys("abc", Past("r"))
        here.run()
        assert set(here.told.values()) == {Past(here.journal.run())}

    def test_the_run_from_hello_on_where_the_sites_keep_models_of_the_end_alone(self, federation):
        here = federation(method={"personal": {"fine_tune_steps": 2}})
        assert pasts(here.plan, "r", ()) == dict.fromkeys("abc", Past("r"))
        here.faults, asked, answer = {(site, 1): "refused" for site in "abc"}, set(), here.handler

        def heard(site, message):
            asked.add((message.metadata.message_type, read_instruction(message.content).past))
            return answer(site, message)

        here.handler = heard
        with pytest.raises(QuorumError, match="Round 1 has 0"):
            here.run()
        run = here.journal.run()
        assert asked == {("query", Past(run)), ("train", Past(run))}

    def test_nothing_where_the_sites_keep_nothing(self, federation):
        here = federation(method={"objective": {"name": "proximal"}}, rounds=1)
        assert pasts(here.plan, "r", ()) == {}
        here.run()
        assert set(here.told.values()) == {Past()}

    def test_sites_that_are_told_the_same_share_one_message_however_they_are_ordered(self, federation):
        here, contents = federation({("b", 1): "refused"}, rounds=2), []

        class Watched(here.fakes.Grid):
            def push_messages(self, messages):
                messages = list(messages)
                contents.append([message.content for message in messages])
                return super().push_messages(messages)

        grid = Watched(here.plan.sites, here.handler)
        Coordinator(grid, here.plan, here.journal, here.fakes.SPECS, ()).run(here.state)
        numbers = [len({id(content) for content in pushed}) for pushed in contents if len(pushed) == 3]
        assert numbers == [1, 1, 2, 1]  # hello, two rounds, the end
        weights = [{id(content["weights"]) for content in pushed} for pushed in contents if "weights" in pushed[0]]
        assert [len(one) for one in weights] == [1] * len(weights)


class TestServerAndSites:
    @pytest.mark.parametrize("fault", ["lost", "bad", "refused"])
    def test_the_common_control_variate_stays_the_mean_of_the_sites(self, federation, fault):
        here = federation({("b", 2): fault, ("c", 3): fault, ("c", 4): fault})
        end = here.run()
        mean = sum(here.kept(site, end) for site in "abc") / 3
        assert end.optimizer["control.w"] == pytest.approx(mean, abs=1e-6)
        assert np.abs(mean).max() > 0.1

    @pytest.mark.parametrize("fault", ["lost", "bad"])
    def test_what_dynamic_regularisation_gathers_stays_the_mean_of_the_sites(self, federation, fault):
        here = federation({("b", 2): fault, ("c", 3): fault, ("c", 4): fault}, method=DYNAMIC)
        end = here.run()
        mean = sum(here.kept(site, end) for site in "abc") / 3
        assert end.optimizer["control.w"] == pytest.approx(mean, abs=1e-6)

    @pytest.mark.parametrize("method", [SCAFFOLD, DYNAMIC], ids=["scaffold", "dynamic"])
    def test_an_answer_that_was_lost_changes_no_more_than_one_that_was_not_given(self, federation, method):
        ends = []
        for fault in ("lost", "absent"):
            shutil.rmtree(federation().folder, ignore_errors=True)
            ends.append(federation({("b", 2): fault}, run=fault, method=method).run())
        assert ends[0].records[-1].weights_sha256 == ends[1].records[-1].weights_sha256


class TestResuming:
    @pytest.mark.parametrize("lost_too", [(), (3,)], ids=["as it stands", "a round back"])
    def test_a_killed_run_has_the_end_that_it_would_have_had(self, federation, lost_too):
        """Its last round may not have reached the journal, although the sites were at work on the next one."""
        once = federation(FAULTS, run="whole", rounds=4)
        expected = once.run()
        shutil.rmtree(once.folder)
        here = federation({**FAULTS, **{(site, 4): "refused" for site in "abc"}}, rounds=4)
        with pytest.raises(QuorumError, match="Round 4 has 0"):
            here.run()
        for number in lost_too:
            shutil.rmtree(here.journal.folder / "journal" / f"round-{number:04d}")
        here.faults, here.journal = FAULTS, Journal(here.journal.folder)
        state = here.journal.load()
        assert state.round == 3 - len(lost_too)
        name = here.journal.run()
        end = here.run(state)
        assert end.records[-1].weights_sha256 == expected.records[-1].weights_sha256
        assert here.journal.run() == name
        assert {place: past.counted for place, past in here.told.items()} == {
            place: past.counted for place, past in once.told.items()
        }


class TestTheSamePlanAgain:
    def test_a_site_that_misses_its_first_round_finds_nothing_of_the_run_before(self, federation):
        fresh = federation({("b", 1): "absent"}, run="fresh").run()
        shutil.rmtree(federation().folder)
        unfinished = federation(run="unfinished", rounds=5)
        unfinished.faults = {(site, 4): "refused" for site in "abc"}
        with pytest.raises(QuorumError, match="Round 4 has 0"):
            unfinished.run()
        assert unfinished.store("b")._rounds(unfinished.journal.run())
        again = federation({("b", 1): "absent"}, run="again").run()
        assert again.records[-1].weights_sha256 == fresh.records[-1].weights_sha256

    @pytest.mark.parametrize("method", [SCAFFOLD, DYNAMIC], ids=["scaffold", "dynamic"])
    def test_a_run_that_is_resumed_after_another_one_of_the_plan_goes_on_where_it_was(self, federation, method):
        expected = federation(run="whole", method=method).run()
        shutil.rmtree(federation().folder)
        here = federation({(site, 4): "refused" for site in "abc"}, run="killed", method=method)
        with pytest.raises(QuorumError, match="Round 4 has 0"):
            here.run()
        between = federation({(site, 2): "refused" for site in "abc"}, run="between", method=method)
        with pytest.raises(QuorumError, match="Round 2 has 0"):
            between.run()
        here.faults, here.journal = {}, Journal(here.journal.folder)
        end = here.run(here.journal.load())
        assert end.records[-1].weights_sha256 == expected.records[-1].weights_sha256
        assert end.optimizer["control.w"] == pytest.approx(expected.optimizer["control.w"], abs=0)
