"""Patients' names, numbers, UIDs, files, folders and pixels are found nowhere but at their hospital.

Searched: all traffic as it is in clear at the proxy, the coordinator's folder with the SuperLink's database, the run's
folder, MLflow's database and artifacts, the coordinator's logs. Beforehand the federation has trained, and the site's
client has failed in every one of its layers.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import os
import resource
import secrets
import shutil
import signal
import socket
import sqlite3
import ssl
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytestmark = [pytest.mark.federated, pytest.mark.long]


# --- the search ---------------------------------------------------------------------------------------------------


def _forms(needle: bytes, text: bool) -> Iterator[bytes]:
    """How a needle can be written: as it is, backwards, in hexadecimal, in base64 at any offset, and as text is."""
    yield from (needle, needle[::-1], needle.hex().encode(), needle.hex().upper().encode())
    for offset in range(3):  # what stands before decides how the letters fall; those at the ends depend on others
        coded = base64.b64encode(b"\0" * offset + needle)[(0, 2, 3)[offset] : 8 * (offset + len(needle)) // 6]
        yield from {coded, coded.replace(b"+", b"-").replace(b"/", b"_")}
    if text:
        word = needle.decode()
        yield word.encode("utf-16-le")
        yield from {urllib.parse.quote(word, safe="").encode(), word.replace(".", r"\.").encode()}
        yield "".join(f"\\u{ord(letter):04x}" for letter in word).encode()


def _layers(content: bytes, depth: int = 0) -> Iterator[bytes]:
    """Some bytes, and whatever is packed in them: gzip, zlib and ZIP, one in the other."""
    yield content
    if depth == 3:
        return
    for start, form in ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15), (b"\x78\xda", 15), (b"\x78\x01", 15)):
        at = content.find(start)
        while at >= 0:
            with contextlib.suppress(zlib.error):
                inner = zlib.decompressobj(form).decompress(memoryview(content)[at:], 2**26)
                if len(inner) > 8:
                    yield from _layers(inner, depth + 1)
            at = content.find(start, at + 1)
    if b"PK\x05\x06" in content[-(2**16) :]:
        with (
            contextlib.suppress(zipfile.BadZipFile, OSError, RuntimeError),
            zipfile.ZipFile(io.BytesIO(content)) as archive,
        ):
            for name in archive.namelist():
                yield name.encode()
                yield from _layers(archive.read(name), depth + 1)


def _tables(path: Path) -> Iterator[bytes]:
    """Every value of every table of an SQLite database, whole, wherever its pages lie."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    base.text_factory = bytes
    with contextlib.closing(base):
        names = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            for row in base.execute(f'SELECT * FROM "{name.decode()}"'):  # noqa: S608  (its own names)
                yield b"\x1f".join(v if isinstance(v, bytes) else str(v).encode() for v in row if v is not None)


class Search:
    """Where canaries are found: (what they are, where)."""

    def __init__(self, texts: dict[str, list[str]], pixels: list[bytes]) -> None:
        words = {(kind, word.encode()) for kind, several in texts.items() for word in several}
        self._text = [(kind, form.lower()) for kind, word in words for form in _forms(word, True)]
        self._pixels = [("pixels", form) for pattern in set(pixels) for form in _forms(pattern, False)]
        self.looked_at = 0

    def bytes(self, content: bytes, where: str) -> set[tuple[str, str]]:
        found = set()
        for layer in _layers(content):
            self.looked_at += 1
            lower = layer.lower()  # a base64 form in other letters is none, but costs nothing
            found |= {(kind, where) for kind, form in self._text if form in lower}
            found |= {(kind, where) for kind, form in self._pixels if form in layer}
        return found

    def folder(self, folder: Path, without: tuple[Path, ...] = ()) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for path in sorted(folder.rglob("*")):
            if any(path.is_relative_to(left) for left in without):
                continue
            where = str(path.relative_to(folder))
            found |= self.bytes(where.encode(), f"the name of {where}")
            if not path.is_file():
                continue
            content = path.read_bytes()
            found |= self.bytes(content, where)
            if content.startswith(b"SQLite format 3"):
                for row in _tables(path):
                    found |= self.bytes(row, f"a row of {where}")
        return found


