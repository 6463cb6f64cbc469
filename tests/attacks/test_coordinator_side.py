"""Attacks on the coordinator: by sites that were admitted and turned hostile, and by somebody without a key."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.errors import LinkError, NotAdmittedError
from eucaim_fl.federation.fleet import Fleet
from eucaim_fl.federation.flower_private import (
    Node,
    PullMessagesRequest,
    make_message,
)
from eucaim_fl.federation.parcel import digest, pack
from eucaim_fl.signing import new_node_key
from eucaim_fl.site.audit import AuditLog, AuditReader

pytestmark = pytest.mark.federated


class TestRepliesOfHostileSites:
    """27 of them in one run: what the record says, and that none was averaged."""

    @pytest.mark.parametrize(
        ("attack", "code", "reason"),
        [
            ("extra-array", "EFL302", "The arrays are not the plan's: 0 missing, 1 foreign."),
            ("missing-array", "EFL302", "The arrays are not the plan's: 1 missing, 0 foreign."),
            ("wrong-dtype", "EFL302", "another shape or type than the plan's network"),
            ("trailing-bytes", "EFL306", "another size than its shape says"),
            ("unclaimed-bytes", "EFL306", "bytes that belong to no array"),
            ("ten-gigabytes", "EFL306", "index does not fit its bytes"),
            ("object-type", "EFL306", "an array of an unknown type"),
            ("too-many-parts", "EFL306", "more parts than one of its kind can have"),
            ("not-a-number", "EFL302", "is not finite"),
            ("infinite", "EFL302", "is not finite"),
            ("too-long", "EFL302", "more than 20 times as long (L2 norm) as the others'"),
            ("a-million", "EFL302", "not those that the site announced"),
            ("other-cohort", "EFL302", "not those that the site announced"),
            ("other-name", "EFL302", "bears another site's name"),
            ("other-plan", "EFL302", "answers another plan, round or question"),
            ("foreign-metric", "EFL302", "metrics that the plan does not ask for"),
            ("named-metric", "EFL302", "The report is not valid"),
            ("impossible-metric", "EFL302", "out of its range"),
            ("metric-record", "EFL306", "records of a kind that is not accepted"),
            ("rewound-log", "EFL306", "audit log is not the one that it was"),
            ("foreign-key", "EFL306", "not of whom it claims to come from"),
            ("as-neighbour", "EFL306", "answers another instruction"),
            ("changed-reply", "EFL306", "was changed on its way"),
            ("unsealed", "EFL306", "bears no seal"),
        ],
    )
    def test_a_reply_that_does_not_fit_is_excluded_with_its_reason(self, run, attack, code, reason):
        found = run.outcome(attack)
        assert (found["status"], found["code"]) == ("rejected", code)
        assert reason in found["reason"]

    def test_a_reply_of_an_earlier_round_counts_once(self, run):
        assert [run.entry(n, "replaying")["status"] for n in (1, 2, 3)] == ["took_part", "rejected", "rejected"]
        assert "another instruction" in run.entry(2, "replaying")["reason"]

    def test_a_site_that_boasts_of_a_million_patients_is_not_let_in(self, run):
        for number in (1, 2, 3):
            found = run.entry(number, "boasting")
            assert (found["status"], found["code"]) == ("rejected", "EFL302")
            assert "more patients than it was admitted with" in found["reason"]

    @pytest.mark.parametrize("attack", ["control-letters", "endless-refusal"])
    def test_a_refusal_is_cut_short_and_can_not_act_on_a_terminal(self, run, attack):
        found = run.outcome(attack)
        assert (found["status"], found["code"]) == ("error", "EFL000")
        assert len(found["reason"]) <= 500
        assert found["reason"].isprintable()

    def test_the_run_goes_on_with_the_others(self, run):
        assert len(run.rounds) == 4
        assert all({"a", "b"} <= set(one["aggregated_from"]) for one in run.rounds[:3])
        assert {run.entry(n, site)["status"] for n in (1, 2, 3, 4) for site in "ab"} == {"took_part"}
        assert run.result["weights_sha256"]

    def test_nothing_of_it_is_in_the_model_or_in_any_file_of_the_run(self, run):
        for place in [*run.folder.rglob("*")]:
            assert not place.is_file() or b"have no business in an update" not in place.read_bytes()
        weights = ArrayFile(run.folder / "models" / "last.safetensors").load()
        assert all(np.abs(array).max() < 100 for array in weights.values())

    def test_no_letter_that_acts_on_a_terminal_reaches_the_report(self, run):
        page = (run.folder / "report.html").read_bytes()
        assert b"\x1b" not in page
        assert "\u202e".encode() not in page


class TestWhoMaySpeak:
    def test_a_key_that_nobody_registered_is_not_let_in(self, attacked, tmp_path):
        key = tmp_path / "node_key.pem"
        new_node_key(key)
        with pytest.raises(NotAdmittedError, match="never admitted"):
            Fleet(f"localhost:{attacked.port}", attacked.federation.ca_file.read_text(), key)

    def test_a_removed_site_is_shut_out_at_its_next_call(self, attacked, player):
        attacked.admit_hostile("leaver")
        leaver = player("leaver")
        assert leaver.fleet.receive() is None
        attacked.run("federation", "remove", attacked.name, "leaver", "--yes")
        with pytest.raises(NotAdmittedError, match="removed"):
            leaver.fleet.receive()

    def test_a_site_can_not_fetch_what_is_meant_for_another(self, hand, player):
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            player("mallory").raw.PullMessages(PullMessagesRequest(node=Node(node_id=hand.node("a"))))

    def test_a_site_that_answers_for_another_is_not_believed(self, attacked, hand, player):
        """It is even told Flower's number of the other's instruction, which it can't learn by itself."""
        mallory, victim = player("mallory"), "replaying"
        player(victim)  # connected, and silent
        nonce = hand.put(victim, attacked.plan("a", victim))
        pending = hand.grid._pending[nonce]
        (number,) = pending.sent
        metadata = Metadata(
            run_id=hand.grid.run.run_id,
            message_id=number,
            src_node_id=1,
            dst_node_id=pending.node,
            reply_to_message_id="",
            group_id="0",
            created_at=time.time(),
            ttl=50.0,
            message_type="query",
        )
        asked = make_message(metadata=metadata, content=pending.packed)
        forged = mallory.sealed(pending.seal, pack(mallory.honest(pending.seal, pending.packed, site=victim)))
        mallory.push(Message(forged, reply_to=asked))
        answer = hand.judged(nonce)
        assert answer.has_error()
        assert "not of whom it claims to come from" in answer.error.reason


