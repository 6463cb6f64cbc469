"""A federation to be attacked: real servers, two honest hospitals that run, a dozen admitted ones that are hostile.

Everything between the sites and the proxy goes through a tap that notes the decrypted bytes. The honest hospitals'
patients have names, numbers, files and pixels that can be recognised wherever they turn up.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import hashlib
import json
import math
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from eucaim_fl.arrays import ArrayFile, Arrays
from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, uid
from eucaim_fl.cohorts.layout_writers import Disease, LabelledScan, write_tier3
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.enrolment import read_invitation
from eucaim_fl.errors import LinkError, NotAdmittedError
from eucaim_fl.federation import admission
from eucaim_fl.federation.fleet import Fleet, Incoming
from eucaim_fl.federation.flower_private import (
    SUPERLINK_NODE_ID,
    FleetHttpClient,
    Node,
    NodeAuthHttpInterceptor,
    PullAppMessagesRequest,
    PullObjectRequest,
    PushMessagesRequest,
    PushObjectRequest,
    RuntimeVersionHttpInterceptor,
    message_to_proto,
    remove_content_from_message,
)
from eucaim_fl.federation.flower_run import tls_context
from eucaim_fl.federation.messages import instruction_content, reply_content, to_record
from eucaim_fl.federation.objects import fetch, outgoing
from eucaim_fl.federation.parcel import digest, pack, unpack
from eucaim_fl.federation.rehearsal import POLICY, Rehearsal, free_ports
from eucaim_fl.federation.superlink_grid import SuperlinkGrid
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.seals import InstructionSeal, ReplySeal, new_nonce, read_instruction_seal, read_reply_seal, sealed
from eucaim_fl.signing import PrivateKey, load_node_key
from eucaim_fl.site.enrol import CohortChoice, make_home
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.report import MetricsRecord, SiteReport

HONEST = ("a", "b")
STRICT: dict[str, Any] = {
    **POLICY,
    "patients": {"training": 3, "metric": 1},
    "metrics": {"names": ["dice", "hd95_mm"], "decimals": 4},
    "pictures": False,
    "score_histograms": False,
}
RECIPE: dict[str, Any] = {
    "name": "attacked",
    "rounds": 2,
    "sites": ["a"],
    "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
    "model": {"name": "unet", "args": {"channels": [4, 8], "strides": [2], "num_res_units": 0}},
    "data": {"modality": "CT", "size_voxels": [32, 32, None], "intensity": {"low": -160.0, "high": 240.0}},
    "training": {"batch_size": 4, "local_steps": 2, "optimizer": {"name": "sgd", "lr": 0.05}},
    "federation": {"quorum": 2, "quorum_wait_s": 60.0, "round_deadline_s": 60.0},
}
_TYPES = {"hello": "query", "round": "train", "final": "evaluate", "probe": "query.probe"}


# --- what can be recognised ---------------------------------------------------------------------------------------


@dataclass
class Canaries:
    """Texts and sequences of bytes that stand in the hospitals' files and nowhere else."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    pixels: list[bytes] = field(default_factory=list)

    def plant(self, kind: str, text: str) -> str:
        self.texts.setdefault(kind, []).append(text)
        return text


SHAPE = (32, 32, 3)


