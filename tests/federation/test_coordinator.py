"""Rounds over a grid: who counts, what is combined, what the record says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message

from eucaim_fl.errors import InterruptedRunError, JournalError, LinkError, QuorumError
from eucaim_fl.federation import coordinator as coordinator_module
from eucaim_fl.federation import exchange
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.local_grid import LOST, SEAL
from eucaim_fl.federation.messages import from_record, refusal_content, reply_content, to_record
from eucaim_fl.federation.progress import Listener
from eucaim_fl.records import ArraySpec
from eucaim_fl.tracking.journal import Journal


def run(fakes, plan, journal, state, handler, order=0, listeners=()):
    """Run to the end; returns the journal's state and records."""
    grid = fakes.Grid(plan.sites, handler, order)
    Coordinator(grid, plan, journal, fakes.SPECS, listeners).run(state)
    return grid, journal.load()


class TestRounds:
    def test_each_round_moves_the_weights_by_the_mean_step(self, fakes, make_federation):
        plan, journal, state = make_federation("abc")
        _, end = run(fakes, plan, journal, state, fakes.honest(plan))
        assert end.weights["w"].tolist() == [6.0, 6.0, 6.0]  # 3 rounds × mean of 1, 2, 3
        assert end.weights["count"] == 3
        assert end.weights["count"].dtype == np.int64

    def test_the_order_of_replies_changes_no_bit(self, fakes, make_federation):
        steps = {"a": 0.1, "b": 1e7, "c": -1e7 / 3}
        digests = set()
        for order in range(5):
            plan, journal, state = make_federation("abc", folder=f"run{order}")
            _, end = run(fakes, plan, journal, state, fakes.honest(plan, steps), order)
            digests.add(end.records[-1].weights_sha256)
        assert len(digests) == 1

    def test_weights_count_patients(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=1)
        inner = fakes.honest(plan)

        def handler(site, message):
            reply = inner(site, message)
            if site == "b":
                text = reply.content.config_records["report"]["json"].replace('"patients":10,', '"patients":30,', 1)
                reply.content.config_records["report"]["json"] = text
            return reply

        _, end = run(fakes, plan, journal, state, handler)
        assert end.weights["w"].tolist() == [1.75] * 3  # (10 · 1 + 30 · 2) / 40

    def test_the_last_exchange_only_evaluates(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=2)
        _, end = run(fakes, plan, journal, state, fakes.honest(plan))
        assert [r.round for r in end.records] == [1, 2, 3]
        last = end.records[-1]
        assert last.aggregated_from == ()
        assert last.arriving_sha256 == last.weights_sha256
        assert last.pooled["test"]["patients"] == 10

    def test_listeners_hear_of_every_round_after_it_is_in_the_journal(self, fakes, make_federation, tmp_path):
        plan, journal, state = make_federation("ab", rounds=2)
        heard = []

        class Ear(Listener):
            def round_done(self, record):
                heard.append((record.round, (journal.folder / "journal" / f"round-{record.round:04d}").exists()))

        run(fakes, plan, journal, state, fakes.honest(plan), listeners=[Ear()])
        assert heard == [(1, True), (2, True), (3, True)]


def spoiled(plan, fakes, how):
    """An honest federation in which site b is faulty in round 2."""
    inner = fakes.honest(plan)

    def handler(site, message):
        if site != "b" or message.metadata.group_id != "2":
            return inner(site, message)
        return how(message, inner(site, message))

    return handler


def nan_reply(message, reply):
    update = {"w": np.array([1, np.nan, 1], np.float32), "count": np.array(2)}
    content = reply.content
    from eucaim_fl.federation.messages import to_record

    content["update"] = to_record(update)
    return reply


def foreign_arrays(message, reply):
    from eucaim_fl.federation.messages import to_record

    reply.content["update"] = to_record({"w": np.ones(3, np.float32), "count": np.array(2), "more": np.ones(9)})
    return reply


