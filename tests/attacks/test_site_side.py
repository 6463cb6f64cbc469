"""Attacks on a hospital: by whoever holds the SuperLink, and by a coordinator that has turned hostile itself."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from eucaim_fl.federation import flower_run
from eucaim_fl.federation.flower_private import PullAppMessagesRequest
from eucaim_fl.federation.flower_run import FlowerRun
from eucaim_fl.federation.messages import to_record
from eucaim_fl.seals import new_nonce
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit_reader import AuditReader

pytestmark = pytest.mark.federated


def _snapshot(attacked, site: str) -> dict[str, tuple[int, int]]:
    """Every file of a site (home and cohort) that a client has no business to change: size and time of change."""
    home = attacked.home(site).folder
    own = [
        path for path in home.rglob("*") if path.relative_to(home).parts[0] not in ("state", "cache", "cache.records")
    ]
    cohort = [path for name in attacked.canaries.texts["folder"] for path in (attacked.folder / name).rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in (*own, *cohort) if path.is_file()}


@pytest.fixture(scope="module")
def greeted(attacked, hand):
    """Site a has answered an honest question and knows the plan."""
    said = hand.ask("a", attacked.plan())
    assert (said.code, said.report["site"]) == ("", "a")
    return said


@pytest.fixture(scope="module")
def weights(run, attacked):
    """Weights that fit the plan."""
    return attacked.last_weights()


# --- what somebody without the coordinator's key can do -----------------------------------------------------------


def _bundle(marker: Path) -> bytes:
    """A Flower app whose modules write a file as soon as anybody imports them."""
    code = (
        "import pathlib\n"
        f"pathlib.Path({str(marker)!r}).write_text('it ran')\n"
        "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
        "app, server = ClientApp(), ServerApp()\n"
        "@app.train()\ndef train(message, context):\n    return message\n"
    )
    project = (
        '[project]\nname = "evil"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "evil"\n'
        '[tool.flwr.app.components]\nserverapp = "evil:server"\nclientapp = "evil:app"\n[tool.flwr.app.config]\n'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pyproject.toml", project)
        archive.writestr("evil.py", code)
        for module in ("client_app", "server_app", "site_client", "worker"):  # also in the place of the real ones
            archive.writestr(f"eucaim_fl/federation/{module}.py", code)
        archive.writestr("sitecustomize.py", code)
    return buffer.getvalue()


class Attacker:
    """Holds the SuperLink: starts runs with a bundle of its own and pushes what it likes; has no coordinator's key."""

    def __init__(self, hand, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = hand.home
        with monkeypatch.context() as patch:
            patch.setattr(flower_run, "stub_bundle", lambda: _bundle(marker))
            self.run = FlowerRun(home.runtime_address, home.ca_file, home.executor_secret, home.state_folder / "evil")


class TestABundleOfCode:
    def test_nothing_of_a_bundle_runs_at_a_site_and_the_site_says_nothing(
        self, attacked, hand, greeted, tmp_path, monkeypatch
    ):
        marker = tmp_path / "marker"
        attacker = Attacker(hand, marker, monkeypatch).run
        before, told = _snapshot(attacked, "a"), attacked.told("a").count("ERROR EFL30")
        asked = attacked.told("federation").count("get-fab")
        mine, hand.grid._line.flower = hand.grid._line.flower, attacker
        try:
            text = attacked.plan().canonical_json()
            plain = ConfigRecord({"lr": 0.1, "code": "import os; os.system('id')", "app": "evil:app"})
            sent = [
                hand.push("a", hand.instruction(text), "round"),
                hand.push("a", _only(config=plain), "round"),
                hand.push("a", _only(config=plain), "hello"),
                hand.push("a", _only(config=plain), "final"),
            ]
        finally:
            hand.grid._line.flower = mine
        assert hand.ask("a", attacked.plan()).code == ""  # behind them in the line, and the client is alive
        assert attacked.told("a").count("ERROR EFL30") == told + 4
        assert "The message bears no seal" in attacked.told("a")
        found = attacker.client.PullMessages(PullAppMessagesRequest(message_ids=sent)).messages_list
        assert list(found) == []
        assert not marker.exists()
        assert _snapshot(attacked, "a") == before
        assert not list(attacked.home("a").folder.rglob("*.fab"))
        assert attacked.told("federation").count("get-fab") == asked
        attacker.close(completed=False)

    def test_the_same_bundle_writes_its_file_where_it_is_run(self, tmp_path):
        """So the test above would see it."""
        marker = tmp_path / "marker"
        (tmp_path / "evil.zip").write_bytes(_bundle(marker))
        words = "import sys; sys.path.insert(0, sys.argv[1]); import evil"
        subprocess.run(
            [sys.executable, "-S", "-c", f"try:\n  {words}\nexcept ImportError: pass", tmp_path / "evil.zip"],
            check=True,
        )
        assert marker.read_text() == "it ran"


def _only(**records: ConfigRecord):
    from flwr.app import RecordDict

    return RecordDict(dict(records))


class TestInstructionsThatTheCoordinatorDidNotGive:
    def test_none_is_answered_and_each_is_in_the_site_s_log(self, attacked, hand, greeted):
        plan = attacked.plan()
        text, other = plan.canonical_json(), attacked.plan(seed=99).canonical_json()
        weights = {"w": np.zeros(3, np.float32)}

        def packed(instruction: str = text, arrays: Any = weights) -> Any:
            return hand.instruction(instruction, 1, arrays)

        def changed(kind: str) -> Any:
            """An instruction that the coordinator sealed, changed afterwards."""
            made = hand.seal("a", text, packed(), kind="round", round=1)
            if kind == "plan":
                made["instruction"] = ConfigRecord({**dict(made["instruction"]), "plan": other})
            elif kind == "round":
                made["instruction"] = ConfigRecord({**dict(made["instruction"]), "round": 2})
            elif kind == "weights":
                made["parcel"] = ArrayRecord({"bytes": Array("uint8", (12,), "eucaim.raw", b"x" * 12)})
            elif kind == "holder":
                made["instruction"] = ConfigRecord({**dict(made["instruction"]), "holder_signature": "x" * 86})
            else:
                made["more"] = ConfigRecord({"a": 1})
            return made

        garbled = hand.seal("a", text, packed(), kind="round", round=1)
        garbled["seal"] = ConfigRecord({**dict(garbled["seal"]), "body": "[" * 4000})
        stranger = PrivateKey.create()
        bad = {
            "no seal": packed(),
            "a seal that is no JSON": garbled,
            "another coordinator's seal": hand.seal("a", text, packed(), stranger, kind="round", round=1),
            "a site's seal": hand.seal(
                "a", text, packed(), PrivateKey.load(attacked.home("a").site_key), kind="round", round=1
            ),
            "another federation": hand.seal("a", text, packed(), federation="other", kind="round", round=1),
            "another site": hand.seal("b", text, packed(), kind="round", round=1),
            **{f"a changed {kind}": changed(kind) for kind in ("plan", "round", "weights", "holder", "record")},
        }
        before, told = AuditReader(attacked.home("a").audit_folder).head().count, attacked.told("a").count("EFL306")
        sent = {what: hand.push("a", message, "round") for what, message in bad.items()}
        assert hand.ask("a", plan).code == ""
        assert {what: hand.answer("a", number, 0.0) for what, number in sent.items()} == dict.fromkeys(bad)
        assert attacked.told("a").count("EFL306") == told + len(bad)
        records = list(AuditReader(attacked.home("a").audit_folder).records())[before:]
        assert [record.kind for record in records] == ["decision", "sent"]  # of the honest question alone


class TestReplayedInstructions:
    def test_the_last_one_is_answered_again_with_the_same_bytes_a_few_times_and_never_worked_on(
        self, attacked, hand, greeted
    ):
        text = attacked.plan(seed=7).canonical_json()
        packed, log = hand.seal("a", text, hand.instruction(text)), AuditReader(attacked.home("a").audit_folder)
        before = log.head().count
        first = hand.answer("a", hand.push("a", packed))
        answers = [hand.answer("a", number) for number in [hand.push("a", packed) for _ in range(6)]]
        assert [said.code for said in answers] == [""] * 5 + ["EFL304"]
        assert {str(dict(said.packed["seal"])) for said in answers[:5]} == {str(dict(first.packed["seal"]))}
        assert [record.kind for record in list(log.records())[before:]].count("decision") == 1

    def test_an_older_one_is_taken_three_times_at_most(self, attacked, hand, greeted):
        """Of a plan that the policy refuses, which costs nobody any work; something else is asked in between."""
        old, other = (attacked.plan(rounds=number).canonical_json() for number in (2000, 3000))
        packed = hand.seal("a", old, hand.instruction(old))
        sent = []
        for _ in range(4):
            sent.append(hand.push("a", packed))
            hand.push("a", hand.seal("a", other, hand.instruction(other)))
        answers = [hand.answer("a", number) for number in sent]
        assert [said.code for said in answers] == ["EFL310"] * 3 + ["EFL306"]
        assert "played back" in answers[3].reason

    def test_one_of_another_day_is_refused_and_one_for_another_site_not_even_answered(self, attacked, hand, greeted):
        text, now = attacked.plan().canonical_json(), int(time.time())
        made = [
            hand.seal("a", text, hand.instruction(text), issued_at=now - 25 * 3600),
            hand.seal("a", text, hand.instruction(text), issued_at=now + 2 * 3600),
            hand.seal("b", text, hand.instruction(text)),
        ]
        sent = [hand.push("a", packed) for packed in made]
        old, early = (hand.answer("a", number) for number in sent[:2])
        assert (old.code, early.code) == ("EFL306", "EFL306")
        assert "older than a day" in old.reason
        assert "from the future" in early.reason
        assert hand.ask("a", attacked.plan()).code == ""
        assert hand.answer("a", sent[2], 0.0) is None


# --- what the coordinator itself could try ------------------------------------------------------------------------


def _with(*place: str, **values: Any):
    """Set values at a place of a plan, whatever they are."""

    def edit(plan: dict[str, Any]) -> None:
        for step in place:
            plan = plan[step]
        plan.update(values)

    return edit


LONG = "@a number of ten thousand digits"
PLANS: dict[str, tuple[Any, str]] = {
    "a path as its name": (_with(name="../../../etc/cron.d/x"), "EFL102"),
    "a path in the data": (_with("data", folder="/etc/passwd"), "EFL102"),
    "a file as weights": (_with("model", "args", pretrained="/srv/weights.pt"), "EFL102"),
    "an environment variable as its name": (_with(name="${oc.env:HOME}"), "EFL102"),
    "an environment variable as a network": (_with("model", name="$HOME"), "EFL102"),
    "_target_": (_with("model", _target_="os.system"), "EFL102"),
    "_target_ in arguments": (_with("model", "args", _target_="os.system"), "EFL102"),
    "a class as optimizer": (_with("training", "optimizer", name="torch.optim.SGD"), "EFL102"),
    "an unknown network": (_with("model", name="backdoor"), "EFL102"),
    "a huge image": (_with("data", size_voxels=[1024, 1024, 1024]), "EFL102"),
    "a huge patch": (_with("training", patch_voxels=[10**9, 10**9]), "EFL102"),
    "a huge batch": (_with("training", batch_size=10**9), "EFL102"),
    "a huge network": (_with("model", "args", channels=[10**6, 10**6]), "EFL102"),
    "a million rounds": (_with(rounds=10**6), "EFL102"),
    "ten thousand rounds": (_with(rounds=10_000), "EFL310"),
    "a million sites": (_with(sites=[f"s{n:06d}" for n in range(20_000)]), "EFL102"),
    "NaN as a number": (_with("training", "optimizer", lr=math.nan), "EFL102"),
    "infinity": (_with("training", "optimizer", lr=math.inf), "EFL102"),
    "a negative seed": (_with(seed=-1), "EFL102"),
    "a number of ten thousand digits": (_with(seed=LONG), "EFL102"),
    "another schema": (_with(schema_version=2), "EFL102"),
    "another version": (_with(software="99.9"), "EFL102"),
    "an unknown key": (_with(hook="import os"), "EFL102"),
    "a label with a path": (_with("task", labels=["../x"]), "EFL102"),
    "a terminal's control letters": (_with("model", name="\x1b]0;x\x07"), "EFL102"),
    "half a letter": (_with("model", name="\ud800"), "EFL102"),
    "a plan without this site": (_with(sites=["b"]), "EFL310"),
}


def _text(edit: Any, plan: Any) -> str:
    values = json.loads(plan.canonical_json())
    edit(values)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace(f'"{LONG}"', "9" * 10_000)  # Python itself would write no such number


TEXTS: dict[str, str] = {
    "300 kB of nothing": " " * 300_000,
    "300 kB of brackets": "[" * 300_000,
    "no JSON": "import os",
    "a number": "1",
    "NaN alone": "NaN",
    "the same key twice": '{"schema_version":1,"schema_version":1}',
    "nothing": "",
}


@pytest.fixture(scope="module")
def answers(attacked, hand, greeted):
    """All hostile plans, properly sealed, one behind the other; and that nothing of the site has changed."""
    plan = attacked.plan(seed=3)
    texts = {what: _text(edit, plan) for what, (edit, _) in PLANS.items()} | TEXTS
    texts["white space"] = json.dumps(json.loads(plan.canonical_json()), indent=1, sort_keys=True)
    before = _snapshot(attacked, "a")
    plans = set(attacked.home("a").plans_folder.iterdir())
    found = {}
    slow = {"an unknown network", "a huge network"}  # the process that has torch knows best; a site lets few wait
    for group in (set(texts) - slow, slow):
        sent = {what: hand.push("a", hand.seal("a", texts[what], hand.instruction(texts[what]))) for what in group}
        found |= {what: hand.answer("a", number) for what, number in sent.items()}
    assert _snapshot(attacked, "a") == before
    new = set(attacked.home("a").plans_folder.iterdir()) - plans
    assert {path.name for path in new} <= {
        f"{hashlib.sha256(text.encode()).hexdigest()}.json" for text in texts.values()
    }
    return found


class TestPlansOfAHostileCoordinator:
    @pytest.mark.parametrize("what", list(PLANS))
    def test_a_plan_that_asks_for_what_no_plan_can_is_refused_with_a_code(self, answers, what):
        said = answers[what]
        assert said is not None
        assert said.code == PLANS[what][1], said.reason

    @pytest.mark.parametrize("what", [*TEXTS, "white space"])
    def test_what_is_no_plan_is_refused_with_a_code(self, answers, what):
        assert answers[what] is not None
        assert answers[what].code == "EFL102"

    def test_no_answer_tells_anything_of_the_site(self, attacked, answers):
        words = [str(attacked.folder), str(Path.home()), "Kolibri", "site.yaml", "Traceback", "EUCAIM_FL"]
        for said in answers.values():
            assert not [word for word in words if word in said.reason]
            assert said.reason.isprintable()

    def test_the_client_is_alive_and_answers_honest_questions(self, attacked, hand, answers):
        assert hand.ask("a", attacked.plan()).report["site"] == "a"
        assert attacked.clients["a"].poll() is None


class TestQuestionsOfAHostileCoordinator:
    """A plan that is allowed, with something wrong beside it."""

    @pytest.fixture(scope="class")
    @classmethod
    def odd(cls, attacked, hand, greeted, weights):
        """What the site says to questions that contradict their seal, or themselves; all of them at once."""
        text = attacked.plan().canonical_json()
        huge = hand.instruction(text, 1, weights)
        index = json.loads(huge["parcel-index"]["json"])
        index[0][3], index[0][5] = [25 * 10**8], 10**10
        huge["parcel-index"] = ConfigRecord({"json": json.dumps(index)})
        made = {
            "another round": ("round", hand.seal("a", text, hand.instruction(text, 3), kind="round", round=1)),
            "another kind": ("hello", hand.seal("a", text, hand.instruction(text, 1), kind="round", round=1)),
            "ten gigabytes": ("round", hand.seal("a", text, huge, kind="round", round=1)),
        }
        for number in (-1, 10_002, 2**63 - 1):
            packed = hand.instruction(text, number)
            made[f"round {number}"] = ("round", hand.seal("a", text, packed, kind="round", round=max(number, 0)))
        sent = {what: hand.push("a", packed, kind) for what, (kind, packed) in made.items()}
        return {what: hand.answer("a", number) for what, number in sent.items()}

    @pytest.mark.parametrize(
        ("what", "codes"),
        [
            ("another round", {"EFL306"}),
            ("another kind", {"EFL306"}),
            ("ten gigabytes", {"EFL102"}),
            ("round -1", {"EFL102", "EFL306"}),
            ("round 10002", {"EFL102"}),
            (f"round {2**63 - 1}", {"EFL102"}),
        ],
    )
    def test_one_that_contradicts_its_seal_or_itself_is_refused(self, odd, what, codes):
        assert odd[what].code in codes

    @pytest.mark.parametrize(
        ("what", "code"),
        [("none", "EFL102"), ("others", "EFL102"), ("objects", "EFL102"), ("reshaped", "EFL102"), ("nan", "EFL601")],
    )
    def test_weights_that_are_not_the_plan_s(self, attacked, hand, greeted, weights, what, code):
        record = to_record(weights)
        first = sorted(weights)[0]
        if what == "none":
            record = None
        elif what == "others":
            record = to_record({"patients": np.zeros(4, np.float32)})
        elif what == "objects":
            old = record[first]
            record[first] = Array("object", (len(old.data) // 8,), old.stype, old.data[: len(old.data) // 8 * 8])
        elif what == "reshaped":
            record = to_record({**weights, first: weights[first].reshape(-1)[:-1]})
        else:
            record = to_record(
                {
                    name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
                    for name, array in weights.items()
                }
            )
        said = hand.ask("a", attacked.plan(), "round", weights=record)
        assert said.code == code, said.reason

    def test_an_environment_variable_in_a_free_word_stays_a_word(self, attacked, hand, greeted):
        """The only free texts of a plan are words that a series' description must hold; they are compared, not read."""
        rules = [{"name": "t", "modality": "CT", "words": ["${oc.env:HOME}", "/etc/passwd", "$(id)", "{{7*7}}"]}]
        plan = attacked.plan(data={"modality": None, "channels": rules})
        said = hand.ask("a", plan)
        assert said.code.startswith("EFL2")  # no patient has such a series
        assert str(Path.home()) not in said.reason
        assert "49" not in said.reason

    def test_work_that_is_asked_for_twice_at_once_is_given_up_not_mixed(self, attacked, hand, greeted, weights):
        first, second = attacked.plan(seed=11), attacked.plan(seed=12)
        texts = [plan.canonical_json() for plan in (first, second)]
        sent = [
            hand.push(
                "a",
                hand.seal("a", text, hand.instruction(text, 1, weights), kind="round", round=1, nonce=new_nonce()),
                "round",
            )
            for text in texts
        ]
        said = hand.answer("a", sent[1])
        assert (said.code, said.report["plan_sha256"]) == ("", second.sha256())
        earlier = hand.answer("a", sent[0], 0.0)
        assert earlier is None or earlier.report["plan_sha256"] == first.sha256()
