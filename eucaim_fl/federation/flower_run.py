"""A run on a SuperLink whose server app is this very process: start it, claim its task, keep the claim, end it.

Flower would launch a bundle in a new process. Here the bundle is a stub without code, and the task is claimed with the
executor's secret by the process that already runs the installed package.
"""

from __future__ import annotations

import io
import ssl
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from eucaim_fl import __version__
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import LinkError, RunFolderBusyError
from eucaim_fl.federation.flower_private import (
    AcquireTaskRequest,
    ControlHttpClient,
    Fab,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    StartRunRequest,
    SubStatus,
    SuperExecAuthHttpInterceptor,
    TaskIdentity,
    TaskType,
)

__all__ = ["FlowerRun", "VersionHeaders", "stub_bundle", "tls_context"]

_CLAIM_WAIT_S = 30.0
_HEARTBEAT_S = 20.0
_CALL_S = 30.0
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)
"""An idle connection is given up before the SuperLink closes it, after 5 s: no call meets a closing connection."""
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


def tls_context(ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 to a server whose certificate this authority issued, and to no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    return context


class VersionHeaders(RuntimeVersionHttpInterceptor):
    """Tells the other side which release of Flower speaks. Unlike Flower's own, an answer never ends this process."""

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Add the headers to a request, and pass on its answer whatever it is."""
        context.request.headers.update(dict(self._metadata.as_metadata()))
        return call_next(context)


def stub_bundle() -> bytes:
    """What Flower wants as an app: a ZIP with a project file and no code; the same bytes each time."""
    text = (
        f'[project]\nname = "eucaim-fl"\nversion = "{__version__}"\n'
        'description = "Runs what is installed; holds no code."\n'
        '[tool.flwr.app]\npublisher = "eucaim"\n'
        '[tool.flwr.app.components]\nserverapp = "eucaim_fl.federation.server_app:app"\n'
        'clientapp = "eucaim_fl.federation.client_app:app"\n[tool.flwr.app.config]\n'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml", (1980, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


class FlowerRun:
    """One run at the SuperLink, claimed by this process. `alive` turns False when the claim was lost."""

    def __init__(self, address: str, ca_file: Path, secret: bytes, lock_folder: Path) -> None:
        """Start a run and claim it.

        address: of the SuperLink, `127.0.0.1:PORT`. lock_folder: held while claiming, so that two runs that start at
        once do not claim each other's task.
        Raises LinkError if the SuperLink is not there, refuses, or gives the task to somebody else.
        """
        self._url = f"https://{address}"
        self._tls = tls_context(ca_file.read_text(encoding="ascii"))
        self.alive = True
        self._ended = threading.Event()
        until = time.monotonic() + _CLAIM_WAIT_S
        while True:
            try:
                with exclusive(lock_folder):
                    self.run_id, token = self._claim(secret, until)
                break
            except RunFolderBusyError:
                if time.monotonic() > until:
                    raise LinkError("Another run is being started and does not come to an end.") from None
        self.client = self._runtime(RuntimeTokenHttpInterceptor(token))
        task = self._guarded(self.client.PullTaskInput, PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = (
            task.task_id,
            task.run.run_id,
            task.context.node_id,
        )
        self._context = task.context
        self._pulse = threading.Thread(target=self._beat, daemon=True, name="task heartbeat")
        self._pulse.start()

    def _runtime(self, *interceptors: Any) -> RuntimeHttpClient:
        every: Sequence[Any] = (VersionHeaders("flwr-serverapp"), *interceptors)
        client = RuntimeHttpClient(self._url, interceptors=every, verify=self._tls, timeout=_CALL_S)
        self._on_loopback(client)
        return client

    def _on_loopback(self, client: Any) -> None:
        """Without the proxy that the environment may name for the world outside."""
        client._client.close()
        client._client = httpx.Client(verify=self._tls, timeout=_CALL_S, limits=_LIMITS, trust_env=False)

    @staticmethod
    def _guarded(call: Any, request: Any) -> Any:
        try:
            return call(request)
        except httpx.HTTPStatusError as problem:
            raise LinkError(
                f"The SuperLink refused to start the run (HTTP {problem.response.status_code}).",
                local_detail=problem.response.text[:500],
            ) from None
        except httpx.HTTPError as problem:
            raise LinkError(
                "The SuperLink does not answer.",
                fix="Is the federation running? See `eucaim-fl federation status`.",
                local_detail=str(problem),
            ) from None

    def _claim(self, secret: bytes, until: float) -> tuple[int, str]:
        control = ControlHttpClient(
            self._url,
            interceptors=[VersionHeaders("flwr CLI")],
            verify=self._tls,
            timeout=_CALL_S,
        )
        self._on_loopback(control)
        try:
            bundle = stub_bundle()
            started = self._guarded(control.StartRun, StartRunRequest(fab=Fab(content=bundle)))
        finally:
            control.close()
        if not started.run_id:
            raise LinkError("The SuperLink started no run.")
        executor = self._runtime(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE))
        try:
            while time.monotonic() < until:
                answer = self._guarded(
                    executor.AcquireTask, AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                )
                if answer.token and answer.task.run_id == started.run_id:
                    return started.run_id, answer.token
                if answer.token:  # left behind by a process that was killed between starting a run and claiming it
                    self._abandon(answer.token)
                    continue
                time.sleep(0.1)
        finally:
            executor.close()
        raise LinkError("The run's task could not be claimed in time.", fix="Does another executor run?")

    def _abandon(self, token: str) -> None:
        client = self._runtime(RuntimeTokenHttpInterceptor(token))
        try:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="abandoned"))
        except httpx.HTTPError:
            pass  # it expires by itself
        finally:
            client.close()

    def _beat(self) -> None:
        client = self.client
        while not self._ended.wait(_HEARTBEAT_S):
            try:
                if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self.alive = False
                    return
            except httpx.HTTPStatusError as problem:
                if problem.response.status_code in (401, 403, 404):
                    self.alive = False
                    return
            except httpx.HTTPError:
                continue  # the SuperLink may come back

    def close(self, *, completed: bool) -> None:
        """Tell the SuperLink that the run has ended; what it says to that changes nothing."""
        self._ended.set()
        status, details = (SubStatus.COMPLETED, "") if completed else (SubStatus.FAILED, "stopped")
        try:
            self.client.PushTaskOutput(PushTaskOutputRequest(context=self._context, sub_status=status, details=details))
        except httpx.HTTPError:
            pass
        finally:
            self.client.close()