def _scan(rng: np.random.Generator, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image in HU with a bright ball, its mask, and the pattern along a row of every slice."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    mask = np.linalg.norm((grid - [*rng.integers(10, 22, 2), 1]) * [1, 1, 3], axis=-1) < rng.uniform(4, 7)
    image = np.rint(rng.normal(0, 15, SHAPE) + 120 * mask)
    image[:, 2, :] = pattern[:, None]
    return image, mask


def _dicom_hospital(folder: Path, canaries: Canaries) -> None:
    """Tier 3: DICOM with a name, a birth date and a number in every header, and names in names of files."""
    rng = np.random.default_rng(1)
    pattern = rng.integers(-150, 230, SHAPE[0])
    canaries.pixels += [
        (pattern + 1024).astype("<u2").tobytes(),
        *(pattern.astype(t).tobytes() for t in ("<i2", "<f4")),
    ]
    affine, cases = np.diag([-2.0, -2.0, 4.0, 1.0]), []
    for number in range(10):
        image, mask = _scan(rng, pattern)
        study = Study(
            f"MRN7731{number:02d}KQ",
            f"1.2.826.0.1.3680043.77310.{number}.5",
            2020,
            "F",
            61,
        )
        canaries.plant("series", uid("series", study.study_uid, 1))
        canaries.plant("series", uid("series", study.study_uid, 2))
        cases.append(LabelledScan(study, Disease("BP1000105"), image, affine, {"lesion": mask}))
    write_tier3(folder, "attacked", cases, SeriesStyle("Siemens"))
    for place in sorted(folder.rglob("*.dcm")):
        ds = pydicom.dcmread(place)
        ds.PatientName, ds.PatientBirthDate, ds.AccessionNumber = "Quintavalle^Ottilie", "19410307", "ACC77310X"
        ds.save_as(place)
        if place.name != "segmentation.dcm":
            place.rename(place.with_name(f"befundxk_{place.name}"))
    for kind, text in (
        ("name", "Quintavalle"), ("name", "Ottilie"), ("number", "MRN7731"), ("number", "ACC77310X"),
        ("study", "3680043.77310"), ("file", "befundxk"),
    ):  # fmt: skip
        canaries.plant(kind, text)


def _nifti_hospital(folder: Path, canaries: Canaries) -> None:
    """NIfTI and a table, named after people."""
    rng = np.random.default_rng(2)
    pattern = rng.integers(-150, 230, SHAPE[0])
    canaries.pixels.append(pattern.astype("<f4").tobytes())
    (folder / "bildxk").mkdir(parents=True)
    rows = []
    for number in range(10):
        image, mask = _scan(rng, pattern)
        patient = f"MRN7732{number:02d}KQ"
        row = {"patient_id": patient, "remark": "Oberdakis, Zenobia"}
        for kind, array in (("image", image.astype(np.float32)), ("label", mask.astype(np.uint8))):
            row[kind] = f"bildxk/Oberdakis_{number:02d}_{kind}.nii"
            made = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 4.0, 1.0]))
            made.header["descrip"] = b"Oberdakis^Zenobia"
            nibabel.save(made, folder / row[kind])
        rows.append(row)
    with (folder / "clinical.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for kind, text in (("name", "Oberdakis"), ("name", "Zenobia"), ("number", "MRN7732"), ("folder", "bildxk")):
        canaries.plant(kind, text)


# --- the tap ------------------------------------------------------------------------------------------------------


class Tap:
    """Ends the sites' TLS with the federation's own certificate, notes both directions, and passes them to nginx."""

    def __init__(self, port: int, target: int, home: Any) -> None:
        self.taken: list[tuple[str, bytearray]] = []
        self._target, self._loop = target, asyncio.new_event_loop()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.minimum_version = ssl.TLSVersion.TLSv1_3
        server.load_cert_chain(home.server_file)
        self._client = ssl.create_default_context(cafile=str(home.ca_file))
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        listening = asyncio.start_server(self._carry, "127.0.0.1", port, ssl=server)
        asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far = await asyncio.open_connection(
                "127.0.0.1", self._target, ssl=self._client, server_hostname="localhost"
            )
            await asyncio.gather(self._pass(reader, far[1], "up"), self._pass(far[0], writer, "down"))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: str) -> None:
        note = bytearray()
        self.taken.append((way, note))
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                note += piece
                target.write(piece)
                await target.drain()
        target.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)


# --- the federation -----------------------------------------------------------------------------------------------