def another_name(message, reply):
    record = reply.content.config_records["report"]
    record["json"] = record["json"].replace('"site":"b"', '"site":"a"')
    return reply


def more_patients(message, reply):
    record = reply.content.config_records["report"]
    record["json"] = record["json"].replace('"patients":10,', '"patients":1000000,', 1)
    return reply


def impossible_metrics(message, reply):
    record = reply.content.config_records["report"]
    record["json"] = record["json"].replace("[5.0,2.5,1.25]", "[5.0,2.5,-1.0]")
    return reply


def rewritten(old, new):
    """A fault that changes the report's text."""

    def how(message, reply):
        record = reply.content.config_records["report"]
        assert old in record["json"]
        record["json"] = record["json"].replace(old, new, 1)
        return reply

    return how


def huge_change(message, reply):
    from eucaim_fl.federation.messages import to_record

    reply.content["update"] = to_record({"w": np.full(3, 2e38, np.float32), "count": np.array(2)})
    return reply


ENTRY = (
    '{"split":"validation","patients":5,"values":{"dice":0.5},"sums":{"dice":[5.0,2.5,1.25]},"withheld":"",'
    '"model":"common"}'
)


def says_no(message, reply):
    return Message(refusal_content("EFL601", "The training loss is not finite."), reply_to=message)


def lost(message, reply):
    return Message(Error(LOST, "gone"), reply_to=message)


