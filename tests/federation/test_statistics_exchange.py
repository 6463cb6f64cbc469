"""Sums over training patients, asked for once before the first round."""

from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.errors import QuorumError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.messages import reply_content
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
        with pytest.raises(QuorumError, match="2 sites tell sums"):
            Federation(fakes, make_federation, federation={"quorum": 3}).run()