class Attacked(Rehearsal):
    """The rehearsal behind a tap. hostile: names that were admitted with real keys, whose clients do not run."""

    def __init__(self, folder: Path, canaries: Canaries) -> None:
        self.canaries = canaries
        files = []
        for name, write, layout, at in (
            ("a", _dicom_hospital, "eucaim_tier3", "StationKolibri"),
            ("b", _nifti_hospital, "nifti_csv", "StationZeisig"),
        ):
            write(folder / canaries.plant("folder", at), canaries)
            files.append(folder / f"{name}.yaml")
            release = {"data_is": "confidential", "minimum_patients": 3, "minimum_metric_patients": 1}
            values = {
                "name": name,
                "cohort": {"layout": layout, "folder": str(folder / at)},
                "deidentification": {"block": "nothing"},
                "release": release,
            }
            files[-1].write_text(yaml.safe_dump(values))
        super().__init__(folder, files, STRICT, name="attacked")
        (self.tap_port,) = free_ports(1)
        self.hostile: list[str] = []

    def set_up(self) -> None:
        self.run(
            "federation", "init", self.name, "--host", f"localhost:{self.tap_port}",
            "--listen", f"127.0.0.1:{self.port}", "--superlink-port", str(self.superlink_port),
        )  # fmt: skip
        for site in self.sites:
            self.enrol(site)
        self.tap = Tap(self.tap_port, self.port, self.federation)

    def admit_hostile(self, *names: str) -> None:
        """Admit sites whose clients will be played by tests; their keys are real."""
        for name in names:
            document = admission.invite(self.federation, name, datetime.now(UTC), patients=1000)
            cohort = CohortChoice(self.folder / "nothing", "nifti_csv")
            asked = make_home(self.home(name).folder, read_invitation(document, None), document, cohort)
            site = admission.requested(self.federation, json.loads(asked.read_bytes()), datetime.now(UTC))
            admission.admit(self.federation, site)
            self.hostile.append(name)

    def home(self, site: str) -> SiteHome:
        return SiteHome(self.folder / "homes" / site)

    def plan(self, *names: str, **changes: Any) -> FederationPlan:
        """The plan of the tests' recipe over some sites, with changes a level deep."""
        permit = changes.pop("permit", None)
        values: dict[str, Any] = dict(RECIPE)
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        config = ExperimentConfig.model_validate({**values, "federation": {**values["federation"], "quorum": 1}})
        return make_plan(config, names or HONEST, permit)

    def overrides(self) -> list[str]:
        """The tests' recipe as words for `train`."""
        return [
            "name=attacked", "sites=[a]", "model=unet", "model.args={channels:[4,8],strides:[2]}",
            "model.args.num_res_units=0", "data.spacing_mm=[null,null,null]", "data.size_voxels=[32,32,null]",
            "training.batch_size=4", "training.local_steps=2", "training.optimizer.name=sgd",
            "training.optimizer.lr=0.05", "federation.quorum=2", "federation.quorum_wait_s=60",
            "federation.round_deadline_s=30",
        ]  # fmt: skip

    def told(self, site: str) -> str:
        """All that a site's client has written to its log."""
        return self.log(site).read_text(encoding="utf-8", errors="replace")

    def last_weights(self) -> Arrays:
        """The weights of the run that went over this federation."""
        (folder,) = (self.folder / "runs").glob("attacked-*/models")
        return ArrayFile(folder / "last.safetensors").load()


@pytest.fixture(scope="session")
def canaries() -> Canaries:
    """What stands in the hospitals' files."""
    return Canaries()


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory, canaries: Canaries) -> Iterator[Attacked]:
    """The federation, running, with both honest sites connected."""
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").is_file():
        pytest.skip("nginx is not installed")
    with Attacked(tmp_path_factory.mktemp("attacked"), canaries) as made:
        made.set_up()
        made.admit_hostile("mallory", *_script())
        try:
            made.start()
            yield made
        finally:
            made.tap.close()


# --- the coordinator's hand ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a site answered: a coded refusal, or a report. seal: checked with the site's key."""

    seal: ReplySeal
    code: str
    reason: str
    report: dict[str, Any]
    packed: RecordDict


