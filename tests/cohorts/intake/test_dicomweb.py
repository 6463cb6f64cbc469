"""Archives that lie, break off, or never end: small servers that answer as each test says."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from eucaim_fl.cohorts.intake.dicomweb import Archive, import_dicomweb
from eucaim_fl.cohorts.intake.landing import open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import ImportReport, Reason
from eucaim_fl.cohorts.intake.web import Session, credentials
from eucaim_fl.errors import ImportFailedError
from eucaim_fl.sitefile import SiteFile

Answer = tuple[int, dict[str, str], bytes | Iterator[bytes]]
MULTIPART = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=abc'}


def multipart(*files: bytes) -> bytes:
    return b"".join(b"--abc\r\n\r\n" + raw + b"\r\n" for raw in files) + b"--abc--"


def tagged(**values: str) -> dict[str, Any]:
    tags = {"study": "0020000D", "series": "0020000E", "sop": "00080018", "part": "00180015"}
    return {tags[name]: {"vr": "UI", "Value": [value]} for name, value in values.items()}


class FakeArchive:
    """Holds files; `wado`, `lists` or `answers` replace what it says. requests: paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.answers: Callable[[str, dict[str, str]], Answer | None] = lambda path, headers: None
        self.wado: Callable[[str], Answer | None] = lambda path: None
        self.series_extra: list[Any] = []
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                outer.headers.append(dict(self.headers))
                status, headers, body = outer.answer(self.path, dict(self.headers))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if isinstance(body, bytes):
                    self.send_header("Content-Length", headers.get("X-Length", str(len(body))))
                self.end_headers()
                try:
                    for block in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(block)
                except OSError:
                    pass

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/dicom-web"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def hold(self, files: list[Path]) -> None:
        for file in files:
            whole = pydicom.dcmread(file)
            self.files[whole.StudyInstanceUID, whole.SeriesInstanceUID, whole.SOPInstanceUID] = file.read_bytes()

    def answer(self, path: str, headers: dict[str, str]) -> Answer:
        special = self.answers(path, headers)
        if special is not None:
            return special
        where, _, query = path.partition("?")
        offset = next((int(p[7:]) for p in query.split("&") if p.startswith("offset=")), 0)
        steps = where.removeprefix("/dicom-web/").split("/")
        if steps == ["series"]:
            found = sorted({key[:2] for key in self.files})
            listed = [*({**tagged(study=s, series=e)} for s, e in found), *self.series_extra]
        elif steps[-1] == "instances":
            listed = [tagged(study=k[0], series=k[1], sop=k[2]) for k in self.files if k[1] == steps[3]]
        else:
            sent = self.wado(where)
            if sent is not None:
                return sent
            wanted = [
                raw
                for key, raw in self.files.items()
                if key[1] == steps[3] and key[2] in (*steps[5:], *([key[2]] if len(steps) < 6 else []))
            ]
            return (200, MULTIPART, multipart(*wanted)) if wanted else (404, {}, b"")
        page = listed[offset : offset + 200]
        return 200, {"Content-Type": "application/dicom+json"}, json.dumps(page).encode()

    def bring(self, url: str = "", **options: Any) -> Callable[..., None]:
        url = url or self.url
        session = Session(url, options.pop("auth", None), ca=options.pop("ca", None))
        archive = Archive(url, session, **{"attempts": 2, "wait": lambda seconds: None, **options})
        return lambda landing: import_dicomweb(archive, landing, lambda done, total: None)


@pytest.fixture
def fake() -> Iterator[FakeArchive]:
    made = FakeArchive()
    yield made
    made.server.shutdown()
    made.server.server_close()


