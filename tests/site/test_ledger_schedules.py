"""No interleaving of reserve, commit, release, crash and concurrent runs spends more than the ledger says, or allows.

A thousand seeded schedules run against a model that knows the rules in whole steps: all mechanisms have the same noise
and rate, so that budgets are numbers of steps. A crash is an exception between any two steps of SQLite or of the file
system; what goes on afterwards is the folder as it was on the disk at that moment.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import PrivacyBudgetError
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site import audit_base, chain_writer
from eucaim_fl.site.ledger import Ledger, Limits, Purchase, verify_ledger
from eucaim_fl.site.ledger_base import hidden_patients

SCHEDULES, PART = 1000, 250
PATIENTS = ("p1", "p2", "p3", "p4", "p5")
PLANS = ("a" * 64, "b" * 64, "c" * 64)
LIMITS = Limits(plan=Budget(2.0, 1e-5), patient=Budget(3.0, 1e-5), dataset=Budget(3.5, 1e-5), purpose=Budget(4.0, 1e-5))
WIDE = Limits(plan=None, patient=Budget(15.0, 1e-5), dataset=None, purpose=Budget(20.0, 1e-5))
OPEN = Limits(None, LIMITS.patient, LIMITS.dataset, LIMITS.purpose)
FREE = Limits(None, LIMITS.patient, None, None)
Names = frozenset[str]


def once(steps: int) -> Mechanism:
    return Mechanism(4.0, 1.0, steps)


def purchase(plan: str, use: str = "train") -> Purchase:
    purpose, dataset = {PLANS[0]: ("research", "x"), PLANS[1]: ("research", "y"), PLANS[2]: ("care", "x")}[plan]
    return Purchase(plan, "n", purpose, dataset, "train" if use == "train" else "figures", True)


def most(holds: Callable[[Mechanism], bool]) -> int:
    return next(steps for steps in range(1, 1000) if not holds(once(steps))) - 1


@dataclass(frozen=True)
class Ceilings:
    """The limits in steps."""

    plan: int
    patient: int
    dataset: int
    purpose: int


@pytest.fixture(scope="module")
def ceilings() -> Ceilings:
    plan, *others = (LIMITS.plan, LIMITS.patient, LIMITS.dataset, LIMITS.purpose)
    assert plan is not None
    found = Ceilings(
        most(lambda one: epsilon([one], plan.delta) <= plan.epsilon),
        *(most(lambda one, budget=budget: budget.holds([one])) for budget in others),
    )
    assert found == Ceilings(4, 7, 9, 11), "few values, so that each cost is computed once, by the accountant's cache"
    return found


@dataclass
class Model:
    """The rules, added up naively: what was committed and is held, in steps."""

    done: list[tuple[Purchase, Names, int]] = field(default_factory=list)
    held: dict[tuple[str, str], tuple[Purchase, Names, int]] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(list(self.done), dict(self.held))

    def total(self, fits: Callable[[Purchase, Names], bool]) -> int:
        return sum(steps for what, names, steps in (*self.done, *self.held.values()) if fits(what, names))

    def of_plan(self, plan: str, name: str) -> int:
        return self.total(lambda what, names: what.plan == plan and name in names)

    def ask(self, op: Op, ceilings: Ceilings, limits: Limits) -> Names | None:
        """Who is charged, None if it is refused; the model's state becomes that after it."""
        after = self.copy()
        slot = (op.what.plan, op.what.use)
        held = after.held.pop(slot, None)
        if op.kind == "commit" and held is not None and held[2] > op.steps:
            after.held[slot] = (*held[:2], held[2] - op.steps)
        kept = frozenset(
            name
            for name in op.names
            if after.total(lambda _, names, name=name: name in names) + op.steps <= ceilings.patient
        )
        sums = (
            (limits.dataset, ceilings.dataset, after.total(lambda what, _: what.dataset == op.what.dataset)),
            (limits.purpose, ceilings.purpose, after.total(lambda what, _: what.purpose == op.what.purpose)),
            (limits.plan, ceilings.plan, max((after.of_plan(op.what.plan, name) for name in kept), default=0)),
        )
        if len(kept) < op.least or any(limit and total + op.steps > ceiling for limit, ceiling, total in sums):
            return None
        if op.kind == "commit":
            after.done.append((op.what, kept, op.steps))
        else:
            after.held[slot] = (op.what, kept, op.steps)
        self.done, self.held = after.done, after.held
        return kept

    def release(self, plan: str) -> None:
        self.held = {slot: one for slot, one in self.held.items() if slot[0] != plan}


