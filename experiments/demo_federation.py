"""A federation of three hospitals on this machine, from the first command to what left each of them.

    make demo-federation          or: python experiments/demo_federation.py --help

A coordinator (SuperLink behind nginx) and the clients of the hospitals a, b and c run as processes of their own and
speak over TLS on loopback. Every command is shown as a person would type it, in the folder that is named at the end,
which is made anew by each call. Everything is stopped at the end, also after a failure and after Ctrl-C.
Exit 0: done; 1: the weights are not those of the same recipe without servers; 2: something to mend on this machine;
130: stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from eucaim_fl.durable import exclusive
from eucaim_fl.errors import EucaimError, RunFolderBusyError, ServiceError, ServiceStateError
from eucaim_fl.federation.proxy import find_nginx
from eucaim_fl.federation.rehearsal import Rehearsal
from eucaim_fl.sitefile import DATA_VARIABLE, data_root

__all__ = ["Shown", "left_site", "main", "stopping_signals"]

_HERE = Path(__file__).resolve().parent
_HOSPITALS = ("a", "b", "c")
_NAME = "hospitals"
_STOP_S = 20.0
_ANSWERS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("prepare", "demo"): (),
    ("federation", "init"): ("Made", "Coordinator's key"),
    ("federation", "invite"): ("Wrote",),
    ("site", "init"): ("coordinator's key", "Made", "key of this site"),
    ("federation", "admit"): ("Site", "Fingerprint", "Admitted"),
    ("federation", "status"): ("SuperLink", "Certificate"),
    ("site", "audit"): ("The audit log",),
    ("site", "stop"): ("The client",),
    ("federation", "stop"): ("Stopped",),
}
"""How lines begin that are shown of a command's answer."""


def _say(text: str = "") -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


