"""A site to import into, images to import, a real Orthanc, and a wire between that can be cut."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eucaim_fl.cohorts.intake.importing import run_import
from eucaim_fl.cohorts.intake.landing import open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.receiver import Listener, receive
from eucaim_fl.cohorts.intake.report import ImportReport
from eucaim_fl.errors import ImportFailedError
from eucaim_fl.sitefile import SiteFile

_ORTHANC = Path("/usr/sbin/Orthanc")
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(tiny: SimpleNamespace, tmp_path: Path) -> SiteFile:
    """A tier-3 site without any image."""
    made: SiteFile = tiny.site(tmp_path, "eucaim_tier3")
    return made


@pytest.fixture
def series(tiny: SimpleNamespace, tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes one series of a patient: `series("P1", number=1, slices=3)`, each with pixels of its own."""

    def make(
        patient: str, number: int = 1, slices: int = 3, size: int = 4, folder: str = "", **more: Any
    ) -> list[Path]:
        study = f"1.2.{1 + sum(patient.encode())}"
        stored = np.random.default_rng([sum(patient.encode()), number]).integers(0, 999, (slices, size, size))
        values = {"PatientID": patient, "StudyInstanceUID": study, "StudyDate": "20190607", "modality": "MR"}
        written: list[Path] = tiny.series(
            tmp_path / (folder or "source") / patient / str(number),
            stored.astype(np.uint16),
            uid=f"{study}.{number}",
            **{**values, "BodyPartExamined": "PROSTATE", **more},
        )
        return written

    return make


@pytest.fixture
def run(site: SiteFile) -> Callable[..., ImportReport]:
    """Runs one import into the site: `run(bring, modalities=("MR",))`."""

    def call(bring: Callable[..., None], *, into: SiteFile | None = None, **options: Any) -> ImportReport:
        flags = {name: options.pop(name) for name in ("deidentify", "dry_run") if name in options}
        return run_import(into or site, CohortQuery(**options), bring, **flags)

    return call


def landed(site: SiteFile) -> dict[str, bytes]:
    """Instances in the cohort: place → bytes."""
    folder = site.cohort_folder()
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.dcm"))}


@pytest.fixture(name="landed")
def landed_fixture(site: SiteFile) -> Callable[[], dict[str, bytes]]:
    """What lies in the cohort now: place → bytes."""
    return lambda: landed(site)


class Wire:
    """A TCP proxy that counts requests, and may break off after so many bytes of answers."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.requests: list[str] = []
        self.left: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def instances_asked_for(self) -> int:
        """Requests that bring pixels over: whole series, or instances one by one."""
        paths = [line.split(" ")[1].partition("?")[0] for line in self.requests]
        return sum(not path.endswith(("/studies", "/series", "/instances")) for path in paths)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, back in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, back), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        try:
            while block := source.recv(4096):
                if not back:
                    self.requests += [x.decode() for x in block.split(b"\r\n") if x.startswith(b"GET ")]
                elif self.left is not None:
                    if len(block) > self.left:
                        break
                    self.left -= len(block)
                sink.sendall(block)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


class Orthanc:
    """A running archive."""

    def __init__(self, http_port: int, dicom_port: int) -> None:
        self.port, self.dicom_port = http_port, dicom_port

    def ask(self, path: str, data: bytes | None = None, method: str | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - always http to this machine
            return json.loads(answer.read() or b"null")

    def store(self, files: list[Path]) -> None:
        for file in files:
            self.ask("/instances", file.read_bytes())

    def clear(self) -> None:
        for patient in self.ask("/patients"):
            self.ask(f"/patients/{patient}", method="DELETE")


@pytest.fixture(scope="session")
def orthanc_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    plugin = next((p for f in _PLUGINS for p in sorted(Path(f).glob("libOrthancDicomWeb.so*"))), None)
    if not _ORTHANC.exists() or plugin is None:
        reason = "Orthanc isn't installed (Debian: apt-get install orthanc orthanc-dicomweb)."
        if os.environ.get("CI") or os.environ.get("EUCAIM_FL_REQUIRE_PACS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("orthanc")
    orthanc = Orthanc(_free_port(), _free_port())
    configuration = {
        "Plugins": [str(plugin)],
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": orthanc.port,
        "DicomPort": orthanc.dicom_port,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpBindAddresses": ["127.0.0.1"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([_ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(300):
            try:
                orthanc.ask("/system")
                break
            except OSError:
                if process.poll() is not None:
                    break
                time.sleep(0.05)
        else:
            pytest.fail(f"Orthanc does not answer: {(folder / 'log').read_text()[-2000:]}")
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield orthanc
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def orthanc(orthanc_process: Orthanc) -> Orthanc:
    """An empty Orthanc with DICOMweb."""
    orthanc_process.clear()
    return orthanc_process


@pytest.fixture
def wire(orthanc: Orthanc) -> Iterator[Wire]:
    """A way to Orthanc that counts requests and can be cut."""
    made = Wire(orthanc.port)
    yield made
    made.close()


@pytest.fixture
def listen(site: SiteFile) -> Iterator[Callable[..., SimpleNamespace]]:
    """Starts a receiver; `.port`, `.stop()` → its report."""
    running: list[Callable[[], ImportReport]] = []

    def start(query: CohortQuery | None = None, limit: int | None = None, **options: Any) -> SimpleNamespace:
        listening, ended = threading.Event(), threading.Event()
        found: dict[str, Any] = {}

        def tell(done: int, total: int | None) -> None:
            found["told"] = done

        def started(port: int) -> None:
            found["port"] = port
            listening.set()

        def work() -> None:
            with open_landing(site, query or CohortQuery()) as landing:
                landing.limit = limit or landing.limit
                found["landing"] = landing
                try:
                    receive(Listener(port=0, **options), landing, tell, idle_s=60.0, started=started, ended=ended)
                except ImportFailedError as problem:
                    found["problem"] = problem
                found["report"] = landing.tally.report(problem=found.get("problem"))
            listening.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert listening.wait(20)

        def stop() -> ImportReport:
            ended.set()
            thread.join(30)
            assert not thread.is_alive()
            report: ImportReport = found["report"]
            return report

        running.append(stop)
        return SimpleNamespace(port=found["port"], stop=stop, landing=found["landing"])

    yield start
    for stop in running:
        stop()
