"""The federation that is attacked, and the coordinator's hand, which can put anything on the line."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from eucaim_fl.arrays import ArrayFile, Arrays
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.enrolment import read_invitation
from eucaim_fl.errors import LinkError
from eucaim_fl.federation import admission
from eucaim_fl.federation.flower_private import (
    SUPERLINK_NODE_ID,
    Node,
    PullAppMessagesRequest,
    PullObjectRequest,
)
from eucaim_fl.federation.messages import instruction_content, to_record
from eucaim_fl.federation.objects import fetch
from eucaim_fl.federation.parcel import digest, pack, unpack
from eucaim_fl.federation.rehearsal import POLICY, Rehearsal, free_ports
from eucaim_fl.federation.superlink_grid import SuperlinkGrid
from eucaim_fl.permits import Permit, issue
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.seals import InstructionSeal, ReplySeal, new_nonce, read_reply_seal, sealed
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.enrol import CohortChoice, make_home
from eucaim_fl.site.home import SiteHome
from tests.attacks.hospitals import Canaries, write_dicom_hospital, write_nifti_hospital
from tests.attacks.tap import Tap

__all__ = ["HONEST", "Attacked", "Body", "Hand", "Said"]

HONEST = ("a", "b")
STRICT: dict[str, Any] = {
    **POLICY,
    "patients": {"training": 10, "metric": 5},
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
    "training": {"batch_size": 4, "local_steps": 3, "optimizer": {"name": "sgd", "lr": 0.05}},
    "federation": {"quorum": 2, "quorum_wait_s": 60.0, "round_deadline_s": 60.0},
}
_TYPES = {"hello": "query", "round": "train", "final": "evaluate", "probe": "query.probe"}


class Body:
    """An access body that issues permits, and the researchers who hold them."""

    def __init__(self) -> None:
        self.key, self.holder = PrivateKey.create(), PrivateKey.create()

    def permit(self, key: PrivateKey | None = None, **changes: Any) -> dict[str, Any]:
        """A permit for the tests' plans, valid for a day, with changes."""
        now = datetime.now(UTC).replace(microsecond=0)
        values: dict[str, Any] = {
            "id": "P-2026-17",
            "issuer": "hdab",
            "holder": "researchers",
            "holder_key": self.holder.public,
            "purposes": ["scientific_research"],
            "datasets": ["rehearsal"],
            "valid_from": now - timedelta(days=1),
            "valid_until": now + timedelta(days=1),
            **changes,
        }
        return issue(Permit.model_validate(values), key or self.key)


class Attacked(Rehearsal):
    """The rehearsal behind a tap; site b asks for permits.

    hostile: names that were admitted with real keys, whose clients do not run. counts: records of their made-up logs.
    """

    def __init__(self, folder: Path, canaries: Canaries) -> None:
        self.canaries, self.body = canaries, Body()
        files = []
        for name, write, layout, at in (
            ("a", write_dicom_hospital, "eucaim_tier3", "StationKolibri"),
            ("b", write_nifti_hospital, "nifti_csv", "StationZeisig"),
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
        self.counts: dict[str, int] = {}

    def set_up(self) -> None:
        self.run(
            "federation", "init", self.name, "--host", f"localhost:{self.tap_port}",
            "--listen", f"127.0.0.1:{self.port}", "--superlink-port", str(self.superlink_port),
        )  # fmt: skip
        for site in self.sites:
            self._admit(site)
            self.write_files(site, STRICT)
        self.write_files("b", {**STRICT, "asking": {"permits": "required", "bodies": {"hdab": self.body.key.public}}})
        self.tap = Tap(self.tap_port, self.port, self.federation)

    def _admit(self, name: str) -> None:
        """Invite a site, make its home and admit it, as the commands do."""
        document = admission.invite(self.federation, name, datetime.now(UTC), patients=1000)
        cohort = CohortChoice(self.folder / "nothing", "nifti_csv")
        asked = make_home(self.home(name).folder, read_invitation(document, None), document, cohort)
        site = admission.requested(self.federation, json.loads(asked.read_bytes()), datetime.now(UTC))
        admission.admit(self.federation, site)

    def admit_hostile(self, *names: str) -> None:
        """Admit sites whose clients will be played by tests; their keys are real."""
        for name in names:
            self._admit(name)
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

    def overrides(self, name: str, **permit: Any) -> list[str]:
        """The tests' recipe as words for `train`, with a permit and its holder's key."""
        place, key = self.folder / f"{name}.permit.json", self.folder / f"{name}.holder_key.pem"
        place.write_text(json.dumps(self.body.permit(id=f"P-{name}", **permit)))
        self.body.holder.save(key)
        return [
            f"name={name}", f"permit.file={place}", f"permit.holder_key={key}",
            "sites=[a]", "model=unet", "model.args={channels:[4,8],strides:[2]}",
            "model.args.num_res_units=0", "data.spacing_mm=[null,null,null]", "data.size_voxels=[32,32,null]",
            "training.batch_size=4", "training.local_steps=3", "training.optimizer.name=sgd",
            "training.optimizer.lr=0.05", "federation.quorum=2", "federation.quorum_wait_s=60",
            "federation.round_deadline_s=240",
        ]  # fmt: skip

    def told(self, site: str) -> str:
        """All that a site's client has written to its log."""
        return self.log(site).read_text(encoding="utf-8", errors="replace")

    def last_weights(self) -> Arrays:
        """The weights of the run that went over this federation."""
        (folder,) = (self.folder / "runs").glob("attacked-*/models")
        return ArrayFile(folder / "last.safetensors").load()


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
        began, line = time.monotonic(), self.grid._line
        while True:
            found = line.call(lambda: line.flower.client.PullMessages(PullAppMessagesRequest(message_ids=[identifier])))
            if found.messages_list:
                break
            waited = time.monotonic() - began
            if waited > wait_s:
                return None
            time.sleep(min(max(0.25, 0.1 * waited), 1.0))
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
        node, line = Node(node_id=SUPERLINK_NODE_ID), self.grid._line

        def pull() -> Any:
            run = line.flower
            return run.client.PullObject(PullObjectRequest(node=node, run_id=run.run_id, object_id=identifier))

        for _ in range(100):
            found = line.call(pull)
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