class TestFaultySites:
    @pytest.mark.parametrize(
        ("how", "status", "code"),
        [
            (nan_reply, "rejected", "EFL302"),
            (foreign_arrays, "rejected", "EFL302"),
            (another_name, "rejected", "EFL302"),
            (more_patients, "rejected", "EFL302"),
            (impossible_metrics, "rejected", "EFL302"),
            (huge_change, "rejected", "EFL302"),
            (rewritten('"patients":10,', '"patients":100000000000000000,'), "rejected", "EFL302"),
            (rewritten('"seconds":0.0', '"seconds":1.7e308'), "rejected", "EFL302"),
            (rewritten('"train_loss":null', '"train_loss":1.7e308'), "rejected", "EFL302"),
            (rewritten(ENTRY, f"{ENTRY},{ENTRY}"), "rejected", "EFL302"),
            (rewritten('"split":"validation"', '"split":"test"'), "rejected", "EFL302"),
            (rewritten('"dice":0.5', '"dice":1000000.0'), "rejected", "EFL302"),
            (rewritten('"dice":0.5', '"dice":0.5,"auc":0.5'), "rejected", "EFL302"),
            (rewritten('"cohort_sha256":"0', '"cohort_sha256":"1'), "rejected", "EFL302"),
            (says_no, "error", "EFL601"),
            (lost, "lost", "EFL303"),
            (lambda message, reply: None, "deadline", "EFL303"),
        ],
        ids=[
            "nan",
            "foreign",
            "name",
            "patients",
            "metrics",
            "huge",
            "people",
            "seconds",
            "loss",
            "twice",
            "split",
            "range",
            "unasked",
            "cohort",
            "refuses",
            "lost",
            "silent",
        ],
    )
    def test_it_is_named_left_out_and_back_in_the_next_round(self, fakes, make_federation, how, status, code):
        plan, journal, state = make_federation("abc", rounds=3, federation={"round_deadline_s": 0.3})
        _, end = run(fakes, plan, journal, state, spoiled(plan, fakes, how))
        by_round = {r.round: {p.site: p for p in r.participation} for r in end.records}
        assert by_round[2]["b"].status == status
        assert by_round[2]["b"].code == code
        assert by_round[2]["b"].reason
        assert end.records[1].aggregated_from == ("a", "c")
        assert by_round[3]["b"].status == "took_part"
        assert end.weights["w"].tolist() == [6.0] * 3  # rounds 1 and 3: mean of 1, 2, 3; round 2: mean of 1 and 3

    def test_a_site_whose_patients_withdrew_consent_counts_with_those_who_are_left(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=3)
        _, end = run(
            fakes,
            plan,
            journal,
            state,
            spoiled(plan, fakes, rewritten('"patients":10,"quarantined"', '"patients":5,"quarantined"')),
        )
        assert [{p.site: p.patients for p in r.participation}["b"] for r in end.records] == [10, 5, 10, 10]
        assert end.weights["w"].tolist() == pytest.approx([1.5 + (10 * 1 + 5 * 2) / 15 + 1.5] * 3)

    def test_a_silent_site_is_given_up_so_that_its_process_can_be_ended(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=2, federation={"round_deadline_s": 0.2})
        grid, _ = run(fakes, plan, journal, state, spoiled(plan, fakes, lambda message, reply: None))
        assert len(grid.cancelled) == 1

    def test_who_is_waited_for_is_told_less_and_less_often(self, fakes, make_federation, monkeypatch):
        monkeypatch.setattr(exchange, "_TELL_AFTER_S", 0.1)
        monkeypatch.setattr(exchange, "_POLL_S", 0.01)
        plan, journal, state = make_federation("abc", rounds=2, federation={"round_deadline_s": 1.0})
        heard = []

        class Ear(Listener):
            def waiting_for_answers(self, number, sites, seconds):
                heard.append((number, sites, seconds))

        run(fakes, plan, journal, state, spoiled(plan, fakes, lambda message, reply: None), listeners=[Ear()])
        assert heard == [(2, ["b"], 0.1), (2, ["b"], 0.2), (2, ["b"], 0.4), (2, ["b"], 0.8)]

    def test_a_site_that_can_not_open_its_cohort_is_recorded_with_its_reason(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=1)
        inner = fakes.honest(plan)

        def handler(site, message):
            if site == "c":
                return Message(refusal_content("EFL201", "The cohort's folder is missing.", "c"), reply_to=message)
            return inner(site, message)

        _, end = run(fakes, plan, journal, state, handler)
        missing = {p.site: p for p in end.records[0].participation}["c"]
        assert (missing.status, missing.code) == ("error", "EFL201")

    def test_a_site_lost_at_hello_is_asked_again_in_the_next_round(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=2)
        inner, hellos = fakes.honest(plan), []

        def handler(site, message):
            if site == "b" and message.metadata.message_type == "query":
                hellos.append(1)
                if len(hellos) < 3:
                    return lost(message, None)
            return inner(site, message)

        grid = fakes.Grid(plan.sites, handler)
        grid.names = {1: "a", 2: "b"}
        Coordinator(grid, plan, journal, fakes.SPECS).run(state)
        seen = [{p.site: p.status for p in r.participation}["b"] for r in journal.records()]
        assert seen == ["lost", "took_part", "took_part"]

    def test_a_cohort_that_changed_since_the_run_began_is_left_out_by_name(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=1)
        journal.keep_site("b", 10, 0, "9" * 64)
        _, end = run(fakes, plan, journal, state, fakes.honest(plan))
        found = {p.site: p for p in end.records[0].participation}["b"]
        assert found.status == "rejected"
        assert "changed" in found.reason

    def test_a_second_node_with_the_name_of_a_known_site_is_not_asked(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=1)
        inner = fakes.honest(plan)
        asked = []

        def handler(site, message):
            asked.append((site, message.metadata.message_type))
            return inner("a" if site == "z" else site, message)

        grid = fakes.Grid(["a", "b", "z"], handler)
        Coordinator(grid, plan, journal, fakes.SPECS).run(state)
        trained = [site for site, kind in asked if kind == "train"]
        assert sorted(trained) in (["a", "b"], ["b", "z"])


def scaled(plan, fakes, site, factor, rounds="123"):
    """An honest federation in which one site's update is so many times as long, in some rounds."""
    plain, loud = fakes.honest(plan), fakes.honest(plan, {site: factor * (ord(site) - 96.0)})
    return lambda name, message: (loud if message.metadata.group_id in rounds else plain)(name, message)


