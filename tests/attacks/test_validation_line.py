"""Attacks by frozen models on a hospital: by a researcher with a good key, over a real SuperLink.

What the hospital's client answers, what its audit log says, and that it goes on serving. Plans are pushed in small
groups, since a site lets few wait.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from onnx import helper

from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.audit_reader import AuditReader
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.validation.record import EVERYBODY
from tests.attacks.federation import STRICT, Attacked, Hand, Said
from tests.attacks.frozen import MARK, Ran, contract, endless, fifty_gigabytes, masks, outside, validating

pytestmark = pytest.mark.federated
_AT_ONCE, _TRIES, _WAIT_S = 3, 2, 240.0
FIGURES = ["dice", "hd95_mm", "surface_dice", "volume_difference_ml", "lesions"]
OPEN = {
    **STRICT,
    "metrics": {"names": FIGURES, "decimals": 4},
    "frozen_models": {"formats": ["network", "onnx"], "megabytes": 10, "memory_gb": 1, "image_seconds": 1},
}
LIMITS = {"memory_gb": 1.0, "image_seconds": 1.0}


@dataclass(frozen=True)
class Asked:
    """A plan, and the bytes that are sent with it: what it says, or others."""

    plan: FederationPlan
    file: bytes


class Researcher:
    """Asks site a; its policy is what is said here until the end."""

    def __init__(self, attacked: Attacked, hand: Hand) -> None:
        self.attacked, self.hand, self.home = attacked, hand, attacked.home("a")
        self.base = attacked.plan("a")

    def policy(self, **changes: Any) -> None:
        self.home.policy_file.write_text(yaml.safe_dump({**OPEN, **changes}))

    def asked(self, file: bytes, kind: str = "onnx", described: Mapping[str, Any] | None = None, **other: Any) -> Asked:
        made = contract(self.base, file, kind, **(described or {}))
        return Asked(validating(self.base, made, **{"limits": LIMITS, **other}), file)

    def answers(self, asked: Mapping[str, Asked]) -> dict[str, Said]:
        """What the site says to each; a site that was lost meanwhile, as on a machine that is busy, is asked again."""
        found: dict[str, Said] = {}
        for _ in range(_TRIES):
            left = [what for what in asked if what not in found]
            for group in (left[k : k + _AT_ONCE] for k in range(0, len(left), _AT_ONCE)):
                sent = {what: self._push(asked[what]) for what in group}
                said = {what: self.hand.answer("a", number, _WAIT_S) for what, number in sent.items()}
                found |= {what: one for what, one in said.items() if one is not None}
        assert found.keys() == asked.keys()
        return found

    def _push(self, asked: Asked) -> str:
        text, name = asked.plan.canonical_json(), asked.plan.validation.models[0].name
        packed = self.hand.instruction(text, 2, {f"file.{name}": np.frombuffer(asked.file, np.uint8)})
        seal = self.hand.seal("a", text, packed, kind="final", round=2, deadline_s=120.0)
        return self.hand.push("a", seal, "final")

    def logged(self, asked: Asked) -> list[Any]:
        """The audit log's records of a plan."""
        return list(AuditReader(self.home.audit_folder).records(plan=asked.plan.sha256()))

    def told(self, said: Said) -> dict[str, Any]:
        """Scope → its record."""
        return {one["scope"]: one for one in said.report["validated"]["scopes"]}

    def own_results(self, asked: Asked) -> dict[str, dict[str, float]]:
        """Patient → what the model got, from the site's own records."""
        folder = load_site_file(self.home.site_file).records_folder() / "validations"
        patients = json.loads((folder / f"{asked.plan.sha256()}.json").read_text())["patients"]
        return {patient: one["models"]["hostile"] for patient, one in patients.items()}


@pytest.fixture(scope="module")
def researcher(attacked: Attacked, hand: Hand) -> Iterator[Researcher]:
    made = Researcher(attacked, hand)
    before = made.home.policy_file.read_bytes()
    yield made
    made.home.policy_file.write_bytes(before)