class TestImportDicomweb:
    def test_an_honest_archive_gives_what_it_has(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport], landed: Any
    ) -> None:
        fake.hold([*series("P1"), *series("P2", slices=1)])
        report = run(fake.bring())
        assert (report.found, report.brought_in, report.problem) == (4, 4, None)
        assert sorted(landed().values()) == sorted(fake.files.values())
        assert "transfer-syntax=*" in fake.headers[-1]["Accept"]

    def test_lists_of_many_pages_are_read_to_the_end(self, fake: FakeArchive, site: SiteFile) -> None:
        fake.series_extra = [tagged(study="1.2", series=f"1.2.{k}") for k in range(450)]
        with open_landing(site, CohortQuery()) as landing:
            listed = Archive(fake.url, Session(fake.url)).series(landing)
        assert len(listed) == 450

    def test_an_archive_that_gives_the_same_page_for_ever_is_left_alone(
        self, fake: FakeArchive, run: Callable[..., ImportReport]
    ) -> None:
        page = json.dumps([tagged(study="1.2", series="1.2.3", sop="1.2.3.4")] * 200).encode()
        fake.answers = lambda path, headers: (200, {}, page) if "limit=" in path else None
        assert run(fake.bring()).refused == {Reason.NOT_SENT: 1}
        assert len(fake.requests) < 10

    @pytest.mark.parametrize(
        "item",
        [
            tagged(study="../../etc", series="1.2"),
            tagged(study="1.2", series="1?x=1"),
            tagged(study="1.2"),
            {"0020000D": "1.2"},
            {"0020000D": {"Value": [["1.2"]]}, "0020000E": {"Value": None}},
        ],
    )
    def test_a_hostile_list_asks_for_nothing(
        self, fake: FakeArchive, run: Callable[..., ImportReport], item: dict[str, Any]
    ) -> None:
        fake.series_extra = [item]
        report = run(fake.bring())
        assert report.refused == {Reason.NO_UIDS: 1}
        assert all(path.startswith("/dicom-web/series?") for path in fake.requests)

    def test_another_instance_than_was_asked_for_is_refused(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport], landed: Any
    ) -> None:
        fake.hold(series("P1", slices=1))
        other = series("P1", 2, slices=1)[0].read_bytes()
        fake.wado = lambda path: (200, MULTIPART, multipart(other))
        report = run(fake.bring())
        assert report.refused == {Reason.WRONG_ANSWER: 1}
        assert landed() == {}

    @pytest.mark.parametrize(
        "answer",
        [
            (200, {"Content-Type": "text/html"}, b"<html>"),
            (200, MULTIPART, multipart(b"no image")),
            (200, {**MULTIPART, "Content-Encoding": "gzip"}, b"\x1f\x8b"),
        ],
    )
    def test_an_answer_of_another_kind_is_refused(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport], answer: Answer
    ) -> None:
        fake.hold(series("P1", slices=1))
        fake.wado = lambda path: answer
        assert run(fake.bring()).refused == {Reason.WRONG_ANSWER: 1}

    def test_an_empty_answer_is_none(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport]
    ) -> None:
        fake.hold(series("P1", slices=1))
        fake.wado = lambda path: (200, MULTIPART, multipart())
        assert run(fake.bring()).refused == {Reason.NOT_SENT: 1}

    def test_an_endless_instance_is_cut_off(
        self, fake: FakeArchive, series: Callable[..., list[Path]], site: SiteFile
    ) -> None:
        fake.hold(series("P1", slices=1))
        sent = []

        def endless() -> Iterator[bytes]:
            yield b"--abc\r\n\r\n"
            while True:
                sent.append(1)
                yield bytes(100_000)

        fake.wado = lambda path: (200, MULTIPART, endless())
        with open_landing(site, CohortQuery()) as landing:
            landing.limit = 1_000_000
            fake.bring()(landing)
            assert landing.tally.report().refused == {Reason.TOO_LARGE: 1}
        assert len(sent) < 1000
        assert not list(site.cohort_folder().rglob("*.part"))

    def test_one_bad_instance_does_not_cost_its_series(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport]
    ) -> None:
        files = series("P1", slices=3)
        fake.hold(files)
        bad = str(pydicom.dcmread(files[1]).SOPInstanceUID)
        fake.wado = lambda path: (500, {}, b"") if path.endswith(bad) or "instances" not in path else None
        report = run(fake.bring())
        assert (report.brought_in, report.refused, report.problem) == (2, {Reason.NOT_SENT: 1}, None)

    def test_a_truncated_answer_is_asked_for_again(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport]
    ) -> None:
        fake.hold(series("P1", slices=1))
        (raw,) = fake.files.values()
        seen: list[str] = []

        def once(path: str) -> Answer | None:
            seen.append(path)
            return (200, {**MULTIPART, "X-Length": "99999"}, multipart(raw)[:400]) if len(seen) == 1 else None

        fake.wado = once
        report = run(fake.bring())
        assert (report.brought_in, report.refused) == (1, {})
        assert len(seen) == 2

    def test_an_archive_in_trouble_is_given_time_and_then_given_up(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport]
    ) -> None:
        fake.hold(series("P1", slices=9))
        fake.wado = lambda path: (503, {}, b"")
        waited: list[float] = []
        report = run(fake.bring(attempts=3, wait=waited.append))
        assert "lost on the way" in str(report.problem)
        assert report.left == {Reason.NOT_REACHED: 7}
        assert report.found == 9
        assert waited == [0.5, 1.0] * 3

    def test_a_series_of_another_body_part_is_looked_at_once(
        self, fake: FakeArchive, series: Callable[..., list[Path]], run: Callable[..., ImportReport]
    ) -> None:
        fake.hold(series("P1", slices=5, BodyPartExamined="LUNG"))
        report = run(fake.bring(), body_parts=("PROSTATE",))
        assert report.left == {Reason.NOT_ASKED_FOR: 5}
        assert sum("instances/" in path for path in fake.requests) == 1

    def test_a_series_that_the_list_says_is_of_another_body_part_is_not_fetched(
        self, fake: FakeArchive, run: Callable[..., ImportReport], series: Callable[..., list[Path]]
    ) -> None:
        files = series("P1", slices=2)
        fake.hold(files)
        (key,) = {key[:2] for key in fake.files}
        fake.series_extra = [tagged(study=key[0], series=key[1], part="LUNG")]
        fake.answers = lambda path, headers: (
            (200, {}, json.dumps(fake.series_extra if "offset=0" in path else []).encode())
            if path.startswith("/dicom-web/series?")
            else None
        )
        assert run(fake.bring(), body_parts=("PROSTATE",)).left == {Reason.NOT_ASKED_FOR: 2}
        assert not any("instances/" in path for path in fake.requests)

    def test_the_query_is_asked_of_the_archive_too(self, fake: FakeArchive, run: Callable[..., ImportReport]) -> None:
        run(fake.bring(), modalities=("MR",), patients=frozenset({"P&1"}))
        assert "Modality=MR" in fake.requests[0]
        assert "PatientID=P%261" in fake.requests[0]

    def test_a_redirect_to_another_host_is_not_followed_and_gets_no_credentials(
        self, fake: FakeArchive, run: Callable[..., ImportReport]
    ) -> None:
        other = FakeArchive()
        fake.answers = lambda path, headers: (302, {"Location": other.url + "/series"}, b"")
        values = {"EUCAIM_FL_DICOMWEB_USER": "u", "EUCAIM_FL_DICOMWEB_PASSWORD": "geheim"}
        report = run(fake.bring(auth=credentials(values)))
        other.server.shutdown()
        other.server.server_close()
        assert "redirects to another address" in str(report.problem)
        assert fake.headers[0]["Authorization"].startswith("Basic ")
        assert other.requests == []

    @pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b'"text"'])
    def test_a_list_that_cant_be_understood_brings_nothing(
        self, fake: FakeArchive, run: Callable[..., ImportReport], body: bytes
    ) -> None:
        fake.answers = lambda path, headers: (200, {}, body)
        report = run(fake.bring())
        assert report.found == 0
        assert report.problem is None or "can't be understood" in str(report.problem)

    def test_an_archive_that_is_not_there_is_reported(self, site: SiteFile, fake: FakeArchive) -> None:
        fake.server.shutdown()
        fake.server.server_close()
        with open_landing(site, CohortQuery()) as landing:
            archive = Archive(fake.url, Session(fake.url), attempts=1)
            with pytest.raises(ImportFailedError, match="can't be reached"):
                import_dicomweb(archive, landing, lambda done, total: None)
            with pytest.raises(ImportFailedError, match="can't be reached"):
                archive.series(landing)


