"""Sites with real keys whose clients are played by tests, and what hostile ones answer in a round."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from eucaim_fl.arrays import Arrays
from eucaim_fl.enrolment import read_invitation
from eucaim_fl.errors import LinkError, NotAdmittedError
from eucaim_fl.federation.fleet import Fleet, Incoming
from eucaim_fl.federation.flower_private import (
    FleetHttpClient,
    Node,
    NodeAuthHttpInterceptor,
    PushMessagesRequest,
    PushObjectRequest,
    RuntimeVersionHttpInterceptor,
    message_to_proto,
    remove_content_from_message,
)
from eucaim_fl.federation.flower_run import tls_context
from eucaim_fl.federation.messages import reply_content
from eucaim_fl.federation.objects import outgoing
from eucaim_fl.federation.parcel import digest, pack, unpack
from eucaim_fl.seals import InstructionSeal, ReplySeal, read_instruction_seal, sealed
from eucaim_fl.signing import PrivateKey, load_node_key
from eucaim_fl.site.report import MetricsRecord, SiteReport
from tests.attacks.federation import Attacked

__all__ = ["ROUNDS", "Call", "Player", "play", "script"]

_TRIES = 20
"""How often the SuperLink is asked; a second apart."""


def _record(count: int) -> str:
    """The hash of a record of a made-up audit log."""
    return hashlib.sha256(str(count).encode()).hexdigest()


class Player:
    """A site with real keys whose client is played by a test."""

    def __init__(self, attacked: Attacked, name: str, address: str | None = None) -> None:
        self.name, home = name, attacked.home(name)
        self.invitation = read_invitation(json.loads(home.federation_file.read_bytes()), None)
        self.key = PrivateKey.load(home.site_key)
        address = address or f"localhost:{attacked.port}"
        self.fleet = Fleet(address, self.invitation.ca_pem, home.node_key)
        private, _ = load_node_key(home.node_key)
        login = NodeAuthHttpInterceptor(private, private.public_key())
        version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
        tls = tls_context(self.invitation.ca_pem)
        self.raw = FleetHttpClient(f"https://{address}", interceptors=[version, login], verify=tls, timeout=30.0)
        self.answered: list[tuple[InstructionSeal, RecordDict]] = []
        self._counts = attacked.counts

    def next(
        self, wait_s: float = 30.0, nonce: str = "", pause_s: float = 1.5
    ) -> tuple[Incoming, InstructionSeal, RecordDict]:
        """The next instruction (of a number): as it came, its seal, its content. Probes are left unanswered."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            incoming = self.fleet.receive()
            if incoming is None:
                time.sleep(pause_s)
                continue
            seal, packed = self._surely_opened(incoming)
            if seal.kind != "probe" and nonce in ("", seal.nonce):
                return incoming, seal, packed
        raise LinkError("nothing came")

    def _surely_opened(self, incoming: Incoming) -> tuple[InstructionSeal, RecordDict]:
        """As `opened`; a SuperLink that is busy is asked again, for it hands each instruction out once."""
        for _ in range(_TRIES):
            with contextlib.suppress(LinkError, httpx.HTTPError):
                return self.opened(incoming)
            time.sleep(1.0)
        raise LinkError("an instruction came, but not its parts")

    def opened(self, incoming: Incoming) -> tuple[InstructionSeal, RecordDict]:
        """The seal and the packed content of an instruction or a probe."""
        packed = self.fleet.fetch(incoming, 2**30)
        assert packed is not None, "its run has ended"
        return read_instruction_seal(dict(packed["seal"]), self.invitation.coordinator_key), packed

    def report(self, seal: InstructionSeal, **changes: Any) -> SiteReport:
        """What an honest site of ten patients would say."""
        values: dict[str, Any] = {
            "kind": seal.kind,
            "site": self.name,
            "plan_sha256": seal.plan,
            "round": seal.round,
            "patients": 10,
            "cohort_sha256": "0" * 64,
        }
        if seal.kind != "hello":
            splits = ("validation",) if seal.kind == "round" else ("validation", "test")
            measured = {"patients": 5, "values": {"dice": 0.5}, "sums": {"dice": (5.0, 2.5, 1.25)}}
            values["metrics"] = tuple({"split": split, **measured} for split in splits)
        return SiteReport.model_construct(**{**SiteReport.model_validate(values).__dict__, **changes})

    def update(self, seal: InstructionSeal, packed: RecordDict, step: float = 1e-4) -> Arrays:
        """A small update of the right form; empty where none is asked for."""
        if seal.kind != "round":
            return {}
        weights = unpack(packed, AssertionError).array_records["weights"]  # type: ignore[arg-type]
        return {
            name: np.full(tuple(a.shape), step if "float" in a.dtype else 1, a.dtype) for name, a in weights.items()
        }

    def honest(self, seal: InstructionSeal, packed: RecordDict, **changes: Any) -> RecordDict:
        """Content of a reply of the right form, not packed."""
        return reply_content(self.report(seal, **changes), self.update(seal, packed), None)

    def sealed(
        self, seal: InstructionSeal, packed: RecordDict, key: PrivateKey | None = None, **changes: Any
    ) -> RecordDict:
        """Seal a packed reply with the site's key, but for the changes."""
        count = self._counts[self.name] = self._counts.get(self.name, 0) + 1
        values = {
            **{name: getattr(seal, name) for name in ("federation", "site", "plan", "kind", "round", "nonce")},
            "state": "answer",
            "content": digest(packed),
            "audit_count": count,
            "audit_hash": _record(count),
            "audit_then": _record(seal.audit_count) if seal.audit_count else "",
            **changes,
        }
        packed["seal"] = ConfigRecord(dict(sealed(ReplySeal(**values), key or self.key)))
        self.answered.append((seal, packed))
        return packed

    def push(self, message: Message, parts: int = 0, *, send_them: bool = True) -> None:
        """Send any message through Flower's own client; with more parts in its tree than it has, or none sent."""
        apart, node = outgoing(message), Node(node_id=self.fleet.node_id)
        for number in range(parts):
            apart.tree.children.append(ObjectTree(object_id=hashlib.sha256(str(number).encode()).hexdigest()))
        proto = message_to_proto(remove_content_from_message(message))
        request = PushMessagesRequest(node=node, messages_list=[proto], message_object_trees=[apart.tree])
        answer, run = self.raw.PushMessages(request), message.metadata.run_id
        for identifier, piece in apart.contents(set(answer.objects_to_push) if send_them else set()):
            part = {"run_id": run, "session_id": answer.session_id, "object_id": identifier, "object_content": piece}
            self.raw.PushObject(PushObjectRequest(node=node, **part))

    def send(self, incoming: Incoming, packed: RecordDict) -> None:
        self.fleet.reply(incoming, packed)

    def close(self) -> None:
        self.raw.close()
        with contextlib.suppress(LinkError, NotAdmittedError):
            self.fleet.close()