class Spinning(torch.nn.Module):
    """Counts to 2⁶⁰."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        count = 0
        while count < 1152921504606846976:
            count += 1
        return given * count


def scripted(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


HONEST = masks()
FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "an operator of its own": (
        lambda: masks(helper.make_node("Run", ["f2"], ["y"], domain="com.evil")),
        "EFL801",
        "an operator Run of the domain com.evil",
    ),
    "weights in another file": (lambda: outside("../../etc/passwd"), "EFL801", "keeps weights in another file"),
    "half a file": (lambda: HONEST[:-40], "EFL801", "can't be read"),
    "a loop without an end": (endless, "EFL802", "took longer than"),
    "fifty gigabytes": (fifty_gigabytes, "EFL803", "more memory than it may"),
}
"""ONNX files → the code that leaves, and words of the reason."""


@pytest.fixture(scope="module")
def silent(researcher: Researcher) -> dict[str, tuple[Asked, Said]]:
    """What is refused before any process is started: by a policy that does not list it, or since it is no plan's."""
    program = researcher.asked(scripted(Spinning()), "torchscript")
    good = researcher.asked(HONEST)
    before = {"no line": good}
    researcher.home.policy_file.write_text(yaml.safe_dump(STRICT))
    answers = researcher.answers(before)
    researcher.policy()
    later = {
        "a program": program,
        "more memory": researcher.asked(HONEST, limits={"memory_gb": 60.0, "image_seconds": 1.0}),
        "more time": researcher.asked(HONEST, limits={"memory_gb": 1.0, "image_seconds": 3000.0}),
        "another file": Asked(researcher.asked(HONEST, bins=20).plan, HONEST[:-1] + b"\0"),
        "a longer file": Asked(researcher.asked(HONEST, bins=21).plan, HONEST + b"\0"),
        "no file": Asked(researcher.asked(HONEST, bins=22).plan, b""),
    }
    answers |= researcher.answers(later)
    return {what: (one, answers[what]) for what, one in {**before, **later}.items()}