class TestFetch:
    @pytest.fixture
    def landing(self, site: SiteFile) -> Iterator[Any]:
        with open_landing(site, CohortQuery()) as made:
            yield made

    def test_a_broken_answer_a_wrong_one_and_a_closed_door_are_three_things(
        self, fake: FakeArchive, series: Callable[..., list[Path]], landing: Any
    ) -> None:
        fake.hold(series("P1", slices=1))
        archive = Archive(fake.url, Session(fake.url), attempts=1)
        (listed,) = archive.series(landing)
        fake.wado = lambda path: (200, MULTIPART, b"--abc\r\n\r\nhalf")
        with pytest.raises(ConnectionError, match="early"):
            archive.fetch(listed, set(listed.instances), landing)
        fake.wado = lambda path: (200, MULTIPART, multipart(b"x"))
        with pytest.raises(ValueError, match="readable"):
            archive.fetch(listed, set(listed.instances), landing)
        fake.wado = lambda path: (302, {"Location": "https://evil.org/"}, b"")
        with pytest.raises(ImportFailedError, match="redirects"):
            archive.fetch(listed, set(listed.instances), landing)


class TestPatiently:
    def test_it_gives_up_after_the_last_attempt(self, fake: FakeArchive) -> None:
        tried: list[int] = []

        def fail() -> None:
            tried.append(1)
            raise requests.Timeout

        archive = Archive(fake.url, Session(fake.url), attempts=3, wait=lambda seconds: None)
        with pytest.raises(ConnectionError, match="in trouble"):
            archive.patiently(fail)
        assert len(tried) == 3

    @pytest.mark.parametrize("status", [401, 403])
    def test_refused_credentials_are_not_tried_again(self, fake: FakeArchive, status: int) -> None:
        fake.answers = lambda path, headers: (status, {}, b"")
        archive = Archive(fake.url, Session(fake.url))
        with pytest.raises(ImportFailedError, match=f"refuses access .status {status}"):
            archive.patiently(lambda: archive.session.get(fake.url).raise_for_status())
        assert len(fake.requests) == 1

    def test_a_certificate_that_nobody_vouches_for_is_refused_until_it_is_named(
        self, fake: FakeArchive, tmp_path: Path, series: Callable[..., list[Path]], run: Callable[..., ImportReport]
    ) -> None:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "ca.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
        fake.server.socket = context.wrap_socket(fake.server.socket, server_side=True)
        url = f"https://localhost:{fake.server.server_address[1]}/dicom-web"
        fake.hold(series("P1", slices=1))
        assert "certificate can't be verified" in str(run(fake.bring(url)).problem)
        assert run(fake.bring(url, ca=tmp_path / "ca.pem")).brought_in == 1