SECRET = b"these bytes are of a patient and have no business in an update; " * 4


def _array(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    return Array(dtype, shape, "eucaim.raw", data)


def _edited(edit: Callable[[ArrayRecord], object]) -> Callable[..., RecordDict]:
    """A reply whose update was edited before it is packed."""

    def answer(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
        content = player.honest(seal, packed)
        edit(content.array_records["update"])
        return player.sealed(seal, pack(content))

    return answer


def _indexed(edit: Callable[[list[Any]], object]) -> Callable[..., RecordDict]:
    """A reply whose parcel's index was edited after it was packed."""

    def answer(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
        made = pack(player.honest(seal, packed))
        index = json.loads(str(made.config_records["parcel-index"]["json"]))
        edit(index)
        made["parcel-index"] = ConfigRecord({"json": json.dumps(index)})
        return player.sealed(seal, made)

    return answer


def _said(**changes: Any) -> Callable[..., RecordDict]:
    """A reply whose report says something else."""
    return lambda player, seal, packed: player.sealed(seal, pack(player.honest(seal, packed, **changes)))


def _metric(name: str, value: float = 0.5) -> tuple[MetricsRecord, ...]:
    return (MetricsRecord.model_construct(split="validation", patients=5, values={name: value}, sums={}, withheld=""),)


def _steps(step: float) -> Callable[..., RecordDict]:
    return lambda player, seal, packed: player.sealed(
        seal, pack(reply_content(player.report(seal), player.update(seal, packed, step), None))
    )


def _refusing(reason: str) -> Callable[..., RecordDict]:
    refusal = {"code": "EFL304\x1b[2J", "reason": reason}
    return lambda player, seal, packed: player.sealed(seal, pack(RecordDict({"refusal": ConfigRecord(dict(refusal))})))


def _first(record: ArrayRecord) -> str:
    return sorted(record)[0]


def _hide_behind(record: ArrayRecord) -> None:
    array = record[_first(record)]
    record[_first(record)] = _array(array.dtype, array.shape, array.data + SECRET)


def _hide_in_dtype(record: ArrayRecord) -> None:
    array = record[_first(record)]
    count = len(array.data) // 4
    record[_first(record)] = _array("float64", array.shape, (SECRET * count)[: 8 * count])


def _hidden_bytes(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    made = pack(player.honest(seal, packed))
    data = made.array_records["parcel"]["bytes"].data + SECRET
    made["parcel"] = ArrayRecord({"bytes": _array("uint8", (len(data),), data)})
    return player.sealed(seal, made)


def _replay(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    """In the first round what was asked for; then the same again, seal and all."""
    rounds = [reply for earlier, reply in player.answered if earlier.kind == "round"]
    return rounds[0] if rounds else player.sealed(seal, pack(player.honest(seal, packed)))


def _metric_record(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    made = player.sealed(seal, pack(player.honest(seal, packed)))
    made["note"] = MetricRecord({"patient": [1.0, 9.0, 4.0, 1.0]})
    return made


def _rewound(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    """The audit log has become shorter than it was at the greeting."""
    return player.sealed(seal, pack(player.honest(seal, packed)), audit_count=0)


def _foreign_key(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    return player.sealed(seal, pack(player.honest(seal, packed)), PrivateKey.create())


def _as_neighbour(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    return player.sealed(seal, pack(player.honest(seal, packed)), site="a")


def _changed_on_the_way(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    made = player.sealed(seal, pack(player.honest(seal, packed)))
    made["report"] = ConfigRecord({"json": player.report(seal, patients=9).model_dump_json()})
    return made


def _unsealed(player: Player, seal: InstructionSeal, packed: RecordDict) -> RecordDict:
    return pack(player.honest(seal, packed))


ROUND_ATTACKS: dict[str, Callable[..., RecordDict]] = {
    "extra-array": _edited(lambda r: r.__setitem__("patients.pixels", _array("uint8", (len(SECRET),), SECRET))),
    "missing-array": _edited(lambda r: r.pop(_first(r))),
    "wrong-dtype": _edited(_hide_in_dtype),
    "trailing-bytes": _edited(_hide_behind),
    "unclaimed-bytes": _hidden_bytes,
    "ten-gigabytes": _indexed(
        lambda index: index.append(["update", "big", "float32", [2_684_354_560], "eucaim.raw", 10 * 2**30])
    ),
    "object-type": _indexed(lambda index: index[0].__setitem__(2, "object")),
    "too-many-parts": lambda player, seal, packed: player.sealed(seal, pack(player.honest(seal, packed))),
    "not-a-number": _steps(math.nan),
    "infinite": _steps(math.inf),
    "too-long": _steps(1000.0),
    "a-million": _said(patients=1_000_000),
    "other-cohort": _said(cohort_sha256="f" * 64),
    "other-name": _said(site="a"),
    "other-plan": _said(plan_sha256="f" * 64),
    "foreign-metric": _said(metrics=_metric("auc")),
    "named-metric": _said(metrics=_metric("name-of-a-patient")),
    "impossible-metric": _said(metrics=_metric("dice", 77.0)),
    "control-letters": _refusing("\x1b]0;owned\x07\x1b[31m\r\nEFL000 a\u202egnorw " + "x" * 5000),
    "endless-refusal": _refusing("x" * 7_000_000),
    "replay": _replay,
    "metric-record": _metric_record,
    "rewound-log": _rewound,
    "foreign-key": _foreign_key,
    "as-neighbour": _as_neighbour,
    "changed-reply": _changed_on_the_way,
    "unsealed": _unsealed,
}
"""What a hostile site does instead of answering a round. Its greeting and its last answer are as they should be."""


ROUNDS = 3


def script() -> dict[str, list[str]]:
    """Hostile site → what it does in each round. The one that replays has to say something first."""
    others = [name for name in ROUND_ATTACKS if name != "replay"]
    sites = {f"hostile-{i // ROUNDS}": others[i : i + ROUNDS] for i in range(0, len(others), ROUNDS)}
    return {**sites, "replaying": ["replay"] * ROUNDS, "boasting": []}


class Call:
    """That a question is out. The site that is asked last hears of it first; until then the others do not poll.

    One that is never let in is asked by itself, and polls for itself.
    """

    def __init__(self, scout: str) -> None:
        self.scout, self.number, self._heard = scout, 0, threading.Condition()

    def heard(self) -> None:
        with self._heard:
            self.number += 1
            self._heard.notify_all()

    def wait(self, seen: int) -> None:
        """Until there is a question that was not seen yet; what came in no other way is found after a while."""
        with self._heard:
            self._heard.wait_for(lambda: self.number != seen, 15.0)


def play(player: Player, attacks: list[str], stop: threading.Event, call: Call) -> None:
    """Answer until stopped: greetings and the last question honestly, rounds by the script."""
    seen, tries = 0, 0
    while not stop.is_set():
        if attacks and player.name != call.scout and seen == call.number:
            call.wait(seen)
        try:
            incoming, seal, packed = player.next(1.0, pause_s=1.0)
        except LinkError:
            tries += 1
            seen = call.number if tries % 5 == 0 else seen  # it had come before, by itself
            continue
        seen, tries = call.number, 0
        if player.name == call.scout:
            call.heard()
        attack = attacks[seal.round - 1] if seal.kind == "round" and seal.round <= len(attacks) else ""
        if attack:
            reply = ROUND_ATTACKS[attack](player, seal, packed)
        else:
            said = {} if attacks else {"patients": 1_000_000}
            reply = player.sealed(seal, pack(player.honest(seal, packed, **said)))
        for _ in range(_TRIES):  # the SuperLink's database may be busy
            with contextlib.suppress(LinkError, httpx.HTTPError):
                if attack == "too-many-parts":
                    _send_a_forest(player, incoming, reply)
                else:
                    player.send(incoming, reply)
                break
            time.sleep(1.0)


def _send_a_forest(player: Player, incoming: Incoming, reply: RecordDict) -> None:
    """Announce 400 parts of 5 MiB."""
    player.push(Message(reply, reply_to=incoming.message), parts=400)
