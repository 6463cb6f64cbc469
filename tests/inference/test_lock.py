"""A process that is locked in can compute, and nothing else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import LockError
from eucaim_fl.inference.lock import REQUIRED, can_lock, close_off, lock

ALLOWED = {"compute", "take memory", "start a thread", "ask the time", "random numbers"}
ROOT = Path(__file__).parents[2]


def tried(folder: Path, how: str) -> tuple[list[str], dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("intruder.py")), str(os.getpid()), how],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        check=True,
        timeout=120,
    )
    layers, told = json.loads(done.stdout)
    return layers, told


class TestALockedProcess:
    @pytest.mark.parametrize("how", ["all", "filter"])
    def test_it_can_compute_and_nothing_else(self, tmp_path: Path, how: str) -> None:
        layers, told = tried(tmp_path, how)
        assert {name for name, outcome in told.items() if outcome == "done"} == ALLOWED
        assert {"limits", "system calls"} <= set(layers)
        assert "no sockets" in layers or how == "filter"
        assert told["allocate"] == "MemoryError"
        assert told["internet socket"] == told["write a file"] == told["read a file"] == "PermissionError"
        assert not list(tmp_path.iterdir())

    def test_threads_from_before_are_held_too(self, tmp_path: Path) -> None:
        assert tried(tmp_path, "filter")[1]["older thread"] == "PermissionError"

    def test_all_layers_are_told(self, tmp_path: Path) -> None:
        layers, _ = tried(tmp_path, "all")
        assert set(REQUIRED) <= set(layers)

    def test_the_same_attempts_succeed_without_a_lock(self, tmp_path: Path) -> None:
        """Or the others would show nothing."""
        code = "import socket, pathlib, os; socket.socket().close(); pathlib.Path('taken').write_bytes(b'x'); os.pipe()"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        assert (tmp_path / "taken").read_bytes() == b"x"


class TestAnotherMachine:
    def test_it_is_refused_before_anything_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        assert not can_lock()
        with pytest.raises(LockError, match="x86-64 or aarch64"):
            close_off(os.getppid())
        with pytest.raises(LockError, match="x86-64 or aarch64"):
            lock(2**30, [])


class TestTheFilter:
    def test_every_jump_lands_within_it_and_it_ends_as_it_should(self) -> None:
        from eucaim_fl.inference import lock as module

        machines: list[Any] = list(module._MACHINES.values())
        early = [module._without(one, one.network) for one in machines]
        for program in (*early, *(module._program(one, 1) for one in machines)):
            steps = [module.struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
            assert all(at + 1 + max(step[1:3]) < len(steps) for at, step in enumerate(steps) if step[0] & 7 == 5)
            assert steps[-1] == (0x06, 0, 0, 0x7FFF0000 if program in early else 0x00050001)


class TestBeforeTheLock:
    def test_libraries_that_load_can_open_no_socket_but_read_what_is_installed(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, socket; from eucaim_fl.inference.lock import close_off; close_off(int(sys.argv[1]))\n"
            "import colorsys\n"
            "try: socket.socket()\n"
            "except PermissionError: print('no socket')"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(os.getpid())],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "no socket\n"