def participation(record):
    return {p.site: p for p in record.participation}


class TestOutliers:
    def test_an_update_a_thousand_times_as_long_is_left_out_by_name(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=2)
        _, end = run(fakes, plan, journal, state, scaled(plan, fakes, "b", 1000.0, "1"))
        first, second, _ = end.records
        found = participation(first)["b"]
        assert (found.status, found.code) == ("rejected", "EFL302")
        assert "more than 20 times as long" in found.reason
        assert found.update_norm == pytest.approx(2000.0 * 3**0.5)
        assert first.aggregated_from == ("a", "c")
        assert "b" not in first.metrics
        assert participation(second)["b"].status == "took_part"
        assert end.weights["w"].tolist() == [4.0] * 3  # mean of 1 and 3, then of 1, 2 and 3

    @pytest.mark.parametrize(("weights", "variance"), [(100.0, 1e5), (1.0, 1e9)], ids=["hidden", "buffers"])
    def test_neither_long_buffers_nor_what_they_hide_is_taken(self, fakes, make_federation, weights, variance):
        plan, journal, state = make_federation("abc", rounds=1)
        specs = (*fakes.SPECS, ArraySpec("running_var", (3,), "float32", False))
        start = {**state.weights, "running_var": np.ones(3, np.float32)}
        inner = fakes.honest(plan, {"a": 1.0, "b": weights, "c": 1.0}, specs)

        def handler(site, message):
            reply = inner(site, message)
            if message.metadata.message_type == "train":
                change = np.full(3, variance if site == "b" else 1e5, np.float32)
                update = {**from_record(reply.content["update"], specs), "running_var": change}
                reply.content["update"] = to_record(update)
            return reply

        state = replace(state, specs=specs, weights=start)
        journal.begin(specs, start)
        Coordinator(fakes.Grid(plan.sites, handler), plan, journal, specs).run(state)
        first = journal.records()[0]
        assert first.aggregated_from == ("a", "c")
        assert "more than 20 times as long" in participation(first)["b"].reason
        assert participation(first)["a"].trained_norm == pytest.approx(3**0.5)

    def test_its_site_is_not_asked_again_in_the_round(self, fakes, make_federation):
        rules = {"quorum": 3, "quorum_wait_s": 0.5}
        plan, journal, state = make_federation("abc", rounds=1, federation=rules)
        inner, asked = scaled(plan, fakes, "b", 1000.0), []

        def handler(site, message):
            if message.metadata.message_type == "train":
                asked.append(site)
            return inner(site, message)

        with pytest.raises(QuorumError, match=r"has 2 of the 3 sites.*b: rejected EFL302"):
            run(fakes, plan, journal, state, handler)
        assert sorted(asked) == ["a", "b", "c"]

    def test_two_sites_are_measured_against_earlier_rounds_after_a_restart_too(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=3)
        handler, stops = scaled(plan, fakes, "b", 1000.0, "3"), []

        class Stop(Listener):
            def round_done(self, record):
                stops.append(record.round)

        grid = fakes.Grid(plan.sites, handler)
        with pytest.raises(InterruptedRunError, match="stopped"):
            Coordinator(grid, plan, journal, fakes.SPECS, [Stop()], lambda: 1 in stops).run(state)
        _, end = run(fakes, plan, Journal(journal.folder), journal.load(), handler)
        assert [r.aggregated_from for r in end.records] == [("a", "b"), ("a", "b"), ("a",), ()]

    def test_the_ratio_is_the_plans(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=1, federation={"largest_norm_ratio": 2000.0})
        _, end = run(fakes, plan, journal, state, scaled(plan, fakes, "b", 1000.0))
        assert end.records[0].aggregated_from == ("a", "b", "c")

    def test_one_that_was_spooled_before_a_crash_is_left_out_as_well(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=1, federation={"quorum": 3, "quorum_wait_s": 0.0})
        inner = scaled(plan, fakes, "b", 1000.0)

        def without_c(site, message):
            away = site == "c" and message.metadata.message_type == "train"
            return lost(message, None) if away else inner(site, message)

        with pytest.raises(QuorumError, match="Round 1"):
            run(fakes, plan, journal, state, without_c)
        with pytest.raises(QuorumError, match="b: rejected EFL302"):
            run(fakes, plan, Journal(journal.folder), journal.load(), inner)