# --- everything that can go wrong at a site -----------------------------------------------------------------------


def _worker(attacked) -> int:
    """The process at site a that sees images: forked by the server of processes that its client has started."""
    parents, sizes = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)], sizes[int(place.name)] = int(fields[1]), int(fields[21])
    children = {pid for pid, parent in parents.items() if parent == attacked.clients["a"].pid}
    return max((pid for pid, parent in parents.items() if parent in children), key=lambda pid: sizes[pid])


@pytest.fixture(scope="module")
def faults(attacked, hand, run) -> dict[str, Any]:
    """Let site a's client fail in every layer by real faults; what it answered each time, None for nothing."""
    weights, home = attacked.last_weights(), attacked.home("a")
    cohort = attacked.folder / "StationKolibri"
    seeds = iter(range(1000, 2000))
    said: dict[str, Any] = {}

    def ask(kind: str = "hello", **changes: Any) -> Any:
        plan = attacked.plan(seed=next(seeds), **changes)
        return hand.ask("a", plan, kind, weights=None if kind == "hello" else weights)

    @contextlib.contextmanager
    def changed(*paths: Path) -> Iterator[None]:
        """Files that are put back afterwards."""
        before = {path: path.read_bytes() for path in paths}
        try:
            yield
        finally:
            for path, content in before.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    images, labels = sorted(cohort.rglob("befundxk_*.dcm")), sorted(cohort.rglob("segmentation.dcm"))
    with changed(*images):
        for path in images[::3]:
            path.write_bytes(path.read_bytes()[:-900] + b"Quintavalle^Ottilie")
        said["damaged images"] = ask()
        for path in images:
            path.write_bytes(b"DICM Quintavalle^Ottilie")
        said["no image can be read"] = ask()
    with changed(*labels):
        for path in labels:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        said["damaged labels"] = ask()
    said["a label that nobody has"] = ask(task={"labels": ["spleen"]})
    table = cohort / "clinical_mandatory_view.csv"
    with changed(table):
        table.write_text("patient_id\nMRN773199KQ\n\0\xff")
        said["a damaged table"] = ask()
        table.unlink()
        said["a missing table"] = ask()
    with changed(home.site_file):
        values = yaml.safe_load(home.site_file.read_text())
        home.site_file.write_text(yaml.safe_dump({**values, "Quintavalle": str(cohort)}))
        said["a damaged site file"] = ask()
        home.site_file.write_text(yaml.safe_dump({**values, "consent": {"table": "befundxk_consent.csv"}}))
        said["a missing consent table"] = ask()
        (cohort / "befundxk_consent.csv").write_text("patient_id,status\nMRN773100KQ,Quintavalle\n")
        said["a damaged consent table"] = ask()
        (cohort / "befundxk_consent.csv").unlink()
    with changed(home.policy_file):
        home.policy_file.write_text(f"schema: eucaim-fl-policy/1\nQuintavalle: {cohort}\n")
        said["a damaged policy"] = ask()
        home.policy_file.write_text("Quintavalle: [\n")
        said["a policy that is no YAML"] = ask()
    said["training diverges"] = ask("round", training={"optimizer": {"name": "sgd", "lr": 1e30, "momentum": 0.0}})
    said["a network that no image fits"] = ask(model={"args": {"channels": [4] * 9, "strides": [2] * 8}})

    worker = _worker(attacked)
    used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(worker, resource.RLIMIT_AS, (used + 2**16, used + 2**16))
    said["out of memory"] = ask("round", training={"batch_size": 1024})
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)

    plan = attacked.plan(seed=next(seeds), training={"local_steps": 100_000})
    text = plan.canonical_json()
    sent = hand.push("a", hand.seal("a", text, hand.instruction(text, 1, weights), kind="round", round=1), "round")
    _until(lambda: attacked.status("a").get("working"))
    time.sleep(1.0)
    os.kill(_worker(attacked), signal.SIGKILL)
    said["killed at work"] = hand.answer("a", sent)

    cache = next(path for path in (home.folder / "cache").rglob("*.npy"))
    plan = attacked.plan(seed=next(seeds))
    assert hand.ask("a", plan).code == ""
    shutil.rmtree(cache.parent)
    said["the cache is gone"] = hand.ask("a", plan, "round", weights=weights)

    aside = home.audit_folder.with_name("aside")
    home.audit_folder.rename(aside)
    home.audit_folder.write_text("Quintavalle")
    text = attacked.plan(seed=next(seeds)).canonical_json()
    sent = hand.push("a", hand.seal("a", text, hand.instruction(text)))
    attacked.clients["a"].wait(30)
    said["no audit log"] = hand.answer("a", sent, 0.0)
    home.audit_folder.unlink()
    aside.rename(home.audit_folder)
    attacked.start_site("a")
    attacked.wait_connected(["a"])
    said["afterwards"] = ask()
    return said


