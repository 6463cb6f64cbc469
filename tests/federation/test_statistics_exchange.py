"""Sums over training patients, asked for once before the first round."""

from __future__ import annotations

import time

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.errors import QuorumError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.messages import refusal_content, reply_content
from eucaim_fl.records import INPUT_MEAN, INPUT_STD, ArraySpec
from eucaim_fl.tracking.journal import JournalState

SUMS = {"a": (10, 2.0, 1.0), "b": (10, 6.0, 5.0), "c": (0, None, None)}
"""Patients, sum of means, sum of mean squares; c withholds them."""


class Federation:
    """Sites that answer the question for statistics; c says that it tells nothing."""

    def __init__(self, fakes, make_federation, **changes):
        self.fakes, self.asked = fakes, []
        self.plan, self.journal, _ = make_federation("abc", data={"standardise": "federation"}, **changes)
        self.specs = (
            *fakes.SPECS,
            ArraySpec(INPUT_MEAN, (1,), "float32", False),
            ArraySpec(INPUT_STD, (1,), "float32", False),
        )
        self.weights = {
            **fakes.WEIGHTS,
            INPUT_MEAN: np.zeros(1, np.float32),
            INPUT_STD: np.ones(1, np.float32),
        }
        self.journal.begin(self.specs, self.weights)

    def handler(self, site, message):
        kind = message.metadata.message_type
        if kind != "query.statistics":
            return self.fakes.honest(self.plan, specs=self.specs)(site, message)
        self.asked.append(site)
        patients, means, squares = SUMS[site]
        told = (
            {"patients": patients}
            if means is None
            else {"patients": patients, "means": (means,), "squares": (squares,)}
        )
        report = self.fakes.report(self.plan, "statistics", site, 0, statistics=told, metrics=())
        return self.message(message, reply_content(report, {}, None))

    @staticmethod
    def message(message, content):
        from flwr.app import Message

        return Message(content, reply_to=message)

    def run(self, state=None):
        state = state or JournalState(0, self.specs, dict(self.weights), {}, ())
        Coordinator(self.fakes.Grid(self.plan.sites, self.handler), self.plan, self.journal, self.specs, ()).run(state)


@pytest.fixture
def federation(fakes, make_federation):
    return Federation(fakes, make_federation, federation={"quorum": 2})


class TestStatistics:
    def test_the_first_model_has_those_of_all_sites_together(self, federation):
        federation.run()
        weights = federation.journal.load().weights
        assert weights[INPUT_MEAN] == pytest.approx([0.4])  # 8 / 20 patients
        assert weights[INPUT_STD] == pytest.approx([(0.3 - 0.4**2) ** 0.5])
        assert sorted(federation.asked) == ["a", "b", "c"]

    def test_what_each_site_told_is_kept(self, federation):
        federation.run()
        assert federation.journal.statistics()["b"]["means"] == [6.0]

    def test_the_model_before_the_first_round_has_them_too(self, federation):
        federation.run()
        best = ArrayFile(federation.journal.folder / "models" / "best.safetensors").load()
        assert best[INPUT_MEAN] == pytest.approx([0.4])

    def test_a_resumed_run_does_not_ask_again(self, federation):
        federation.run()
        first = federation.journal.load()
        for number in (4, 3, 2, 1):
            folder = federation.journal.folder / "journal" / f"round-{number:04d}"
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        federation.asked.clear()
        state = federation.journal.load()
        assert state.round == 0
        federation.run(state)
        assert federation.asked == []
        assert federation.journal.load().records[-1].weights_sha256 == first.records[-1].weights_sha256

    def test_too_few_that_tell_any_end_the_run(self, fakes, make_federation):
        with pytest.raises(QuorumError, match=r"2 sites tell sums .* c: error EFL304 It withholds the sums"):
            Federation(fakes, make_federation, federation={"quorum": 3}).run()


class TestRefusals:
    """The quorum is waited for as long as it can still come."""

    LONG = 600.0

    def federation(self, fakes, make_federation, refusals, quorum_wait_s=LONG, deadline_s=30.0):
        """refusals: site → the code it refuses with, or None if it never answers; b and c may come round later."""
        rules = {"quorum": 2, "quorum_wait_s": quorum_wait_s, "round_deadline_s": deadline_s}
        here = Federation(fakes, make_federation, federation=rules)
        honest = here.handler

        def handler(site, message):
            if message.metadata.message_type != "query.statistics" or site not in refusals:
                return honest(site, message)
            here.asked.append(site)
            code = refusals[site]
            return None if code is None else here.message(message, refusal_content(code, f"{site} says no.", site))

        here.handler = handler
        return here

    def test_enough_of_them_end_the_run_at_once_by_name_and_reason(self, fakes, make_federation):
        here = self.federation(fakes, make_federation, {"a": "EFL304", "b": "EFL310"})
        began = time.monotonic()
        with pytest.raises(QuorumError, match="0 sites tell sums") as caught:
            here.run()
        assert time.monotonic() - began < self.LONG / 10
        assert "a: error EFL304 a says no.; b: error EFL310 b says no.; c: error EFL304 It withholds" in str(
            caught.value
        )
        assert "their policy may list them" in str(caught.value)
        assert sorted(here.asked) == ["a", "b", "c"], "nobody was asked twice"

    def test_who_merely_does_not_answer_is_waited_for(self, fakes, make_federation):
        refusals = {"b": None}
        here = self.federation(fakes, make_federation, refusals, deadline_s=1.0)
        refused, messages = here.handler, []

        def handler(site, message):
            if site == "b" and message.metadata.message_type == "query.statistics":
                messages.append(message.metadata.message_id)
                if messages[0] != messages[-1]:  # it is asked for the second time
                    refusals.clear()
            return refused(site, message)

        here.handler = handler
        here.run()
        assert len(set(messages)) == 2
        assert here.journal.load().weights[INPUT_MEAN] == pytest.approx([0.4])

    @pytest.mark.parametrize("code", ["EFL311", "EFL312", "EFL303"])
    def test_so_is_who_can_not_answer_now(self, fakes, make_federation, code):
        refusals = {"b": code}
        here = self.federation(fakes, make_federation, refusals)
        refused = here.handler

        def handler(site, message):
            if here.asked.count("b") >= 2:
                refusals.clear()
            return refused(site, message)

        here.handler = handler
        here.run()
        assert here.asked.count("b") == 3

    def test_when_the_wait_is_over_everybody_is_named(self, fakes, make_federation):
        here = self.federation(fakes, make_federation, {"b": None}, quorum_wait_s=0.5, deadline_s=1.0)
        with pytest.raises(QuorumError, match=r"1 sites tell sums .* b: deadline EFL303 .*; c: error EFL304"):
            here.run()