class TestWhoIsThere:
    """Where the grid knows whose node is whose, and how many patients each may have."""

    def hello(self, fakes, make_federation, change, **limits):
        plan, journal, state = make_federation("abc", rounds=1)
        inner = fakes.honest(plan)

        def handler(site, message):
            reply = inner(site, message)
            return change(message, reply) if site == "b" and message.metadata.message_type == "query" else reply

        grid = fakes.Grid(plan.sites, handler)
        grid.largest_patients = {"a": 100, "b": 100, "c": None, **limits}
        Coordinator(grid, plan, journal, fakes.SPECS).run(state)
        (first, *_) = journal.load().records
        return first

    def test_a_million_patients_are_not_believed(self, fakes, make_federation):
        first = self.hello(fakes, make_federation, more_patients)
        found = participation(first)["b"]
        assert (found.status, found.code) == ("rejected", "EFL302")
        assert "more patients than it was admitted with" in found.reason
        assert first.aggregated_from == ("a", "c")

    def test_as_many_as_were_agreed_are(self, fakes, make_federation):
        first = self.hello(fakes, make_federation, lambda message, reply: reply, b=10)
        assert first.aggregated_from == ("a", "b", "c")
        first = self.hello(fakes, lambda *a, **k: make_federation(*a, folder="two", **k), lambda m, r: r, b=9)
        assert first.aggregated_from == ("a", "c")

    @pytest.mark.parametrize("name", ["a", "c", "z"])
    def test_another_sites_name_is_not_believed_and_that_site_takes_part(self, fakes, make_federation, name):
        first = self.hello(fakes, make_federation, rewritten('"site":"b"', f'"site":"{name}"'))
        found = participation(first)["b"]
        assert (found.status, found.code) == ("rejected", "EFL302")
        assert "another site's name" in found.reason
        assert first.aggregated_from == ("a", "c")

    def test_a_refusal_in_another_sites_name_does_not_become_that_sites(self, fakes, make_federation):
        def as_a(message, reply):
            return Message(refusal_content("EFL310", "The site's policy refuses the plan.", "a"), reply_to=message)

        found = participation(self.hello(fakes, make_federation, as_a))
        assert (found["a"].status, found["b"].status) == ("took_part", "rejected")