class TestAnswersThatNeverCome:
    def test_one_that_is_announced_and_not_sent_holds_nobody_up(self, attacked, hand, player):
        mallory, other, plan = player("mallory"), player("replaying"), attacked.plan("a", "mallory", "replaying")
        silent, heard = hand.put("mallory", plan), hand.put("replaying", plan)
        incoming, seal, packed = mallory.next(nonce=silent)
        reply = mallory.sealed(seal, pack(mallory.honest(seal, packed)))
        mallory.push(Message(reply, reply_to=incoming.message), send_them=False)
        began = time.monotonic()
        assert list(hand.grid.pull_messages([silent, heard])) == []
        incoming, seal, packed = other.next(nonce=heard)
        other.send(incoming, other.sealed(seal, pack(other.honest(seal, packed))))
        assert not hand.judged(heard).has_error()
        assert list(hand.grid.pull_messages([silent])) == []
        assert time.monotonic() - began < 15
        hand.grid.cancel([silent])


class TestReplayedRequests:
    """Flower signs a time stamp only, good for five minutes: whoever sees a request in clear can send it again."""

    def test_a_captured_answer_is_taken_again_and_answers_nothing(self, attacked, hand, player):
        mallory, plan = player("mallory", f"localhost:{attacked.tap_port}"), attacked.plan("a", "mallory")
        first = hand.put("mallory", plan)
        self._answer(mallory, first)
        assert not hand.judged(first).has_error()
        stream = b"".join(bytes(note) for way, note in attacked.tap.taken if way == "up")
        captured = [r for r in _requests(stream) if r.startswith(b"POST /v1/fleet/push-")][-8:]
        assert len(captured) >= 2

        second = hand.put("mallory", plan)
        assert 401 not in [_send(attacked, request) for request in captured]  # Flower finds nothing wrong with them
        with pytest.raises(LinkError, match="nothing came"):
            hand.judged(second, 2.0)
        self._answer(mallory, second)
        assert not hand.judged(second).has_error()

    def test_who_sends_a_captured_request_for_work_gets_nothing_that_it_could_use_and_takes_nothing_away(
        self, attacked, hand, player
    ):
        """The thief is handed the next instruction in the site's place; the coordinator asks after it, and repeats."""
        mallory, plan = player("mallory", f"localhost:{attacked.tap_port}"), attacked.plan("a", "mallory")
        before = len(attacked.tap.taken)
        assert mallory.fleet.receive() is None
        stream = b"".join(bytes(note) for way, note in attacked.tap.taken[max(0, before - 4) :] if way == "up")
        captured = [r for r in _requests(stream) if r.startswith(b"POST /v1/fleet/pull-messages")][-1]

        nonce = hand.put("mallory", plan)
        assert _send(attacked, captured) == 200
        assert mallory.fleet.receive() is None  # the thief has it
        hand.grid._pending[nonce].probe_at = 0.0  # it would ask after ten seconds
        list(hand.grid.pull_messages([nonce]))
        self._say_unknown(mallory)
        until = time.monotonic() + 20
        while (incoming := mallory.fleet.receive()) is None:
            assert time.monotonic() < until
            list(hand.grid.pull_messages([nonce]))
            time.sleep(0.2)
        seal, packed = mallory.opened(incoming)
        mallory.send(incoming, mallory.sealed(seal, pack(mallory.honest(seal, packed))))
        assert not hand.judged(nonce).has_error()

    @staticmethod
    def _answer(player, nonce):
        incoming, seal, packed = player.next(nonce=nonce)
        player.send(incoming, player.sealed(seal, pack(player.honest(seal, packed))))

    @staticmethod
    def _say_unknown(player):
        """What a client says to a probe for an instruction that never reached it."""
        until = time.monotonic() + 20
        while (incoming := player.fleet.receive()) is None:
            assert time.monotonic() < until
            time.sleep(0.2)
        seal, _ = player.opened(incoming)
        assert seal.kind == "probe"
        word = RecordDict({"word": ConfigRecord({"state": "unknown"})})
        player.send(incoming, player.sealed(seal, word, state="unknown"))