def _until(what: Callable[[], Any], wait_s: float = 30.0) -> None:
    until = time.monotonic() + wait_s
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


class TestFailuresOfTheClient:
    """Each leaves as a code and a sentence, and the client serves on."""

    @pytest.mark.parametrize(
        ("fault", "codes"),
        [
            ("no image can be read", {"EFL201"}),
            ("damaged labels", {"EFL201"}),
            ("a label that nobody has", {"EFL201", "EFL203"}),
            ("a damaged table", {"EFL201"}),
            ("a missing table", {"EFL201"}),
            ("a damaged site file", {"EFL103"}),
            ("a missing consent table", {"EFL206"}),
            ("a damaged consent table", {"EFL206"}),
            ("a damaged policy", {"EFL104"}),
            ("a policy that is no YAML", {"EFL104"}),
            ("training diverges", {"EFL601"}),
            ("a network that no image fits", {"EFL101", "EFL102"}),
            ("out of memory", {"EFL303", "EFL000"}),
            ("killed at work", {"EFL303"}),
        ],
    )
    def test_it_becomes_a_coded_refusal(self, faults, fault, codes):
        assert faults[fault].code in codes, faults[fault].reason

    def test_patients_whose_images_are_damaged_are_left_out_and_counted(self, faults):
        said = faults["damaged images"]
        assert said.code or said.report["quarantined"] > 0

    def test_a_cache_that_was_deleted_is_a_code_or_no_fault_at_all(self, faults):
        assert faults["the cache is gone"].code in ("", "EFL000", "EFL201", "EFL502")

    def test_without_its_audit_log_the_client_says_nothing_and_ends(self, attacked, faults):
        assert faults["no audit log"] is None
        assert "EFL701" in attacked.told("a")

    def test_it_serves_again_afterwards(self, faults):
        assert (faults["afterwards"].code, faults["afterwards"].report["quarantined"]) == ("", 0)

    def test_the_site_s_own_logs_do_say_what_happened_and_where(self, attacked, faults):
        """So there was something that could have left."""
        own = attacked.told("a") + attacked.home("a").log_file.read_text(errors="replace")
        assert "StationKolibri" in own
        assert "Traceback" in own