class TestRefusals:
    @pytest.mark.parametrize("code", ["EFL311", "EFL312"])
    def test_a_site_that_says_not_yet_is_asked_again_in_the_next_round(self, fakes, make_federation, code):
        seen = self.rounds(fakes, make_federation, code, times=2)
        assert seen == [("error", code), ("took_part", ""), ("took_part", ""), ("took_part", "")]

    def test_a_site_that_says_no_is_not(self, fakes, make_federation):
        seen = self.rounds(fakes, make_federation, "EFL310", times=1)
        assert seen == [("error", "EFL310")] * 4

    def rounds(self, fakes, make_federation, code, times):
        """What became of b in each round, when it refuses the first greetings."""
        plan, journal, state = make_federation("ab", rounds=3)
        inner, hellos = fakes.honest(plan), []

        def handler(site, message):
            if site == "b" and message.metadata.message_type == "query":
                hellos.append(1)
                if len(hellos) <= times:
                    return Message(refusal_content(code, "Not now.", "b"), reply_to=message)
            return inner(site, message)

        _, end = run(fakes, plan, journal, state, handler)
        return [(found.status, found.code) for found in (participation(record)["b"] for record in end.records)]

    @pytest.mark.parametrize(
        ("code", "line"),
        [
            ("EFL310", "site b does not take part: EFL310 The site's policy refuses the plan (approval)."),
            ("EFL311", "site b waits for a person there (EFL311)"),
            (
                "EFL312",
                "site b does not take part now: EFL312 The site's policy refuses the plan (approval).",
            ),
        ],
    )
    def test_they_are_told_once_with_their_reason(self, fakes, make_federation, code, line):
        plan, journal, state = make_federation("ab", rounds=3)
        inner, ear = fakes.honest(plan), Lines()

        def handler(site, message):
            if site == "b":
                text = "The site's policy refuses the plan (approval)."
                return Message(refusal_content(code, text, "b"), reply_to=message)
            return inner(site, message)

        run(fakes, plan, journal, state, handler, listeners=[ear])
        assert ear.lines == [line]

    def test_who_waits_for_an_approval_is_named_with_what_to_do_then(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", federation={"quorum": 2})
        inner = fakes.honest(plan)

        def handler(site, message):
            if site == "b":
                return Message(refusal_content("EFL311", "A person decides.", "b"), reply_to=message)
            return inner(site, message)

        with pytest.raises(QuorumError) as told:
            run(fakes, plan, journal, state, handler)
        assert "People at b have to approve the plan first; then: eucaim-fl train resume=run " in told.value.fix

    def test_a_round_that_is_refused_for_now_is_asked_for_again(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=3)

        def closed(message, reply):
            return Message(refusal_content("EFL312", "The site's policy allows it at another time."), reply_to=message)

        _, end = run(fakes, plan, journal, state, spoiled(plan, fakes, closed))
        assert [participation(record)["b"].code for record in end.records] == ["", "EFL312", "", ""]


class Lines(Listener):
    """Keeps what is told line by line."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


class TestGathering:
    """Before the first round, on a clock that only moves when the coordinator rests."""

    @pytest.fixture
    def clock(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(coordinator_module.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(coordinator_module.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
        return now

    def gather(self, fakes, plan, journal, handler, connected):
        """Gather over a grid to which only so many sites are connected; returns the lines told."""
        grid, ear = fakes.Grid(plan.sites, handler), Lines()
        every = list(grid.get_node_ids())
        grid.get_node_ids = lambda: every[:connected]
        Coordinator(grid, plan, journal, fakes.SPECS, [ear])._sites.gather()
        return ear.lines

    def test_it_is_said_now_and_then_how_many_sites_are_there(self, fakes, make_federation, clock):
        plan, journal, _ = make_federation("abc", federation={"quorum": 2, "quorum_wait_s": 50.0})
        lines = self.gather(fakes, plan, journal, fakes.honest(plan), 0)
        assert lines == ["waiting for sites: 0 of 3 connected"] * 3  # after 5, 25 and 45 s
        assert clock[0] == pytest.approx(50, abs=0.5)

    def test_sites_beyond_the_quorum_delay_the_start_by_a_minute(self, fakes, make_federation, clock):
        plan, journal, _ = make_federation("abc", federation={"quorum": 2, "quorum_wait_s": 86400.0})
        self.gather(fakes, plan, journal, fakes.honest(plan), 2)
        assert clock[0] == pytest.approx(60, abs=0.5)

    def test_a_site_that_says_not_yet_is_not_pestered(self, fakes, make_federation, clock):
        plan, journal, _ = make_federation("ab", federation={"quorum": 2, "quorum_wait_s": 600.0})
        hellos = []

        def handler(site, message):
            hellos.append(site)
            return Message(refusal_content("EFL311", "A person decides.", site), reply_to=message)

        lines = self.gather(fakes, plan, journal, handler, 1)
        assert lines.count("site a waits for a person there (EFL311)") == 1
        assert 30 <= len(hellos) <= 60  # each 15 s, sooner at the start


class TestTheLine:
    @pytest.mark.parametrize("where", ["get_node_ids", "push_messages", "pull_messages"])
    def test_one_that_fails_for_good_ends_the_run_resumable(self, fakes, make_federation, where):
        plan, journal, state = make_federation("ab", rounds=3)
        grid = fakes.Grid(plan.sites, fakes.honest(plan))
        real, done = getattr(grid, where), []

        class Ear(Listener):
            def round_done(self, record):
                done.append(record.round)

        def failing(*args):
            if done or where == "get_node_ids":
                raise LinkError("The SuperLink has not answered for 60 s.", fix="Resume the run.")
            return real(*args)

        setattr(grid, where, failing)
        with pytest.raises(LinkError, match="has not answered"):
            Coordinator(grid, plan, journal, fakes.SPECS, [Ear()]).run(state)
        kept = journal.load()
        assert kept.round >= len(done)
        _, end = run(fakes, plan, Journal(journal.folder), kept, fakes.honest(plan))
        assert end.weights["w"].tolist() == [4.5] * 3  # as if nothing had happened: three rounds of the mean of 1 and 2

    def test_a_reply_that_its_site_did_not_seal_is_rejected_by_name(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=2)

        def unsealed(message, reply):
            return Message(Error(SEAL, "The reply was changed on its way."), reply_to=message)

        _, end = run(fakes, plan, journal, state, spoiled(plan, fakes, unsealed))
        found = participation(end.records[1])["b"]
        assert (found.status, found.code, found.reason) == ("rejected", "EFL306", "The reply was changed on its way.")
        assert end.records[1].aggregated_from == ("a", "c")


class TestQuorum:
    def test_a_round_below_quorum_waits_then_ends_with_the_reasons_and_can_be_resumed(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=2, federation={"quorum": 3, "quorum_wait_s": 0.5})
        inner = fakes.honest(plan)
        broken = True

        def handler(site, message):
            if broken and site == "b" and message.metadata.group_id == "2":
                return says_no(message, None)
            return inner(site, message)

        grid = fakes.Grid(plan.sites, handler)
        with pytest.raises(QuorumError, match=r"Round 2 has 2 of the 3 sites.*b: error EFL601"):
            Coordinator(grid, plan, journal, fakes.SPECS).run(state)
        broken = False
        state = journal.load()
        assert state.round == 1
        _, end = run(fakes, plan, journal, state, handler)
        assert end.weights["w"].tolist() == [4.0] * 3

    def test_sites_that_can_never_train_privately_are_asked_once(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=1, federation={"quorum": 2, "quorum_wait_s": 600.0})
        inner, asked = fakes.honest(plan), []

        def handler(site, message):
            if site == "b" and message.metadata.message_type == "train":
                asked.append(site)
                return Message(refusal_content("EFL403", "The plan's delta is too large.", "b"), reply_to=message)
            return inner(site, message)

        with pytest.raises(QuorumError, match=r"b: error EFL403 .*start again with another recipe"):
            run(fakes, plan, journal, state, handler)
        assert asked == ["b"]

    def test_a_site_that_comes_back_in_time_completes_the_round(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=1, federation={"quorum": 2, "quorum_wait_s": 5.0})
        inner = fakes.honest(plan)
        tries = []

        def handler(site, message):
            if site == "b" and message.metadata.message_type == "train":
                tries.append(1)
                if len(tries) < 2:
                    return lost(message, None)
            return inner(site, message)

        _, end = run(fakes, plan, journal, state, handler)
        assert end.records[0].attempts == 2
        assert all(p.status == "took_part" for p in end.records[0].participation)

    def test_replies_that_came_in_before_a_crash_are_not_asked_for_again(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=1, federation={"quorum": 3, "quorum_wait_s": 0.0})
        inner = fakes.honest(plan)

        def without_c(site, message):
            away = site == "c" and message.metadata.message_type == "train"
            return lost(message, None) if away else inner(site, message)

        with pytest.raises(QuorumError, match="Round 1"):
            run(fakes, plan, journal, state, without_c)
        asked = []

        def handler(site, message):
            if message.metadata.message_type == "train":
                asked.append(site)
            return inner(site, message)

        _, end = run(fakes, plan, Journal(journal.folder), journal.load(), handler)
        assert asked == ["c"]
        assert end.weights["w"].tolist() == [2.0] * 3


class TestSpentBudgets:
    def spent_after(self, plan, fakes, first: int):
        """Site b's privacy budget does not hold rounds from `first` on; it still evaluates."""
        inner, asked = fakes.honest(plan), []

        def handler(site, message):
            number = int(message.metadata.group_id)
            asked.append((message.metadata.message_type, number))
            if site == "b" and message.metadata.message_type == "train" and number >= first:
                return Message(refusal_content("EFL401", "The privacy budget is spent.", "b"), reply_to=message)
            return inner(site, message)

        return handler, asked

    def test_the_run_ends_with_the_last_complete_model_evaluated(self, fakes, make_federation):
        plan, journal, state = make_federation(
            "ab", rounds=9, federation={"quorum": 2, "quorum_wait_s": 60.0, "round_deadline_s": 5.0}
        )
        handler, asked = self.spent_after(plan, fakes, 3)
        _, end = run(fakes, plan, journal, state, handler)
        assert [(r.round, r.final) for r in end.records] == [(1, False), (2, False), (3, True)]
        assert end.weights["w"].tolist() == [3.0] * 3  # two rounds of mean 1.5
        assert {number for kind, number in asked if kind == "evaluate"} == {10}
        assert end.records[-1].pooled["test"]["dice"] == 0.5
        _, again = run(fakes, plan, Journal(journal.folder), journal.load(), handler)
        assert len(again.records) == 3  # a run that has ended so is complete

    def test_it_goes_on_without_the_site_where_the_quorum_allows(self, fakes, make_federation):
        plan, journal, state = make_federation("abc", rounds=4, federation={"quorum": 2})
        handler, _ = self.spent_after(plan, fakes, 3)
        _, end = run(fakes, plan, journal, state, handler)
        assert [r.aggregated_from for r in end.records[:4]] == [("a", "b", "c")] * 2 + [("a", "c")] * 2
        assert {p.site: p.code for p in end.records[3].participation}["b"] == "EFL401"


class TestJournalFaults:
    def test_a_journal_that_can_not_be_written_ends_the_run(self, fakes, make_federation, monkeypatch):
        plan, journal, state = make_federation("ab", rounds=3)
        real = journal.commit

        def full(record, *rest):
            if record.round == 2:
                raise JournalError("The disk is full; nothing half-written was left behind.")
            real(record, *rest)

        monkeypatch.setattr(journal, "commit", full)
        with pytest.raises(JournalError, match="disk is full"):
            Coordinator(fakes.Grid(plan.sites, fakes.honest(plan)), plan, journal, fakes.SPECS).run(state)
        assert journal.load().round == 1


class TestStopping:
    def test_somebody_elses_wish_ends_the_run_resumable(self, fakes, make_federation):
        plan, journal, state = make_federation("ab", rounds=3)
        wish = []

        class Wish(Listener):
            def round_done(self, record):
                wish.append(1)

        grid = fakes.Grid(plan.sites, fakes.honest(plan))
        coordinator = Coordinator(grid, plan, journal, fakes.SPECS, [Wish()], lambda: bool(wish))
        with pytest.raises(InterruptedRunError, match="stopped"):
            coordinator.run(state)
        assert journal.load().round >= 1


class TestMemory:
    def test_pictures_only_reach_the_journal(self, fakes, make_federation):
        plan, journal, state = make_federation("a", rounds=1)
        inner = fakes.honest(plan)

        def handler(site, message):
            reply = inner(site, message)
            if message.metadata.message_type == "evaluate":
                pictures = np.full((1, 4, 4, 3), 7, np.uint8)
                report = fakes.report(plan, "final", site, 2, shares_pictures=True)
                return Message(reply_content(report, {}, pictures), reply_to=message)
            return reply

        run(fakes, plan, journal, state, handler)
        assert journal.pictures()["a"].shape == (1, 4, 4, 3)