def _requests(stream: bytes) -> list[bytes]:
    """The single requests of connections, one after the other."""
    found = []
    while b"\r\n\r\n" in stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        size = lengths[0] if lengths else 0
        found.append(head + b"\r\n\r\n" + rest[:size])
        stream = rest[size:]
    return found


def _send(attacked, request: bytes) -> int:
    """Send bytes over a TLS connection of one's own; the answer's status."""
    context = ssl.create_default_context(cafile=str(attacked.federation.ca_file))
    with (
        socket.create_connection(("127.0.0.1", attacked.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall(request)
        return int(line.recv(65536).split()[1])


class TestRewrittenAuditLogs:
    """The site's own key makes every record fit; what the coordinator keeps does not fit any more."""

    @pytest.mark.parametrize(
        ("kept_records", "told"), [(2, "the coordinator knows of 6"), (6, "the coordinator knows")]
    )
    def test_it_is_noticed_with_the_next_reply_and_named(self, attacked, hand, player, tmp_path, kept_records, told):
        """Once cut and written on, once as long as it was but with another past."""
        name = f"forger-{kept_records}"
        attacked.admit_hostile(name)
        forger, plan, home = player(name), attacked.plan("a", name), attacked.home(name)
        log = AuditLog(home.audit_folder, forger.key, name)
        assert not any(self._answer(hand, forger, log, plan).has_error() for _ in range(3))
        heads = attacked.run("federation", "heads", attacked.name, name).stdout
        assert [head["count"] for head in json.loads(heads)["heads"]] == [2, 4, 6]
        (tmp_path / "heads.json").write_text(heads)
        assert self._verify(attacked, home, tmp_path / "heads.json").returncode == 0

        aside = home.audit_folder.rename(home.audit_folder.with_name("as it was"))
        rewritten = AuditLog(home.audit_folder, forger.key, name)
        for record in list(AuditReader(aside).records())[:kept_records]:
            rewritten.append(record.kind, {**record.body, "digest": "f" * 64})
        assert self._verify(attacked, home).returncode == 0  # by itself it is perfect

        answer = self._answer(hand, forger, rewritten, plan)
        assert answer.has_error()
        assert "audit log is not the one that it was" in answer.error.reason
        found = self._verify(attacked, home, tmp_path / "heads.json")
        assert found.returncode == 2
        assert "coordinator" in found.stdout
        assert re.search(r"(?i)record 2\b", found.stdout)

    @staticmethod
    def _verify(attacked, home, heads=None):
        given = [] if heads is None else ["--heads", str(heads)]
        return attacked.run("site", "audit", "verify", "--home", str(home.folder), *given, check=False)

    @staticmethod
    def _answer(hand, forger, log, plan):
        """An answer with two records of the log behind it, as a real client sends it; as the coordinator judges it."""
        nonce = hand.put(forger.name, plan)
        incoming, seal, packed = forger.next(nonce=nonce)
        made = pack(forger.honest(seal, packed))
        log.append("decision", {"plan": seal.plan, "verdict": "allow", "reasons": []})
        sent = {"plan": seal.plan, "kind": "hello", "round": 0, "bytes": 1, "digest": digest(made)}
        head = log.append("sent", sent)
        then = log.hash_at(seal.audit_count) if seal.audit_count else ""
        values = {"audit_count": head.count, "audit_hash": head.hash, "audit_then": then}
        forger.send(incoming, forger.sealed(seal, made, **values))
        return hand.judged(nonce)