# --- what is found ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search(attacked, canaries, faults) -> Search:
    """Looks for all canaries, prepared tensors included."""
    pixels = list(canaries.pixels)
    for site in ("a", "b"):
        for path in sorted((attacked.home(site).folder / "cache").rglob("*.npy"))[:3]:
            values = np.load(path).reshape(-1)
            pixels += [
                row.tobytes()
                for row in np.split(values[: len(values) // 32 * 32], len(values) // 32)
                if len(set(row)) > 24
            ][:5]
    assert all(len(pattern) >= 64 for pattern in pixels)
    return Search(canaries.texts, pixels)


def _traffic(attacked, way: str) -> bytes:
    return b"\n".join(bytes(note) for direction, note in attacked.tap.taken if direction == way)


class TestNothingOfAPatientLeaves:
    @pytest.mark.parametrize("way", ["up", "down"])
    def test_not_in_the_traffic(self, attacked, search, way):
        taken = _traffic(attacked, way)
        assert len(taken) > 50_000
        assert (b"POST /v1/fleet/push-object" if way == "up" else b"HTTP/1.1 200 OK") in taken
        assert b"parcel" in taken  # instructions and answers, as they are in clear
        assert search.bytes(taken, way) == set()

    def test_not_in_the_coordinator_s_folder_nor_in_the_superlink_s_database(self, attacked, search):
        assert (attacked.federation.state_folder / "superlink.db").stat().st_size > 0
        assert search.folder(attacked.federation.folder) == set()

    def test_not_in_the_runs_nor_in_mlflow(self, attacked, run, search):
        runs = attacked.folder / "runs"
        assert (runs / "mlflow.db").stat().st_size > 0
        assert (run.folder / "report.html").stat().st_size > 0
        assert search.folder(runs) == set()

    def test_not_in_the_coordinator_s_log(self, attacked, search):
        assert len(attacked.told("federation")) > 1000
        assert search.bytes(attacked.told("federation").encode(), "log") == set()

    def test_not_in_what_the_site_answered(self, search, faults):
        for fault, said in faults.items():
            if said is not None:
                assert search.bytes(f"{said.code} {said.reason} {said.report}".encode(), fault) == set()


class TestTheSearchItself:
    """It finds what is there: otherwise the tests above would say nothing."""

    def test_the_hospitals_are_full_of_what_is_searched(self, attacked, search):
        kinds = {
            kind for site in ("StationKolibri", "StationZeisig") for kind, _ in search.folder(attacked.folder / site)
        }
        assert kinds == {"name", "number", "study", "series", "file", "folder", "pixels"}
        homes = {kind for kind, _ in search.folder(attacked.home("a").folder)}
        assert {"pixels", "folder"} <= homes  # the cache, and the site's own files

    @pytest.mark.parametrize("kind", ["text", "pixels"])
    @pytest.mark.parametrize(
        "hidden",
        [
            lambda raw: raw,
            lambda raw: raw.hex().encode(),
            lambda raw: raw.hex().upper().encode(),
            lambda raw: base64.b64encode(raw),
            lambda raw: base64.b64encode(b"a" + raw),
            lambda raw: base64.b64encode(b"ab" + raw),
            lambda raw: gzip.compress(b"head" + raw),
            lambda raw: b"head" + zlib.compress(raw * 2) + b"tail",
            lambda raw: gzip.compress(zlib.compress(base64.b64encode(raw))),
        ],
    )
    def test_it_finds_one_however_it_is_written(self, search, canaries, kind, hidden):
        raw = b"MRN773104KQ" if kind == "text" else canaries.pixels[0]
        wrapped = secrets.token_bytes(500) + hidden(raw) + secrets.token_bytes(500)
        assert {name for name, _ in search.bytes(wrapped, "x")} == ({"number"} if kind == "text" else {"pixels"})

    def test_it_finds_one_in_a_database_a_zip_and_a_name_of_a_file(self, search, tmp_path):
        base = sqlite3.connect(tmp_path / "x.db")
        base.execute("CREATE TABLE t (a BLOB)")
        base.execute("INSERT INTO t VALUES (?)", (gzip.compress(b"x" * 9000 + b"Quintavalle^O"),))
        base.commit()
        base.close()
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", "MRN773104KQ " * 100)
        (tmp_path / "befundxk.txt").write_text("nothing")
        assert {kind for kind, _ in search.folder(tmp_path)} == {"name", "number", "file"}

    def test_it_finds_one_that_passes_the_proxy(self, attacked, search):
        context = ssl.create_default_context(cafile=str(attacked.federation.ca_file))
        before = len(attacked.tap.taken)
        with (
            socket.create_connection(("127.0.0.1", attacked.tap_port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.sendall(
                b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18\r\n\r\nOttilie MRN773100K"
            )
            line.recv(1000)
        time.sleep(0.2)
        taken = b"".join(bytes(note) for way, note in attacked.tap.taken[before:] if way == "up")
        del attacked.tap.taken[before:]
        assert {kind for kind, _ in search.bytes(taken, "up")} == {"name", "number"}