@dataclass(frozen=True)
class Op:
    kind: str
    what: Purchase
    names: Names
    steps: int
    least: int

    def run(self, ledger: Ledger, limits: Limits) -> Names | None:
        """The answer; None if it was refused."""
        try:
            if self.kind == "release":
                ledger.release(self.what.plan)
                return None
            if self.kind == "reserve":
                return ledger.reserve(self.what, once(self.steps), self.names, limits, self.least)
            return ledger.commit(self.what, 1, once(self.steps), self.names, limits, self.least)
        except PrivacyBudgetError:
            return None

    def model(self, model: Model, ceilings: Ceilings, limits: Limits) -> Names | None:
        if self.kind == "release":
            model.release(self.what.plan)
            return None
        return model.ask(self, ceilings, limits)


def drawn(rng: random.Random) -> Op:
    kind = rng.choices(("reserve", "commit", "release"), (3, 6, 1))[0]
    names = frozenset(rng.sample(PATIENTS, rng.randint(2, 5)))
    what = purchase(rng.choice(PLANS), rng.choice(("train", "train", "figures")))
    return Op(kind, what, names, rng.randint(1, 3), rng.randint(0, 3))


class CrashError(BaseException):
    """The process is dead; no `except Exception` sees it."""


class Machine:
    """Counts the steps of SQLite and the file system; at the chosen one, the disk is kept as it is, and all is over."""

    def __init__(self) -> None:
        self.left, self.folder, self.kept = -1, Path(), Path()

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.left = -1
            shutil.copytree(self.folder, self.kept)
            raise CrashError

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*given: Any, **named: Any) -> Any:
            self.step()
            result = call(*given, **named)
            self.step()
            return result

        return stepped


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()

    class Connection(sqlite3.Connection):
        def execute(self, *given: Any) -> sqlite3.Cursor:  # type: ignore[override]
            found.step()
            result = super().execute(*given)
            found.step()
            return result

        def close(self) -> None:
            super().close()
            found.step()

    connect = sqlite3.connect
    monkeypatch.setattr(audit_base.sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "factory": Connection}))
    monkeypatch.setattr(os, "fsync", found.around(lambda _: None))
    monkeypatch.setattr(chain_writer, "write_atomically", found.around(chain_writer.write_atomically))
    monkeypatch.setattr(Path, "replace", found.around(Path.replace))
    return found


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a thousand schedules flush files many thousand times."""
    where = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=where if where.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def empty(memory: Path) -> Path:
    Ledger(memory / "empty", "a")
    return memory / "empty"


Noise = list[tuple[Purchase, Names, int]]


def steps(mechanisms: Iterable[Mechanism]) -> int:
    return sum(one.steps for one in mechanisms)


def check(ledger: Ledger, model: Model, noise: Noise, ceilings: Ceilings, limits: Limits) -> None:
    """Noise that was drawn ≤ what the ledger says = the model ≤ the ceilings."""
    books = ledger.books()
    held = {slot[:2]: (claim.mechanism.steps, claim.count) for slot, claim in books.held.items()}
    assert held == {slot: (number, len(names)) for slot, (_, names, number) in model.held.items()}
    for plan in PLANS:
        told = steps(books.mechanisms(plan=plan, held=False))
        assert told == sum(number for what, _, number in model.done if what.plan == plan)
        assert sum(number for what, _, number in noise if what.plan == plan) <= told
    patients = hidden_patients(ledger._hash_key, PATIENTS)
    for name in PATIENTS:
        (group,) = books.of_patients([patients[name]])
        told = sum(map(steps, books.spent_on(group).values()))
        assert told == sum(number for _, names, number in model.done if name in names)
        assert sum(number for _, names, number in noise if name in names) <= told
        assert steps(books.history(group)) <= ceilings.patient
        assert limits.plan is None or all(steps(books.of_plan(plan, group)) <= ceilings.plan for plan in PLANS)
    for dataset in ("x", "y"):
        assert limits.dataset is None or steps(books.mechanisms(dataset=dataset)) <= ceilings.dataset
    for purpose in ("research", "care"):
        assert limits.purpose is None or steps(books.mechanisms(purpose=purpose)) <= ceilings.purpose


@pytest.mark.integration
@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(PART, SCHEDULES, PART))])
def test_no_schedule_overspends(first: int, empty: Path, machine: Machine, ceilings: Ceilings) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, first + PART):
        play(random.Random(seed), empty, machine, ceilings, seen)
        shutil.rmtree(machine.folder)
    for word in ("refused", "some left", "raced", "crashed and charged", "crashed and not charged"):
        assert seen[word] >= 10, (word, seen)


def play(rng: random.Random, empty: Path, machine: Machine, ceilings: Ceilings, seen: Counter[str]) -> None:
    folder = machine.folder = Path(shutil.copytree(empty, empty.parent / "ledger"))
    machine.kept = empty.parent / "kept"
    limits = rng.choice((LIMITS, OPEN, OPEN, OPEN, FREE, FREE))
    runs = [Ledger(folder, "a")]
    model, noise, before = Model(), Noise(), 0

    def judge(op: Op, answer: Names | None) -> None:
        assert answer == op.model(model, ceilings, limits), op
        seen["refused"] += op.kind != "release" and answer is None
        if answer is not None:
            seen["some left"] += answer != op.names
            if op.kind == "commit":
                noise.append((op.what, answer, op.steps))

    for _ in range(rng.choice((2, 3, 3, 4))):
        op, run, chance = drawn(rng), rng.choice(runs), rng.random()
        if chance > 0.9:
            other, rival = drawn(rng), Ledger(folder, "a")
            runs.append(rival)
            seen["raced"] += interrupt(run, lambda other=other, rival=rival: judge(other, other.run(rival, limits)))
        if chance < 0.28:
            before, machine.left = run.books().head.count, rng.randint(1, 60)
        try:
            answer = op.run(run, limits)
        except CrashError:
            shutil.rmtree(folder)
            machine.kept.rename(folder)
            runs = [Ledger(folder, "a")]
            charged = runs[0].books().head.count - before
            seen["crashed and charged" if charged else "crashed and not charged"] += 1
            if charged:  # what was not confirmed may be charged, but then all of it
                op.model(model, ceilings, limits)
            continue
        machine.left = -1
        vars(run).pop("_write", None)
        judge(op, answer)
    check(runs[0], model, noise, ceilings, limits)


def interrupt(ledger: Ledger, other: Callable[[], None]) -> bool:
    """Let another run do all it does after this one has decided, before it writes."""
    write = ledger._write

    def late(*given: Any) -> bool:
        del ledger._write  # type: ignore[method-assign]
        other()
        return write(*given)

    ledger._write = late  # type: ignore[method-assign]
    return True


@pytest.mark.integration
def test_a_beginning_that_is_cut_short_is_begun_again(memory: Path, machine: Machine) -> None:
    for place in range(1, 200):
        machine.folder, machine.kept = memory / f"{place}", memory / f"{place}-kept"
        machine.left = place
        try:
            Ledger(machine.folder, "a")
        except CrashError:
            ledger = Ledger(machine.kept, "a")
            assert ledger.commit(purchase(PLANS[0]), 1, once(1), ["p1"], FREE, 1) == {"p1"}
            assert verify_ledger(machine.kept, ledger.identity().public) == ()
        else:
            break
    assert 40 < place < 199


def work_for_ever(folder: Path, seed: int, drawn_noise: Any, ready: Event) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    rng, ledger = random.Random(seed), Ledger(folder, "a")
    while True:
        op = drawn(rng)
        answer = op.run(ledger, WIDE)
        for name in answer or () if op.kind == "commit" else ():
            drawn_noise[PATIENTS.index(name)] += op.steps
        ready.set()


@pytest.mark.federated
@pytest.mark.parametrize("seed", range(24))
def test_processes_that_are_killed_at_any_moment_overspend_nothing(seed: int, memory: Path, empty: Path) -> None:
    context, rng = multiprocessing.get_context("fork"), random.Random(seed)
    assert WIDE.patient is not None
    budget = WIDE.patient
    ceiling = most(lambda one: budget.holds([one]))
    tallies = [context.Array("q", len(PATIENTS), lock=False) for _ in range(2)]
    events = [context.Event() for _ in range(2)]
    runs = [
        context.Process(target=work_for_ever, args=(empty, 2 * seed + number, tallies[number], events[number]))
        for number in range(2)
    ]
    for run in runs:
        run.start()
    for event in events:
        assert event.wait(30)
    for run in rng.sample(runs, 2):
        time.sleep(rng.uniform(0, 0.06))
        assert run.pid is not None
        os.kill(run.pid, signal.SIGKILL)
        run.join()
    ledger = Ledger(empty, "a")
    assert verify_ledger(empty, ledger.identity().public, [ledger.head()]) == ()
    for number, name in enumerate(PATIENTS):
        told = steps(ledger.patient_mechanisms(name))
        assert sum(tally[number] for tally in tallies) <= told <= ceiling
    assert WIDE.purpose
    assert WIDE.purpose.holds(ledger.mechanisms(purpose="research", held=True))
    assert WIDE.purpose.holds(ledger.mechanisms(purpose="care", held=True))
    with pytest.raises(PrivacyBudgetError, match="Too few patients"):
        ledger.commit(purchase(PLANS[0], "figures"), 1, once(ceiling + 1), PATIENTS, WIDE, 1)
