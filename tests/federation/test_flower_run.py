"""A run at a real SuperLink whose server app is this process."""

from __future__ import annotations

import inspect
import io
import json
import ssl
import time
import zipfile
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn

from eucaim_fl.durable import exclusive
from eucaim_fl.errors import LinkError
from eucaim_fl.federation import flower_run
from eucaim_fl.federation.flower_private import (
    ApiErrorCode,
    ControlHttpClient,
    Fab,
    GetNodesRequest,
    ListNodesRequest,
    StartRunRequest,
)
from eucaim_fl.federation.flower_run import FlowerRun, VersionHeaders, stub_bundle, tls_context
from tests.federation.deployed import Deployed, deployed, wait_for

__all__ = ["deployed"]


class TestBundle:
    def test_it_holds_no_code_and_is_always_the_same(self):
        assert stub_bundle() == stub_bundle()
        with zipfile.ZipFile(io.BytesIO(stub_bundle())) as archive:
            assert archive.namelist() == ["pyproject.toml"]


class TestTls:
    def test_nothing_older_than_1_3_and_no_server_without_a_name(self, tmp_path):
        made = Deployed(tmp_path, [])
        made.make_federation()
        context = tls_context(made.federation.ca_file.read_text())
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
        assert len(context.get_ca_certs()) == 1


class TestVersionHeaders:
    def test_an_answer_never_ends_this_process(self):
        def answer(request: httpx.Request) -> httpx.Response:
            assert any("1." in value for value in request.headers.values())
            body = {"code": int(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE), "detail": "go away"}
            return httpx.Response(412, content=json.dumps(body))

        client = ControlHttpClient("https://localhost", interceptors=[VersionHeaders("SuperNode")])
        client._client.close()
        client._client = httpx.Client(transport=httpx.MockTransport(answer))
        with pytest.raises(httpx.HTTPStatusError, match="412"):
            client.ListNodes(ListNodesRequest())


@pytest.mark.federated
class TestAtTheSuperlink:
    def begin(self, deployed: Deployed, **changes: Any) -> FlowerRun:
        home = deployed.federation
        values = {
            "address": home.runtime_address,
            "ca_file": home.ca_file,
            "secret": home.executor_secret,
            "lock_folder": home.folder / "state" / "claiming",
        }
        return FlowerRun(**(values | changes))

    def test_a_run_is_started_claimed_and_ended(self, deployed):
        run = self.begin(deployed)
        assert run.alive
        nodes = {node.node_id for node in run.client.GetNodes(GetNodesRequest()).nodes}
        assert len(nodes) >= 2
        run.close(completed=True)
        other = self.begin(deployed)
        assert other.run_id != run.run_id
        other.close(completed=False)

    def test_an_idle_connection_is_given_up_before_the_superlink_closes_it(self, deployed):
        longest = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
        run = self.begin(deployed)
        try:
            run.client.GetNodes(GetNodesRequest())
            pool = run.client._client._transport._pool
            (kept,) = pool.connections
            expires = kept._connection._expire_at - time.monotonic()
            assert 0 < expires < longest - 1
        finally:
            run.close(completed=True)

    def test_what_a_killed_process_left_behind_does_not_stand_in_the_way(self, deployed):
        home = deployed.federation
        control = ControlHttpClient(
            f"https://{home.runtime_address}", verify=tls_context(home.ca_file.read_text()), timeout=30.0
        )
        left = control.StartRun(StartRunRequest(fab=Fab(content=stub_bundle()))).run_id
        control.close()
        run = self.begin(deployed)
        assert run.run_id != left
        run.close(completed=True)

    def test_a_claim_that_was_lost_is_noticed(self, deployed, monkeypatch):
        monkeypatch.setattr(flower_run, "_HEARTBEAT_S", 0.1)
        run = self.begin(deployed)
        assert run.alive
        run._ended.clear()
        run.client.PushTaskOutput(flower_run.PushTaskOutputRequest(sub_status="failed", details="gone"))
        wait_for(lambda: not run.alive, 10)
        run.close(completed=False)

    def test_loopback_is_not_reached_through_the_proxy_of_the_environment(self, deployed, monkeypatch):
        for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        self.begin(deployed).close(completed=True)

    def test_without_the_executors_secret_nothing_is_claimed(self, deployed):
        with pytest.raises(LinkError, match="refused to start the run"):
            self.begin(deployed, secret=b"0" * 64)

    def test_two_that_start_at_once_wait_for_each_other_but_not_for_ever(self, deployed, monkeypatch):
        monkeypatch.setattr(flower_run, "_CLAIM_WAIT_S", 0.2)
        folder = deployed.federation.folder / "state" / "claiming"
        with exclusive(folder), pytest.raises(LinkError, match="Another run is being started"):
            self.begin(deployed)

    def test_a_task_that_somebody_else_takes_is_told(self, deployed, monkeypatch):
        monkeypatch.setattr(flower_run, "_CLAIM_WAIT_S", 1.0)
        nothing = SimpleNamespace(token="")
        monkeypatch.setattr(flower_run.RuntimeHttpClient, "AcquireTask", lambda *_: nothing)
        with pytest.raises(LinkError, match="could not be claimed in time"):
            self.begin(deployed)

    def test_without_a_superlink_it_says_what_to_look_at(self, deployed, tmp_path):
        home = deployed.federation
        with pytest.raises(LinkError, match=r"does not answer.*federation status"):
            FlowerRun("127.0.0.1:1", home.ca_file, home.executor_secret, tmp_path)
