from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests

from eucaim_fl.cohorts.intake.web import Session, blocks_of, credentials, origin_of
from eucaim_fl.errors import ImportFailedError

USER, PASSWORD, TOKEN = (f"EUCAIM_FL_DICOMWEB_{name}" for name in ("USER", "PASSWORD", "TOKEN"))


class TestCredentials:
    def header(self, values: dict[str, str]) -> str:
        auth = credentials(values)
        assert auth is not None
        return str(auth(requests.Request("GET", "http://127.0.0.1/").prepare()).headers["Authorization"])

    def test_user_and_password_or_token(self) -> None:
        assert credentials({}) is None
        assert self.header({USER: "ü", PASSWORD: "p"}) == "Basic w7w6cA=="
        assert self.header({TOKEN: "abc"}) == "Bearer abc"

    @pytest.mark.parametrize(
        "values",
        [{USER: "u"}, {PASSWORD: "geheim"}, {USER: "u", PASSWORD: "geheim", TOKEN: "t"}, {TOKEN: "geheim\r\nX: y"}],
    )
    def test_anything_else_is_refused_without_showing_it(self, values: dict[str, str]) -> None:
        with pytest.raises(ImportFailedError, match="incomplete or contradict") as caught:
            credentials(values)
        assert "geheim" not in caught.value.for_terminal()


class TestOriginOf:
    @pytest.mark.parametrize(
        ("url", "origin"),
        [
            ("https://PACS.hospital/dicom-web", ("https", "pacs.hospital", 443)),
            ("https://pacs:8443", ("https", "pacs", 8443)),
            ("http://localhost:8042/dicom-web", ("http", "localhost", 8042)),
            ("http://[::1]/", ("http", "::1", 80)),
        ],
    )
    def test_addresses(self, url: str, origin: tuple[str, str, int]) -> None:
        assert origin_of(url) == origin

    @pytest.mark.parametrize(
        "url", ["", "pacs", "ftp://pacs", "file:///etc/passwd", "https://", "https://p:x/", "https://p/?q=1"]
    )
    def test_what_is_none_is_refused(self, url: str) -> None:
        with pytest.raises(ImportFailedError, match="not one of DICOMweb"):
            origin_of(url)

    def test_credentials_in_an_address_are_refused_and_not_repeated(self) -> None:
        with pytest.raises(ImportFailedError, match="holds credentials") as caught:
            origin_of("https://user:geheim@pacs/")
        assert "geheim" not in caught.value.for_terminal()

    @pytest.mark.parametrize("url", ["http://pacs.hospital/", "http://10.0.0.1/", "http://localhost.evil.org/"])
    def test_plain_http_is_for_this_machine_alone(self, url: str) -> None:
        with pytest.raises(ImportFailedError, match="plain http"):
            origin_of(url)
        assert origin_of(url, insecure_http=True)[0] == "http"


class TestSession:
    def test_it_verifies_certificates_and_takes_nothing_from_files_of_the_user(self, tmp_path: Path) -> None:
        session = Session("https://pacs/")
        assert session.verify is True
        assert session.trust_env is False
        (tmp_path / "ca.pem").write_text("")
        assert Session("https://pacs/", ca=tmp_path / "ca.pem").verify == str(tmp_path / "ca.pem")

    def test_a_missing_file_of_certificates_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImportFailedError, match="certificates is missing"):
            Session("https://pacs/", ca=tmp_path / "ca.pem")

    @pytest.mark.parametrize(
        ("target", "fine"),
        [
            ("/other", True),
            ("https://pacs/x?y=1", True),
            ("https://evil.org/", False),
            ("http://pacs/", False),
            ("https://pacs:444/", False),
        ],
    )
    def test_redirects_stay_at_the_archive(self, target: str, fine: bool) -> None:
        answer = requests.Response()
        answer.status_code, answer.url = 302, "https://pacs/dicom-web"
        answer.headers["Location"] = target
        session = Session("https://pacs/dicom-web")
        if fine:
            assert session.get_redirect_target(answer) == target
        else:
            with pytest.raises(ImportFailedError, match="redirects to another address"):
                session.get_redirect_target(answer)


class _Raw:
    def __init__(self, *blocks: bytes, then: Exception | None = None) -> None:
        self._blocks, self._then = blocks, then

    def stream(self, size: int, decode_content: bool) -> Any:
        yield from self._blocks
        if self._then is not None:
            raise self._then


def answer(*blocks: bytes, then: Exception | None = None, **headers: str) -> requests.Response:
    made = requests.Response()
    made.raw = _Raw(*blocks, then=then)
    made.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return made


class TestBlocksOf:
    def test_a_body_comes_in_blocks(self) -> None:
        assert list(blocks_of(answer(b"ab", b"c"), 3, time.monotonic() + 60)) == [b"ab", b"c"]

    def test_a_long_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="longer"):
            list(blocks_of(answer(b"ab", b"cd"), 3, time.monotonic() + 60))

    def test_a_slow_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="too long"):
            list(blocks_of(answer(b"ab"), 3, time.monotonic() - 1))

    def test_a_packed_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="packed"):
            list(blocks_of(answer(b"ab", Content_Encoding="gzip"), 3, time.monotonic() + 60))

    def test_a_broken_one_is_a_broken_connection(self) -> None:
        with pytest.raises(ConnectionError, match="ConnectionResetError"):
            list(blocks_of(answer(b"ab", then=ConnectionResetError()), 3, time.monotonic() + 60))
