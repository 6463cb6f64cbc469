"""What comes down a site's line is bounded, the proxy is the hospital's, and what fails is told in words of use."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from eucaim_fl.errors import LinkError, NotAdmittedError
from eucaim_fl.federation import fleet_line
from eucaim_fl.federation.fleet_line import BoundedTransport, RunOverError, causes, diagnosed, proxy_for, refusal
from eucaim_fl.federation.flower_private import ApiErrorCode
from eucaim_fl.site.network import SetupFinding

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
MIB = 2**20


def post(answer: httpx.Response) -> httpx.Response:
    """What a client reads of an answer that arrives through the bounds."""
    inner = httpx.MockTransport(lambda _: answer)
    with httpx.Client(transport=BoundedTransport(inner)) as client:
        return client.post("https://localhost/v1/fleet/pull-messages")


class TestBounds:
    def test_eight_mebibytes_pass(self):
        assert len(post(httpx.Response(200, stream=httpx.ByteStream(bytes(8 * MIB)))).content) == 8 * MIB

    def test_more_does_not_whatever_the_header_says(self):
        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(MIB)

        with pytest.raises(httpx.ReadError, match="larger than any"):
            post(httpx.Response(200, content=endless()))

    def test_an_answer_that_trickles_for_minutes_is_given_up(self, monkeypatch):
        monkeypatch.setattr(fleet_line, "_LONGEST_RESPONSE_S", 0.05)

        def trickle() -> Iterator[bytes]:
            while True:
                time.sleep(0.02)
                yield b"."

        with pytest.raises(httpx.ReadError, match="takes longer"):
            post(httpx.Response(200, content=trickle()))

    def test_compression_is_neither_asked_for_nor_taken(self):
        asked = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.headers["accept-encoding"])
            return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"bomb"))

        with (
            httpx.Client(transport=BoundedTransport(httpx.MockTransport(answer))) as client,
            pytest.raises(httpx.ReadError, match="compressed"),
        ):
            client.get("https://localhost/")
        assert asked == ["identity"]

    def test_a_refusal_is_bounded_too(self):
        with pytest.raises(httpx.ReadError, match="larger than any"):
            post(httpx.Response(500, stream=httpx.ByteStream(bytes(9 * MIB))))


class TestProxy:
    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch):
        for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)

    def test_without_one_the_way_is_straight(self):
        assert proxy_for("federation.example.org") is None

    @pytest.mark.parametrize(
        ("value", "used"),
        [
            ("http://proxy.hospital.org:3128", "http://proxy.hospital.org:3128"),
            ("proxy.hospital.org:3128", "http://proxy.hospital.org:3128"),
            ("http://me:a%40b%3Ac@proxy:1", "http://me:a%40b%3Ac@proxy:1"),
            ("http://[::1]:3128", "http://[::1]:3128"),
        ],
    )
    def test_the_hospitals_is_used_as_it_is_written(self, monkeypatch, value, used):
        monkeypatch.setenv("HTTPS_PROXY", value)
        assert proxy_for("federation.example.org") == used

    def test_it_is_not_used_for_what_no_proxy_names(self, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
        monkeypatch.setenv("NO_PROXY", "localhost,.example.org")
        assert proxy_for("federation.example.org") is None
        assert proxy_for("federation.example.com") == "http://proxy:3128"

    @pytest.mark.parametrize("value", ["socks5://proxy:1080", "https://proxy:3128", "http://proxy:port"])
    def test_a_kind_that_is_not_supported_is_told(self, monkeypatch, value):
        monkeypatch.setenv("HTTPS_PROXY", value)
        with pytest.raises(LinkError, match=r"not supported.*http://HOST:PORT"):
            proxy_for("federation.example.org")


def told(status: int, code: int | None = None, date: str | None = None) -> LinkError | NotAdmittedError:
    body = "nginx" if code is None else json.dumps({"code": code, "detail": "no"})
    return refusal(status, httpx.Headers({"date": date} if date else {}), body, NOW)


class TestRefusal:
    @pytest.mark.parametrize(
        ("ahead", "words"),
        [
            (timedelta(hours=1), "60 minutes ahead of"),
            (timedelta(hours=-1), "60 minutes behind"),
            (timedelta(seconds=10), "10 s ahead of"),
        ],
    )
    def test_a_wrong_clock_is_told_with_how_wrong_it_is(self, ahead, words):
        problem = told(401, date=format_datetime(NOW - ahead, usegmt=True))
        assert isinstance(problem, NotAdmittedError)
        assert words in problem.message
        assert "NTP" in problem.fix

    @pytest.mark.parametrize("date", [format_datetime(NOW, usegmt=True), None, "yesterday", "-1"])
    def test_with_the_right_clock_the_key_is_not_known(self, date):
        problem = told(401, date=date)
        assert isinstance(problem, NotAdmittedError)
        assert "never admitted, or has been removed" in problem.message

    @pytest.mark.parametrize("status", [400, 403, 404, 412, 422])
    def test_a_site_that_is_not_let_in_hears_so(self, status):
        assert isinstance(told(status), NotAdmittedError)

    @pytest.mark.parametrize("status", [301, 429, 500, 502, 503, 504])
    def test_a_coordinator_that_cannot_answer_now_is_asked_again(self, status):
        problem = told(status)
        assert type(problem) is LinkError
        assert "can't answer now" in problem.message

    def test_another_release_of_flower_is_told_and_ends_nothing(self):
        problem = told(412, int(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE))
        assert type(problem) is LinkError
        assert "another release of Flower" in problem.message

    def test_a_run_that_has_ended_is_no_reason_to_doubt_the_admission(self):
        assert isinstance(told(403, int(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED)), RunOverError)

    @pytest.mark.parametrize("body", ["", "[]", "{", "[" * 100_000, '{"code": true, "detail": 3}'])
    def test_whatever_the_answer_holds_it_is_read_or_passed_over(self, body):
        assert isinstance(refusal(500, httpx.Headers(), body, NOW), LinkError)

    def test_what_came_from_outside_stays_in_the_local_detail(self):
        problem = refusal(500, httpx.Headers(), "PATIENT-7\n\x1b[2J", NOW)
        assert "PATIENT-7" not in str(problem)
        assert problem.local_detail == "HTTP 500: PATIENT-7  [2J"


class TestDiagnosed:
    @pytest.fixture
    def finds(self, monkeypatch):
        def set_up(*findings: SetupFinding) -> None:
            monkeypatch.setattr(fleet_line.network, "check_line", lambda *_: findings)

        return set_up

    def test_it_speaks_as_site_check_does(self, finds):
        finds(
            SetupFinding("line.works", "informs", "It works."),
            SetupFinding("line.expired", "blocks", "The certificate has expired.", "Renew it.", "detail"),
        )
        problem = diagnosed(LinkError("No line.", local_detail="SSL"), "localhost:1", "")
        assert str(problem) == "The certificate has expired. Renew it."
        assert problem.local_detail == "detail; SSL"

    def test_where_nothing_is_found_the_problem_stays(self, finds):
        finds(SetupFinding("line.works", "informs", "It works."))
        problem = LinkError("No line.")
        assert diagnosed(problem, "localhost:1", "") is problem

    def test_a_problem_that_says_what_to_do_is_not_asked_after(self, finds):
        finds(SetupFinding("line.expired", "blocks", "The certificate has expired.", "Renew it."))
        problem = LinkError("No line.", fix="Wait.")
        assert diagnosed(problem, "localhost:1", "") is problem

    def test_an_address_that_is_none(self):
        assert "HOST:PORT" in str(diagnosed(LinkError("No line."), "nowhere", ""))


class TestCauses:
    def test_each_is_named_once_and_no_more_than_four(self):
        first: BaseException = OSError("innermost")
        for number in range(6):
            second = ValueError(f"cause {number}")
            second.__cause__ = first
            first = second
        assert causes(first) == "ValueError: cause 5; ValueError: cause 4; ValueError: cause 3; ValueError: cause 2"
        assert len(causes(ValueError("x" * 9999))) == 500
