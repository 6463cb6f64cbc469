"""When the rounds end, and which model is the result."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile, arrays_sha256, encode_arrays
from eucaim_fl.config import ClassificationConfig, SurvivalConfig
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import JournalError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.messages import read_instruction
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.result import best_round, stalled
from eucaim_fl.records import RoundRecord

CLASSES = ClassificationConfig(target="malignant", classes=("no", "yes"))
SURVIVAL = SurvivalConfig(time="months", event="died")
HISTOGRAMS = {"auc": 0.6, "brier": 0.3}


def measured(dice):
    return {
        "split": "validation",
        "patients": 5,
        "values": {"dice": dice},
        "sums": {"dice": (5.0, 5 * dice, 5 * dice**2)},
    }


def run(fakes, made, dice, listeners=()):
    """Sites whose arriving model in round r has the r-th Dice of `dice`; None: nobody measures."""
    plan, journal, state = made
    inner = fakes.honest(plan)

    def handler(site, message):
        reply = inner(site, message)
        number = read_instruction(message.content).round
        if message.metadata.message_type != "train":
            return reply
        value = dice[number - 1]
        metrics = () if value is None else (measured(value),)
        report = fakes.report(plan, "round", site, number, metrics=metrics)
        return replace_report(message, report, reply)

    def replace_report(message, report, reply):
        reply.content["report"]["json"] = report.model_dump_json()
        return reply

    Coordinator(fakes.Grid(plan.sites, handler), plan, journal, fakes.SPECS, listeners).run(state)
    return journal


class TestPatience:
    def test_the_rounds_end_when_the_metric_was_not_bettered_so_often(self, fakes, make_federation):
        made = make_federation("ab", rounds=9, stopping={"patience": 2})
        records = run(fakes, made, [0.3, 0.5, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]).records()
        assert [(r.round, r.final) for r in records] == [(1, False), (2, False), (3, False), (4, False), (5, True)]

    def test_a_better_measurement_begins_the_count_anew(self, fakes, make_federation):
        made = make_federation("ab", rounds=6, stopping={"patience": 2})
        assert len(run(fakes, made, [0.3, 0.2, 0.4, 0.3, 0.5, 0.5]).records()) == 7

    def test_rounds_that_nobody_measures_do_not_count(self, fakes, make_federation):
        made = make_federation("ab", rounds=6, stopping={"patience": 2, "validate_every": 2})
        dice = [0.5, None, 0.4, None, 0.3, None]
        assert [r.round for r in run(fakes, made, dice).records()] == [1, 2, 3, 4, 5, 6]

    def test_it_is_told(self, fakes, make_federation):
        heard = []

        class Ear(Listener):
            def line(self, text):
                heard.append(text)

        run(fakes, make_federation("ab", rounds=5, stopping={"patience": 1}), [0.5, 0.5, 0.6, 0.6, 0.6], [Ear()])
        assert heard == ["no better for 1 measurements: the rounds end"]

    def test_a_run_that_ended_so_is_over_when_it_is_resumed(self, fakes, make_federation):
        plan, journal, _ = made = make_federation("ab", rounds=5, stopping={"patience": 1})
        run(fakes, made, [0.5, 0.5, 0.6, 0.6, 0.6])
        before = journal.records()
        run(fakes, (plan, journal, journal.load()), [0.9] * 5)
        assert journal.records() == before

    def test_without_it_all_rounds_are_made(self, make_federation):
        plan, _, _ = make_federation("ab", rounds=3)
        record = RoundRecord(1, "", "", (), {}, {"validation": {"dice": 0.5}}, {}, (), 0.0)
        assert not stalled(plan, [record, *(replace(record, round=n) for n in (2, 3))])


class TestOneMetric:
    """Rounds of a classification, with what was pooled in each."""

    @pytest.fixture
    def judge(self, plan_for):
        def judged(*pooled, task=CLASSES, patience=2, keep="best"):
            plan = plan_for(task, rounds=20, stopping={"patience": patience, "keep": keep})
            records = [
                RoundRecord(n, "", "", (), {}, {"validation": {"patients": 9.0, **one}}, {}, (), 0.0)
                for n, one in enumerate(pooled, 1)
            ]
            best = best_round(plan, records)
            return None if best is None else best.round, stalled(plan, records)

        return judged

    def test_a_site_that_sends_histograms_once_does_not_end_the_run(self, judge):
        assert judge(HISTOGRAMS, *({"auc_site_mean": 0.7, "brier": b} for b in (0.28, 0.26, 0.24))) == (4, False)
        assert judge(HISTOGRAMS, *({"auc_site_mean": 0.9, "brier": b} for b in (0.28, 0.31, 0.28))) == (2, True)

    def test_one_round_without_histograms_goes_over_to_what_all_have(self, judge):
        before = [{"auc": 0.6, "brier": 0.3}, {"auc": 0.7, "brier": 0.28}]
        assert judge(*before) == (2, False)
        assert judge(*before, {"brier": 0.25}, {"auc": 0.9, "brier": 0.27}, patience=1) == (3, True)

    def test_the_mean_of_the_sites_own_areas_is_one_where_all_rounds_have_it(self, judge):
        rounds = [{"auc_site_mean": a, "brier": b} for a, b in ((0.6, 0.1), (0.7, 0.3), (0.65, 0.2), (0.7, 0.2))]
        assert judge(*rounds) == (2, True)

    def test_figures_that_nothing_has_in_common_with_begin_the_search_anew(self, judge):
        means = [{"c_index_site_mean": value} for value in (0.6, 0.55, 0.5)]
        assert judge({"c_index": 0.8}, *means[:2], task=SURVIVAL) == (2, False)
        assert judge({"c_index": 0.8}, *means, task=SURVIVAL) == (2, True)

    def test_rounds_of_which_only_the_number_of_patients_is_known_do_not_count(self, judge):
        assert judge({}, {}) == (None, False)
        assert judge({"auc": 0.6, "brier": 0.3}, {}, {}, {}) == (1, False)

    def test_the_model_that_is_named_is_on_the_disk_whatever_is_measured(self, plan_for):
        """The best of earlier rounds and the round itself are those whose weights are kept."""
        plan = plan_for(CLASSES, rounds=20, stopping={"keep": "best"})
        rng = np.random.default_rng(0)
        records, kept = [], None
        for number in range(1, 15):
            names = [("auc", "brier"), ("auc_site_mean", "brier"), ("brier",), ()][int(rng.integers(4))]
            values = {name: float(rng.random()) for name in names}
            records.append(RoundRecord(number, "", "", (), {}, {"validation": values}, {}, (), 0.0))
            best = best_round(plan, records)
            found = None if best is None else best.round
            assert found in (kept, number)
            kept = found


class TestTheBest:
    def test_it_is_measured_in_the_last_exchange_and_is_the_result(self, fakes, make_federation):
        made = make_federation("ab", rounds=3, stopping={"keep": "best"})
        journal = run(fakes, made, [0.3, 0.5, 0.4])
        final = journal.records()[-1]
        after_first = journal.records()[0].weights_sha256
        assert final.arriving_sha256 == final.weights_sha256 == after_first
        assert np.array_equal(journal.load().weights["w"], [1.5] * 3)  # one step of the mean of 1 and 2

    def test_where_nobody_measured_it_is_the_last(self, fakes, make_federation):
        made = make_federation("ab", rounds=2, stopping={"keep": "best"})
        journal = run(fakes, made, [None, None])
        assert np.array_equal(journal.load().weights["w"], [3.0] * 3)


class TestMeasuring:
    @pytest.mark.parametrize(("every", "asked"), [(1, [1, 2, 3, 4]), (2, [1, 3]), (3, [1, 4]), (9, [1])])
    def test_it_comes_in_the_first_round_and_every_so_many(self, make_federation, every, asked):
        plan, _, _ = make_federation("ab", stopping={"validate_every": every})
        assert [n for n in (1, 2, 3, 4) if plan.stopping.validates(n)] == asked

    def test_figures_that_were_not_asked_for_are_refused(self, fakes, make_federation):
        made = make_federation("ab", rounds=2, stopping={"validate_every": 5}, federation={"quorum": 1})
        plan, journal, state = made
        inner = fakes.honest(plan)

        def handler(site, message):
            if site == "b" or message.metadata.message_type != "train":
                return inner(site, message)
            return run_without(fakes, plan, site, message, inner)

        Coordinator(fakes.Grid(plan.sites, handler), plan, journal, fakes.SPECS, ()).run(state)
        second = {p.site: p for p in journal.records()[1].participation}
        assert second["a"].status == "took_part"
        assert second["b"].status == "rejected"
        assert "other patients or models than were asked for" in second["b"].reason


def run_without(fakes, plan, site, message, inner):
    """An honest answer without figures in rounds that ask for none."""
    instruction = read_instruction(message.content)
    metrics = (measured(0.5),) if plan.stopping.validates(instruction.round) else ()
    reply = inner(site, message)
    reply.content["report"]["json"] = fakes.report(
        plan, "round", site, instruction.round, metrics=metrics
    ).model_dump_json()
    return reply


class TestTheBestOnTheDisk:
    """Sites whose Dice is best in round 2 of 3, and better still in the last exchange, where only some answer."""

    @pytest.fixture
    def ended(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=3, stopping={"keep": "best"})
        dice = {"train": [0.3, 0.5, 0.4], "evaluate": [0.9] * 9}
        inner = fakes.honest(plan)

        def handler(site, message):
            reply = inner(site, message)
            kind, number = message.metadata.message_type, read_instruction(message.content).round
            if kind in dice:
                told = [measured(dice[kind][number - 1])]
                told += [{**told[0], "split": "test"}] if kind == "evaluate" else []
                name = {"train": "round", "evaluate": "final"}[kind]
                reply.content["report"]["json"] = fakes.report(
                    plan, name, site, number, metrics=tuple(told)
                ).model_dump_json()
            return reply

        def go(state=state):
            Coordinator(fakes.Grid(plan.sites, handler), plan, journal, fakes.SPECS, ()).run(state)
            return journal

        go()
        return journal, go

    def test_the_last_exchange_does_not_replace_it(self, ended):
        journal, _ = ended
        best = ArrayFile(journal.folder / "models" / "best.safetensors").load()
        assert arrays_sha256(best) == journal.records()[1].arriving_sha256 == journal.records()[-1].weights_sha256

    def lost(self, journal, *numbers):
        for number in numbers:
            shutil.rmtree(journal.folder / "journal" / f"round-{number:04d}")

    def test_a_crash_between_the_round_and_its_copy_is_made_good(self, ended):
        journal, _ = ended
        second = journal.records()[1]
        arriving = ArrayFile(journal.folder / "models" / "best.safetensors").load()
        write_atomically(journal.folder / "journal" / "round-0001" / "weights.safetensors", encode_arrays(arriving))
        write_atomically(journal.folder / "models" / "best.safetensors", encode_arrays({"of": np.zeros(1)}))
        assert arrays_sha256(journal.best(second)) == second.arriving_sha256
        again = ArrayFile(journal.folder / "models" / "best.safetensors").load()
        assert arrays_sha256(again) == second.arriving_sha256

    def test_one_that_is_nowhere_any_more_ends_the_run(self, ended):
        journal, go = ended
        self.lost(journal, 4)
        (journal.folder / "models" / "best.safetensors").unlink()
        with pytest.raises(JournalError, match="arrived in round 2, is not on the disk"):
            go(journal.load())