class Hand:
    """Puts any message on the line to a site, with the coordinator's key or without: what a hostile one could do."""

    def __init__(self, attacked: Attacked) -> None:
        self.home = attacked.federation
        self.key = self.home.coordinator_key
        self.grid = SuperlinkGrid(self.home)

    def node(self, site: str) -> int:
        return {name: node for node, name in self.grid.names.items()}[site]

    def instruction(self, text: str, number: int = 0, weights: Any = None, holder: str = "") -> RecordDict:
        """A packed instruction without a seal."""
        record = weights if weights is None or isinstance(weights, ArrayRecord) else to_record(weights)
        content = instruction_content(text, number, record)
        content["instruction"] = ConfigRecord({**dict(content["instruction"]), "holder_signature": holder})
        return pack(content)

    def seal(
        self, site: str, text: str, packed: RecordDict, key: PrivateKey | None = None, **changes: Any
    ) -> RecordDict:
        """Seal a packed instruction as the coordinator would, but for the changes."""
        values: dict[str, Any] = {
            "federation": self.home.name,
            "site": site,
            "plan": hashlib.sha256(text.encode()).hexdigest(),
            "kind": "hello",
            "round": 0,
            "nonce": new_nonce(),
            "issued_at": int(time.time()),
            "deadline_s": 60.0,
            "content": digest(packed),
            **changes,
        }
        packed["seal"] = ConfigRecord(dict(sealed(InstructionSeal(**values), key or self.key)))
        return packed

    def push(self, site: str, packed: RecordDict, kind: str = "hello") -> str:
        """Send a packed message; returns Flower's number of it."""
        return self.grid._push(packed, self.node(site), _TYPES[kind], "0", 120.0)

    def answer(self, site: str, identifier: str, wait_s: float = 60.0) -> Said | None:
        """What the site answered to a message, None if nothing came."""
        until, line = time.monotonic() + wait_s, self.grid._line
        while True:
            found = line.call(lambda: line.flower.client.PullMessages(PullAppMessagesRequest(message_ids=[identifier])))
            if found.messages_list:
                break
            if time.monotonic() > until:
                return None
            time.sleep(0.1)
        if found.messages_list[0].HasField("error"):  # the SuperLink's own word: the site is away
            return None
        packed = fetch(found.message_object_trees[0], self._part, 50 * 2**20)
        seal = read_reply_seal(dict(packed["seal"]), self.home.sites()[site].site_key)
        assert seal.content == digest(packed)
        content = unpack(packed, AssertionError)  # type: ignore[arg-type]
        refusal = dict(content.config_records.get("refusal", {}))
        report = json.loads(str(content.config_records.get("report", {"json": "{}"})["json"]))
        return Said(seal, str(refusal.get("code", "")), str(refusal.get("reason", "")), report, packed)

    def _part(self, identifier: str) -> bytes | None:
        """A part of an answer; the site may still be sending it."""
        run, node = self.grid._line.flower, Node(node_id=SUPERLINK_NODE_ID)
        for _ in range(100):
            found = run.client.PullObject(PullObjectRequest(node=node, run_id=run.run_id, object_id=identifier))
            if found.object_available:
                return bytes(found.object_content)
            time.sleep(0.1)
        return None

    def ask(self, site: str, plan: FederationPlan | str, kind: str = "hello", **parts: Any) -> Said:
        """Ask a site as the coordinator does, and wait for its answer."""
        text = plan if isinstance(plan, str) else plan.canonical_json()
        number = parts.pop("number", 0 if kind == "hello" else 1)
        packed = self.instruction(text, number, parts.pop("weights", None), parts.pop("holder", ""))
        sent = self.push(site, self.seal(site, text, packed, kind=kind, round=number, **parts), kind)
        said = self.answer(site, sent)
        assert said is not None, "the site did not answer"
        return said

    def put(self, site: str, plan: FederationPlan) -> str:
        """Ask for a greeting by the coordinator's own grid; returns the number that `judged` wants."""
        if site not in self.grid.names.values():
            self.grid._learn_names()
        content = instruction_content(plan.canonical_json(), 0, None)
        message = Message(content, self.node(site), "query", group_id="0", ttl=60.0)
        (nonce,) = self.grid.push_messages([message])
        return nonce

    def judged(self, nonce: str, wait_s: float = 20.0) -> Message:
        """The answer as the coordinator gets it: what does not bear the site's seal is an error in its place."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            for message in self.grid.pull_messages([nonce]):
                return message
            time.sleep(0.2)
        raise LinkError("nothing came")


@pytest.fixture(scope="session")
def hand(attacked: Attacked) -> Iterator[Hand]:
    """A run of its own at the SuperLink, for messages of all kinds."""
    made = Hand(attacked)
    yield made
    made.grid.close(completed=True)


# --- hostile sites ------------------------------------------------------------------------------------------------


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
        self.count = 0

    def next(self, wait_s: float = 30.0) -> tuple[Incoming, InstructionSeal, RecordDict]:
        """The next instruction: as it came, its seal, its content. Probes are left unanswered."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            incoming = self.fleet.receive()
            if incoming is None:
                time.sleep(1.0)
                continue
            packed = self.fleet.fetch(incoming, 2**30)
            seal = read_instruction_seal(dict(packed["seal"]), self.invitation.coordinator_key)
            if seal.kind != "probe":
                return incoming, seal, packed
        raise LinkError("nothing came")

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
        self.count += 1
        values = {
            **{name: getattr(seal, name) for name in ("federation", "site", "plan", "kind", "round", "nonce")},
            "state": "answer",
            "content": digest(packed),
            "audit_count": self.count,
            "audit_hash": _record(self.count),
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


@pytest.fixture
def player(attacked: Attacked) -> Iterator[Callable[..., Player]]:
    """Logs in as an admitted site."""
    made: list[Player] = []

    def log_in(name: str, address: str | None = None) -> Player:
        until = time.monotonic() + 30
        while True:
            try:
                made.append(Player(attacked, name, address))
            except NotAdmittedError:  # the supervisor has not told the SuperLink yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.3)
            else:
                return made[-1]

    yield log_in
    for one in made:
        one.close()


# --- what hostile sites answer in a round -------------------------------------------------------------------------

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


def _script() -> dict[str, list[str]]:
    """Hostile site → what it does in each round. The one that replays has to say something first."""
    others = [name for name in ROUND_ATTACKS if name != "replay"]
    sites = {f"hostile-{i // ROUNDS}": others[i : i + ROUNDS] for i in range(0, len(others), ROUNDS)}
    return {**sites, "replaying": ["replay"] * ROUNDS, "boasting": []}


def _play(player: Player, attacks: list[str], stop: threading.Event) -> None:
    """Answer until stopped: greetings and the last question honestly, rounds by the script."""
    while not stop.is_set():
        try:
            incoming, seal, packed = player.next(1.0)
        except LinkError:
            continue
        attack = attacks[seal.round - 1] if seal.kind == "round" and seal.round <= len(attacks) else ""
        if attack:
            reply = ROUND_ATTACKS[attack](player, seal, packed)
        else:
            said = {} if attacks else {"patients": 1_000_000}
            reply = player.sealed(seal, pack(player.honest(seal, packed, **said)))
        for _ in range(5):  # the SuperLink's database may be busy
            with contextlib.suppress(LinkError):
                if attack == "too-many-parts":
                    _send_a_forest(player, incoming, reply)
                else:
                    player.send(incoming, reply)
                break


def _send_a_forest(player: Player, incoming: Incoming, reply: RecordDict) -> None:
    """Announce 400 parts of 5 MiB."""
    player.push(Message(reply, reply_to=incoming.message), parts=400)


@dataclass(frozen=True)
class Run:
    """A training of two honest and many hostile sites: what `train` printed, its folder, its rounds' records."""

    result: dict[str, Any]
    folder: Path
    rounds: list[dict[str, Any]]

    def entry(self, number: int, site: str) -> dict[str, Any]:
        """What the record of a round says of a site."""
        return next(dict(p) for p in self.rounds[number - 1]["participation"] if p["site"] == site)

    def outcome(self, attack: str) -> dict[str, Any]:
        """What became of an attack; and that nothing of it was averaged."""
        ((site, number),) = [(s, n) for s, names in _script().items() for n, a in enumerate(names, 1) if a == attack]
        assert site not in self.rounds[number - 1]["aggregated_from"]
        return self.entry(number, site)


@pytest.fixture(scope="session")
def run(attacked: Attacked) -> Run:
    """Train over everybody, hostile sites included, with MLflow."""
    stop = threading.Event()
    players = {Player(attacked, name): attacks for name, attacks in _script().items()}
    threads = [threading.Thread(target=_play, args=(*pair, stop), daemon=True) for pair in players.items()]
    for thread in threads:
        thread.start()
    names = ",".join([*HONEST, *(player.name for player in players)])
    try:
        result = attacked.train(*attacked.overrides(), f"rounds={ROUNDS}", f"federation.sites=[{names}]")
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        for player in players:
            player.close()
    (folder,) = (attacked.folder / "runs").glob("attacked-*")
    places = sorted(folder.glob("journal/round-*/record.json"))
    return Run(result, folder, [json.loads(place.read_bytes()) for place in places])
