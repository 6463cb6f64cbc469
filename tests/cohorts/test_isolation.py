from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eucaim_fl.cohorts import isolation
from eucaim_fl.cohorts.isolation import Result, close, map_isolated
from eucaim_fl.cohorts.isolation_worker import answer
from eucaim_fl.errors import UnreadableFileError, WorkerError

pytestmark = pytest.mark.federated

WORK = """
import ctypes, os, resource, signal, sys, time
from eucaim_fl.errors import SeriesError

def echo(item):
    return item

def add(item, shared):
    return item + shared

def process(item):
    return os.getpid()

def loaded(item):
    return sorted({"torch", "monai"} & set(sys.modules))

def limits(item):
    return [resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_AS)[0] > 0,
            os.readlink("/proc/self/fd/0"), os.readlink("/proc/self/fd/1"), os.readlink("/proc/self/fd/2")]

def hostile(item):
    if item == "sleeps":
        time.sleep(60)
    if item == "segfault":
        ctypes.string_at(0)
    if item == "memory":
        return len(b"x" * 3_000_000_000)
    if item == "memory in pieces":
        return [bytes(1000) for _ in range(10_000_000)] and 1
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exits":
        os._exit(7)
    if item == "known":
        raise SeriesError("Slices overlap.", local_detail="here")
    if item == "unknown":
        raise KeyError("why")
    if item == "prints":
        print("noise" * 1000, flush=True)
        os.write(1, b"more noise")
    if item == "no json":
        return {1, 2}
    if item == "endless":
        def deeper(): return deeper()
        return deeper()
    return item

def parent_of(item):
    time.sleep(item)
    return os.getppid()
"""


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that only this test's processes can import, and no workers of an earlier test."""
    (tmp_path / "isolated_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("isolated_work", None)
    close()
    yield
    close()
    sys.modules.pop("isolated_work", None)


def results(items: list[object], function: str = "hostile", **options: object) -> list[Result]:
    found = dict(map_isolated(f"isolated_work:{function}", items, **options))  # type: ignore[arg-type]
    assert sorted(found) == list(range(len(items)))
    return [found[number] for number in range(len(items))]


def is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def ends(process: int) -> bool:
    for _ in range(200):
        if not is_alive(process):
            return True
        time.sleep(0.02)
    return False


class TestMapIsolated:
    def test_every_item_gets_its_own_result(self) -> None:
        items = list(range(5000))
        assert [one.value for one in results(items, "echo", workers=2)] == items

    def test_nothing_to_do_starts_no_process(self) -> None:
        assert results([], "echo") == []
        assert not isolation._idle

    def test_values_that_json_knows_arrive_as_they_were(self) -> None:
        items: list[object] = [None, [], "[]", "Sshared", {"a": [1.5, True]}, "é\n\udc80", "x" * 300_000]
        assert [one.value for one in results(items, "echo")] == items

    def test_shared_values_change_from_call_to_call(self) -> None:
        for shared in (10, 20, 20):
            assert [one.value for one in results([1, 2], "add", shared=shared)] == [1 + shared, 2 + shared]

    def test_without_workers_it_works_in_this_process(self) -> None:
        assert [one.value for one in results([1, 2], "process", workers=0)] == [os.getpid()] * 2
        assert [one.value for one in results([1], "add", shared=1, workers=0)] == [2]

    def test_workers_are_other_processes_and_are_used_again(self) -> None:
        first, second = ({one.value for one in results([1] * 4, "process")} for _ in range(2))
        assert first == second
        assert os.getpid() not in first

    def test_a_worker_has_no_streams_no_core_files_and_bounded_memory(self) -> None:
        assert results([0], "limits")[0].value == [0, True, "/dev/null", "/dev/null", "/dev/null"]

    def test_a_worker_never_holds_torch(self) -> None:
        assert results([0], "loaded")[0].value == []

    def test_a_work_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(WorkerError, match="could not be started") as caught:
            list(map_isolated("isolated_work:missing", [1]))
        assert "AttributeError" in caught.value.local_detail


class TestHostileItems:
    def test_each_costs_itself_alone_and_says_why(self) -> None:
        bad = {
            "sleeps": "A file took longer than 3 s to read.",
            "segfault": "Reading a file crashed its process.",
            "memory": "Reading a file needed more memory than allowed.",
            "memory in pieces": "Reading a file needed more memory than allowed.",
            "killed": "Reading a file needed more memory than allowed.",
            "exits": "Reading a file crashed its process.",
            "unknown": "A file could not be read.",
            "no json": "A file could not be read.",
            "endless": "A file could not be read.",
        }
        items = [item for name in bad for item in (f"good {name}", name)]
        found = dict(zip(items, results(items, workers=2, seconds=3.0, memory_bytes=400_000_000), strict=True))
        for name, reason in bad.items():
            assert found[f"good {name}"] == Result(f"good {name}")
            assert (found[name].code, found[name].reason, found[name].value) == ("EFL204", reason, None)

    def test_an_error_of_ours_keeps_its_code_and_reason(self) -> None:
        assert results(["known"])[0] == Result(None, "EFL202", "Slices overlap.", "here")

    def test_the_others_of_a_batch_are_not_blamed_for_a_death(self) -> None:
        items = [f"item {n}" if n % 500 != 499 else "exits" for n in range(2000)]
        found = results(items)
        assert [n for n, one in enumerate(found) if one.code] == [499, 999, 1499, 1999]
        assert all(one.value == item for one, item in zip(found, items, strict=True) if not one.code)

    def test_what_a_library_prints_is_no_answer(self) -> None:
        assert [one.value for one in results(["prints", "after"])] == ["prints", "after"]

    def test_in_this_process_errors_become_results_too(self) -> None:
        found = results(["known", "unknown", "fine"], workers=0)
        assert [one.code for one in found] == ["EFL202", "EFL204", ""]

    def test_an_answer_beyond_memory_is_the_servers_affair(self) -> None:
        def hungry(item: object) -> object:
            raise MemoryError("full")

        with pytest.raises(MemoryError, match="full"):
            answer(hungry, "1", "null")

    def test_an_error_in_the_worker_carries_its_local_detail_apart(self) -> None:
        def broken(item: object) -> object:
            raise UnreadableFileError("A file is broken.", local_detail="P1/1.dcm")

        assert answer(broken, "1", "null") == b'[null, "EFL204", "A file is broken.", "P1/1.dcm"]'


class TestTheCaller:
    def test_items_are_taken_as_they_are_needed(self) -> None:
        taken = 0

        def endless() -> Iterator[int]:
            nonlocal taken
            while True:
                taken += 1
                yield taken

        running = map_isolated("isolated_work:echo", endless(), workers=2)
        for _ in range(1000):
            next(running)
        running.close()
        assert taken < 5000

    def test_one_that_stops_ends_the_workers_that_are_busy(self) -> None:
        running = map_isolated("isolated_work:parent_of", [60, 0], workers=2)
        assert next(running)[0] == 1
        everyone = {worker.process.pid for worker in isolation._living if is_alive(worker.process.pid)}
        running.close()
        (idle,) = (worker.process.pid for worker in isolation._idle)
        assert is_alive(idle)
        assert len(everyone) == 2
        assert not any(is_alive(process) for process in everyone - {idle})

    def test_one_that_is_slow_does_not_make_workers_overdue(self) -> None:
        running = map_isolated("isolated_work:echo", range(50), workers=2, seconds=0.2)
        found = []
        for number, one in running:
            if number % 20 == 0:
                time.sleep(0.3)
            found.append(one.code)
        assert found == [""] * 50

    def test_a_worker_that_died_while_idle_is_replaced(self) -> None:
        first = results([1], "process")[0].value
        os.kill(first, signal.SIGKILL)
        assert results([1], "process")[0].value != first

    def test_workers_end_with_it_whatever_kills_it(self) -> None:
        code = (
            "from eucaim_fl.cohorts.isolation import map_isolated\n"
            "run = map_isolated('isolated_work:process', iter([1, 2]))\n"
            "print(next(run)[1].value, flush=True)\n"
            "import time; time.sleep(60)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as caller:
            assert caller.stdout is not None
            worker = int(caller.stdout.readline())
            assert is_alive(worker)
            caller.kill()
        assert ends(worker)

    def test_it_may_be_a_daemonic_process(self) -> None:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_from_a_daemon, args=(there,), daemon=True)
        results([1], "process")  # the child must leave the parent's worker alone
        process.start()
        assert here.recv() == [1, 2, 3]
        process.join(10)
        assert results([4], "echo")[0].value == 4


def _from_a_daemon(pipe: multiprocessing.connection.Connection) -> None:
    pipe.send([one.value for _, one in sorted(map_isolated("isolated_work:echo", [1, 2, 3]))])
    close()