class Shown(Rehearsal):
    """A rehearsal that shows each command, by whom it would be typed, and what it answers in short."""

    def _typed(self, arguments: Sequence[str]) -> None:
        who = "coordinator" if arguments[0] in ("federation", "train") else ""
        for place, word in enumerate(arguments):
            if arguments[0] == "site" and word in ("--home", "--invite"):
                who = f"hospital {Path(arguments[place + 1]).name.partition('.')[0]}"
        _say(f"{who:>12} $ eucaim-fl {' '.join(self._short(word) for word in arguments)}")

    def _short(self, text: str) -> str:
        """Without this machine's own part of paths."""
        return text if "file://" in text else text.replace(f"{self.folder}/", "")

    def answer(self, text: str) -> None:
        """Show a line of an answer."""
        _say(f"{'':>14} {self._short(text)}")

    def run(
        self, *arguments: str, timeout_s: float = 120.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command, show it and the start of its answer."""
        self._typed(arguments)
        done = super().run(*arguments, timeout_s=timeout_s, check=check)
        wanted = _ANSWERS.get(arguments[:2], ())
        for line in done.stdout.splitlines():
            if line.startswith(wanted):
                self.answer(line)
        return done

    def spawn(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process that stays, and show its command."""
        self._typed(arguments)
        process = super().spawn(log, *arguments)
        self.answer(f"runs as process {process.pid}; its log is {self.log(log)}")
        return process

    def write_files(self, site: str, policy: Mapping[str, Any]) -> None:
        """Write what hospital IT writes with an editor."""
        super().write_files(site, policy)
        home = self._short(str(self.home(site).folder))
        _say(f"{f'hospital {site}':>12}   (fills in {home}/site.yaml: its cohort; {home}/policy.yaml: what may leave)")

    def show_training(self, *overrides: str, table: bool = True) -> dict[str, Any]:
        """Train, with every line shown as it comes; returns the content of result.json. Raises ServiceError.

        table: show the table of results, too.
        """
        arguments = ("train", *overrides)
        self._typed(arguments)
        process = subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env={**self.environment, "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101  (it was started with a pipe)
        last = ""
        try:
            for line in process.stdout:
                last = line.strip() or last
                if table or "rounds over" in line or ": 3 sites," in line:
                    self.answer(line.rstrip())
            process.wait()
        finally:
            _end(process)
        if process.returncode != 0:
            raise ServiceError(f"`eucaim-fl train` failed with exit code {process.returncode}.", fix="See above.")
        result: dict[str, Any] = json.loads((Path(last) / "result.json").read_text(encoding="utf-8"))
        return result


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process with its children, if it still runs: first as Ctrl-C would."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def stopping_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP do what Ctrl-C does; once the first came, a second does not disturb the stopping."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left_site(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What left a site, in words, from `site audit show --json`: messages, bytes, what of it, from how many people."""
    sent = [line["left"] for line in lines if line["left"] is not None]
    patients = sorted({entry["patients"] for entry in sent if entry["patients"] is not None})
    updates = [entry for entry in sent if entry["arrays"]]
    names: dict[str, set[str]] = {}
    for entry in sent:
        for split, metrics in entry["metrics"].items():
            names.setdefault(split, set()).update(metrics)
    told = [f"{len(sent)} messages, {sum(entry['bytes'] for entry in sent):,} bytes in all"]
    if updates:
        told.append(
            f"{len(updates)} updates of {updates[0]['arrays']} arrays of weights each, with metrics beside them"
        )
    told += [f"metrics of {split} patients: {', '.join(sorted(found))}" for split, found in sorted(names.items())]
    if patients:
        told.append(f"training patients behind it: {' or '.join(map(str, patients))}")
    beside = ""
    if pictures := sum(entry["pictures"] for entry in sent):
        told.append(
            f"{pictures} example pictures, since the site file calls its data synthetic and the policy allows it"
        )
        beside = "besides these example pictures (synthetic data) "
    if patients:
        told.append(f"{beside}no image, no name, no identifier")
    withheld = sum(line["kind"] == "withheld" for line in lines)
    if withheld:
        told.append(f"{withheld} times only a coded reason")
    return told


def _fresh(folder: Path) -> None:
    """Remove what an earlier call left. Raises ServiceStateError if the folder is something else."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - {".lock"} and "federations" not in there:
        raise ServiceStateError(
            "The folder holds something else than an earlier demo.", fix="Name another.", local_detail=str(folder)
        )
    for name in there - {".lock"}:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _show_what_left(demo: Shown) -> None:
    for site in demo.sites:
        home = str(demo.home(site).folder)
        heads = demo.folder / f"{site}.heads.json"
        lines = json.loads(demo.run("site", "audit", "show", "--json", "--home", home).stdout)
        for text in left_site(lines):
            demo.answer(text)
        done = Rehearsal.run(demo, "federation", "heads", _NAME, site)
        heads.write_text(done.stdout, encoding="utf-8")
        _say(f"{'coordinator':>12} $ eucaim-fl federation heads {_NAME} {site} > {heads.name}")
        demo.run("site", "audit", "verify", "--home", home, "--heads", str(heads))


def _run(demo: Shown, given: argparse.Namespace) -> bool:
    """The whole demo; False if the weights are not the same."""
    recipe = (
        "experiment=demo", f"rounds={given.rounds}", f"training.local_steps={given.steps}",
        "training.optimizer.lr=0.02", "federation.quorum=3", "federation.quorum_wait_s=60", "tracking=none",
    )  # fmt: skip
    _say("1. The coordinator makes a federation and starts its servers.")
    demo.make_federation()
    demo.start_servers(timeout_s=120.0)
    _say("\n2. It invites the hospitals; each makes its own keys, asks back, and is admitted.")
    for site in demo.sites:
        demo.enrol(site)
    _say("\n3. The hospitals' clients start. A hospital opens no port: it asks the coordinator for work.")
    for site in demo.sites:
        demo.start_site(site)
    demo.wait_connected(demo.sites, timeout_s=120.0)
    demo.run("federation", "status", _NAME)
    _say("\n4. A researcher trains over the hospitals: the recipe that also runs on one machine.")
    trained = demo.show_training(*recipe, f"federation={_NAME}")
    _say(
        "\n5. What left each hospital, by its own audit log, and whether the log agrees with what the coordinator saw."
    )
    _show_what_left(demo)
    same = True
    if given.compare:
        _say("\n6. The same recipe on this machine, without servers: the same weights?")
        files = ",".join(str(demo.home(site).site_file) for site in demo.sites)
        local = demo.show_training(*recipe, f"sites=[{files}]", "federation=local", table=False)
        same = bool(local["weights_sha256"] == trained["weights_sha256"])
        demo.answer(f"over the federation: {trained['weights_sha256']}")
        demo.answer(f"on one machine:      {local['weights_sha256']}")
        demo.answer("the same to the bit" if same else "NOT the same: this is a defect; please report it")
    _say(f"\n{7 if given.compare else 6}. Everything stops.")
    for site in demo.sites:
        demo.run("site", "stop", "--home", str(demo.home(site).folder))
    demo.run("federation", "stop", _NAME)
    return same


def _tell_where(demo: Shown, seconds: float) -> None:
    shown = os.path.relpath(demo.folder)
    _say(f"\nThat took {seconds:.0f} s. To look at, in {shown}:")
    for report in sorted(demo.folder.glob("runs/*/report.html")):
        _say(f"  {demo._short(str(report))}    the run's report for people (a browser opens it)")
    _say("  homes/a, homes/b, homes/c            what each hospital keeps: site.yaml, policy.yaml, keys, audit log")
    _say(f"  federations/{_NAME}                what the coordinator keeps")
    _say("  logs                                 what the servers and the clients said")
    _say(
        f"Try there: cd {shown}; eucaim-fl site audit show --home homes/a; "
        "eucaim-fl site policy check homes/a/policy.yaml"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/demo_federation"), help="Made anew; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40, help="Optimizer steps of a hospital a round.")
    parser.add_argument("--no-compare", dest="compare", action="store_false", help="Leave out step 6.")
    return parser


def main() -> int:
    """Run the demo; returns the exit code."""
    given = _parser().parse_args()
    began = time.monotonic()
    data = {DATA_VARIABLE: str(data_root().absolute())}  # the processes work in another folder
    files = [_HERE.parent / "sites" / f"{site}.yaml" for site in _HOSPITALS]
    try:
        find_nginx()
        with (
            stopping_signals(),
            exclusive(given.folder.absolute()),
            Shown(given.folder, files, name=_NAME, environment=data) as demo,
        ):
            if demo.processes():
                _say("Ending what an earlier demo left behind when it was killed.")
                demo.end_all(0.0)
            _fresh(demo.folder)
            _prepare(demo)
            same = _run(demo, given)
            demo.stop()
            _tell_where(demo, time.monotonic() - began)
        return 0 if same else 1
    except RunFolderBusyError:
        _say("The demo already runs in this folder.")
        return 2
    except EucaimError as problem:
        print(problem.for_terminal(), file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        _say("\nStopped; no process is left.")
        return 130


def _prepare(demo: Shown) -> None:
    """Build the demo hospitals if they are not there."""
    from eucaim_fl.cohorts.synthetic import demo_is_there

    if not demo_is_there(data_root() / "demo"):
        _say("0. The hospitals' images are made (synthetic CT).")
        demo.run("prepare", "demo", timeout_s=300.0)
        _say()


if __name__ == "__main__":
    sys.exit(main())