@pytest.fixture(scope="module")
def opened(researcher: Researcher, silent: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What comes of files that get as far as the locked process; the honest one is the last."""
    trace = tmp_path_factory.mktemp("trace") / "ran"
    asked = {what: researcher.asked(make()) for what, (make, _, _) in FILES.items()}
    asked["a pickle in place of weights"] = researcher.asked(Ran(trace).pickled(), "network")
    researcher.policy(frozen_models={**OPEN["frozen_models"], "formats": ["network", "onnx", "torchscript"]})
    asked["a program that counts"] = researcher.asked(scripted(Spinning()), "torchscript", bins=30)
    asked["honest"] = researcher.asked(HONEST)
    answers = researcher.answers(asked)
    researcher.policy()
    assert not trace.exists()
    return {what: (one, answers[what]) for what, one in asked.items()}


def refused(researcher: Researcher, asked: Asked, said: Said, code: str, reason: str) -> None:
    """A code, a safe sentence and nothing else left, and both are in the audit log."""
    assert (said.code, said.report) == (code, {})
    assert reason in said.reason
    assert not said.packed.array_records
    for word in (str(researcher.attacked.folder), "Kolibri", "Traceback", "/", "\\", "MRN77"):
        assert word not in said.reason
    last = researcher.logged(asked)[-1]
    assert (last.kind, last.body["code"], last.body["kind"]) == ("withheld", code, "final")
    assert reason in last.body["reasons"][0]


class TestWhatThePolicyDoesNotList:
    @pytest.mark.parametrize(
        ("what", "key"),
        [
            ("no line", "frozen_models.formats"),
            ("a program", "frozen_models.formats"),
            ("more memory", "frozen_models.memory_gb"),
            ("more time", "frozen_models.image_seconds"),
        ],
    )
    def test_it_is_refused_by_the_line_and_the_audit_log_names_it(self, researcher, silent, what, key):
        asked, said = silent[what]
        refused(researcher, asked, said, "EFL310", f"refuses the plan: {key if what != 'no line' else 'frozen'}")
        decision = researcher.logged(asked)[0]
        assert (decision.kind, decision.body["verdict"]) == ("decision", "refuse")
        assert key in decision.body["reasons"]

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ("another file", "not the one that the plan names"),
            ("a longer file", "another shape or type"),
            ("no file", "another shape or type"),
        ],
    )
    def test_a_file_that_is_not_the_plan_s_is_not_opened(self, researcher, silent, what, words):
        refused(researcher, *silent[what], "EFL102", words)

    @pytest.mark.parametrize("name", ["../../evil", "/etc/cron.d/evil", "a b", "a\x1b[2J", ""])
    def test_a_name_that_leads_elsewhere_is_no_plan_s(self, researcher, silent, name):
        """It would be a key of an array, and of a file at the coordinator."""
        values = json.loads(researcher.asked(HONEST).plan.canonical_json())
        values["validation"]["models"][0]["name"] = name
        said = researcher.hand.ask("a", json.dumps(values, sort_keys=True, separators=(",", ":")))
        assert said.code == "EFL102"
        assert "evil" not in said.reason


@pytest.mark.long
class TestFilesThatAreOpened:
    @pytest.mark.parametrize("what", list(FILES))
    def test_a_hostile_graph_is_refused_or_ended_with_a_code(self, researcher, opened, what):
        refused(researcher, *opened[what], *FILES[what][1:])

    def test_a_pickle_in_place_of_weights_is_refused_and_not_unpickled(self, researcher, opened):
        refused(researcher, *opened["a pickle in place of weights"], "EFL801", "no safetensors file")

    def test_a_program_that_the_policy_lists_is_ended_when_its_time_is_over(self, researcher, opened):
        refused(researcher, *opened["a program that counts"], "EFL802", "took longer than")

    def test_the_site_judges_an_honest_model_behind_them(self, researcher, opened):
        asked, said = opened["honest"]
        assert said.code == ""
        assert researcher.told(said)[EVERYBODY]["patients"] == 25  # of 24
        kinds = [(record.kind, record.body.get("verdict", "")) for record in researcher.logged(asked)]
        assert kinds[-2:] == [("decision", "allow"), ("sent", "")]
        assert researcher.attacked.clients["a"].poll() is None

    def test_no_file_of_a_model_lies_on_the_site_s_disk(self, researcher, opened):
        for place in researcher.home.folder.rglob("*"):
            assert not place.is_file() or MARK.encode() not in place.read_bytes()


@pytest.mark.long
class TestPlansThatDifferByAPatient:
    @pytest.fixture(scope="class")
    @classmethod
    def moved(cls, researcher, opened):
        """Groups by lesions' volume; then with the edge moved by one patient and another one beside it."""
        volumes = sorted(one["true_ml"] for one in researcher.own_results(opened["honest"][0]).values())
        steps = [n for n in range(1, len(volumes)) if volumes[n - 1] < volumes[n]]
        few, at, below = min(
            (after - n, n, m)
            for n, after in pairwise(steps)
            for m in steps
            if m >= 5 and n - m >= 5 and len(volumes) - after >= 5
        )
        assert few < 5  # so many lie between the two edges
        low, edge, moved = ((volumes[n - 1] + volumes[n]) / 2 for n in (below, at, at + few))
        first, second, third = (
            researcher.asked(HONEST, subgroups=[{"by": "lesion_volume_ml", "edges": edges}])
            for edges in ([edge], [low, moved], [low])
        )
        decided = len(AuditReader(researcher.home.audit_folder).plans_allowed())
        researcher.policy(plans={**STRICT["plans"], "total": decided + 2})
        answers = [researcher.answers({"": one})[""] for one in (first, second)]
        asked = (first, second, third)
        return asked, [*answers, researcher.answers({"": third})[""]], volumes

    def test_what_left_can_not_be_subtracted_to_one_patient(self, researcher, moved):
        asked, said, volumes = moved
        known = []
        for number, one in enumerate(said[:2]):
            assert one.code == ""
            told = {scope for scope, record in researcher.told(one).items() if not record["withheld"]}
            cuts = [0.0, *asked[number].plan.validation.subgroups[0].edges, 1e9]
            names = asked[number].plan.validation.subgroups[0].groups()
            groups = [
                {n for n, volume in enumerate(volumes) if low <= volume < high}
                for name, low, high in zip(names, cuts[:-1], cuts[1:], strict=True)
                if name in told
            ]
            known.append((told, groups))
        assert len(known[0][1]) == 2
        assert EVERYBODY in known[1][0]
        for some in range(2 ** len(known[1][1])):
            union = set[int]().union(*(g for k, g in enumerate(known[1][1]) if some >> k & 1))
            for group in (*known[0][1], set(range(len(volumes)))):
                assert not 0 < len(union ^ group) < 5

    def test_one_plan_more_than_the_policy_allows_is_refused(self, researcher, moved):
        asked, said, *_ = moved
        refused(researcher, asked[2], said[2], "EFL310", "plans.total")

    def test_the_site_serves_on(self, researcher, moved):
        researcher.policy()
        assert researcher.hand.ask("a", researcher.attacked.plan()).report["site"] == "a"


def test_no_code_at_a_site_reads_a_researcher_s_bundle():
    """Bundles and their configurations are read on the researcher's machine alone."""
    package = Path(__file__).parents[2] / "eucaim_fl"
    bundles = ("inference.bundles", "inference.bundle_files", "inference.bundle_config")
    readers = {
        str(place.relative_to(package))
        for place in package.rglob("*.py")
        if any(name in place.read_text() for name in bundles)
    }
    at_sites = {one for one in readers if one.startswith(("site/", "cohorts/", "training/", "tasks/", "models/"))}
    assert not at_sites
    federation = {one for one in readers if one.startswith("federation/")}
    assert not federation & {f"federation/{name}.py" for name in ("client_app", "site_client", "site_desk", "worker")}
