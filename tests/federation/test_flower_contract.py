"""What is used of Flower beyond its public interface is still there, and takes what we give it.

When the pin of Flower moves, this is the test to run first: each failure is a sentence that says what is gone, what it
is used for, and where to mend it. It reads `flower_private` without importing it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import inspect
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eucaim_fl"
PRIVATE = PACKAGE / "federation" / "flower_private.py"
SERVER = PACKAGE / "federation" / "superlink_process.py"
PUBLIC = {
    "flwr.app",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.clientapp",
    "flwr.clientapp.typing",
    "flwr.simulation",
}
FLOWER = f"Flower {importlib.metadata.version('flwr')}"


class Use(NamedTuple):
    """What a name is used for, and the parameters, fields or attributes of it that are used."""

    what_for: str
    has: str = ""


USES = {
    "HEARTBEAT_DEFAULT_INTERVAL": Use("the time after which a silent site counts as gone"),
    "SUPERLINK_NODE_ID": Use("the sender of instructions"),
    "AcquireTaskRequest": Use("claiming a run's task", "supported_task_types"),
    "ActivateNodeRequest": Use("a site's login", "public_key heartbeat_interval"),
    "ApiErrorCode": Use(
        "telling refusals from each other", "RUNTIME_VERSION_INCOMPATIBLE FLEET_RUN_STATUS_NOT_ALLOWED"
    ),
    "ConfirmMessageReceivedRequest": Use("clearing the SuperLink's store", "node run_id message_object_id"),
    "ControlHttpClient": Use("admitting sites and starting runs", "base_url interceptors verify timeout"),
    "DeactivateNodeRequest": Use("a site's goodbye", "node_id"),
    "ErrorCode": Use("knowing that a site is gone", "NODE_UNAVAILABLE"),
    "Fab": Use("the stub of a bundle", "content"),
    "FleetHttpClient": Use("a site's line", "base_url interceptors verify timeout"),
    "FlowerError": Use("reading a refusal", "code message"),
    "GetNodesRequest": Use("asking who is connected"),
    "ListNodesRequest": Use("asking who is admitted"),
    "Node": Use("naming a site", "node_id"),
    "NodeAuthHttpInterceptor": Use("a site's login", "private_key public_key"),
    "PullAppMessagesRequest": Use("fetching answers", "message_ids"),
    "PullMessagesRequest": Use("a site's question for work", "node"),
    "PullObjectRequest": Use("fetching parts of a message", "node run_id object_id"),
    "PullTaskInputRequest": Use("beginning a claimed run"),
    "PushAppMessagesRequest": Use("sending instructions", "messages_list message_object_trees"),
    "PushMessagesRequest": Use("sending answers", "node messages_list message_object_trees clientapp_runtime_list"),
    "PushObjectRequest": Use("sending parts of a message", "node run_id session_id object_id object_content"),
    "PushTaskOutputRequest": Use("ending a run", "context sub_status details"),
    "RegisterNodeRequest": Use("admitting a site", "public_key name"),
    "Run": Use("what Flower's grid has to show", "create_empty"),
    "RuntimeHttpClient": Use("a run's line", "base_url interceptors verify timeout"),
    "RuntimeTokenHttpInterceptor": Use("speaking for a claimed run", "token"),
    "RuntimeVersionHttpInterceptor": Use("saying which Flower speaks", "component_name"),
    "SendNodeHeartbeatRequest": Use("a site's heartbeat", "node heartbeat_interval"),
    "SendTaskHeartbeatRequest": Use("a run's heartbeat"),
    "StartRunRequest": Use("starting a run", "fab"),
    "SubStatus": Use("ending a run", "COMPLETED FAILED"),
    "SuperExecAuthHttpInterceptor": Use("claiming a run's task", "master_secret protected_methods"),
    "TaskIdentity": Use("making messages outside Flower's own processes", "task_id run_id node_id"),
    "TaskType": Use("claiming a run's task", "SERVER_APP"),
    "UnregisterNodeRequest": Use("removing a site", "node_id"),
    "get_all_nested_objects": Use("taking a message apart", "obj"),
    "get_object_head_values_from_object_content": Use("looking at a part before it is opened", "object_content"),
    "get_object_id": Use("checking a part's hash", "object_content"),
    "get_object_tree": Use("taking a message apart", "obj"),
    "inflate_object_from_contents": Use("putting a message together", "object_id object_contents"),
    "make_message": Use("answering in a site's place", "metadata content error"),
    "message_from_proto": Use("reading what waits for a site", "message_proto"),
    "message_to_proto": Use("sending messages", "message"),
    "no_object_id_recompute": Use("taking a message apart only once"),
    "remove_content_from_message": Use("sending a message's head apart from its parts", "message"),
    "validate_object_content": Use("checking a part's form", "content"),
}
CALLS = {
    "FleetHttpClient": {
        "ActivateNode": ("/v1/fleet/activate-node", "node_id"),
        "DeactivateNode": ("/v1/fleet/deactivate-node", ""),
        "SendNodeHeartbeat": ("/v1/fleet/send-node-heartbeat", "success"),
        "PullMessages": ("/v1/fleet/pull-messages", "messages_list message_object_trees"),
        "PushMessages": ("/v1/fleet/push-messages", "objects_to_push session_id"),
        "PushObject": ("/v1/fleet/push-object", "stored"),
        "PullObject": ("/v1/fleet/pull-object", "object_found object_available object_content"),
        "ConfirmMessageReceived": ("/v1/fleet/confirm-message-received", ""),
    },
    "RuntimeHttpClient": {
        "AcquireTask": ("/v1/runtime/acquire-task", "token task"),
        "SendTaskHeartbeat": ("/v1/runtime/send-task-heartbeat", "success"),
        "PullTaskInput": ("/v1/runtime/pull-task-input", "context run task_id"),
        "PushTaskOutput": ("/v1/runtime/push-task-output", ""),
        "GetNodes": ("/v1/runtime/get-nodes", "nodes"),
        "PullMessages": ("/v1/runtime/pull-messages", "messages_list message_object_trees"),
        "PushMessages": ("/v1/runtime/push-messages", "message_ids objects_to_push session_id"),
        "PushObject": ("/v1/runtime/push-object", "stored"),
        "PullObject": ("/v1/runtime/pull-object", "object_found object_available object_content"),
        "ConfirmMessageReceived": ("/v1/runtime/confirm-message-received", ""),
    },
    "ControlHttpClient": {
        "StartRun": ("/v1/control/start-run", "run_id"),
        "ListNodes": ("/v1/control/list-nodes", "nodes_info"),
        "RegisterNode": ("/v1/control/register-node", "node_id"),
        "UnregisterNode": ("/v1/control/unregister-node", ""),
    },
}


def imported() -> dict[str, str]:
    """Names that `flower_private` takes from Flower, and the modules that it takes them from."""
    return {
        alias.name: str(node.module)
        for node in ast.parse(PRIVATE.read_text()).body
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "flwr"
        for alias in node.names
    }


def found(name: str, module: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def parts(thing: Any) -> set[str]:
    """Fields of a protobuf message, parameters of what is called, attributes of all."""
    if hasattr(thing, "DESCRIPTOR"):
        return set(thing.DESCRIPTOR.fields_by_name)
    names = set(dir(thing)) | set(dir(type(thing)))
    with contextlib.suppress(TypeError, ValueError):  # a number has no parameters
        names |= set(inspect.signature(thing).parameters)
    return names


def changes() -> list[str]:
    """What this release of Flower lacks, in sentences."""
    told = []
    for name, module in imported().items():
        use, thing = USES[name], found(name, module)
        if thing is None:
            told.append(f"has no {name} in {module} any more, which is used for {use.what_for}")
            continue
        missing = [part for part in use.has.split() if part not in parts(thing)]
        told += [f"has no {part} in {name} any more, which is used for {use.what_for}" for part in missing]
    return [f"{FLOWER} {text}: see federation/flower_private.py" for text in told]


def call(client: Any, method: str) -> dict[str, Any]:
    """What a method of a client passes on."""
    seen: dict[str, Any] = {}

    class Listening(client):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        def _unary_unary(self, **words: Any) -> None:
            seen.update(words)

    getattr(Listening(), method)(object())
    return seen


def changed_calls() -> list[str]:
    told = []
    for name, methods in CALLS.items():
        client = found(name, imported()[name])
        for method, (path, fields) in methods.items():
            if not hasattr(client, method):
                told.append(f"{FLOWER} has no {name}.{method} any more: see federation/flower_private.py")
                continue
            seen = call(client, method)
            if seen["path"] != path:
                told.append(f"{FLOWER} calls {seen['path']} for {name}.{method}, not {path}: see federation/proxy.py")
            missing = set(fields.split()) - set(seen["response_type"].DESCRIPTOR.fields_by_name)
            told += [f"{FLOWER} answers {name}.{method} without {field}" for field in sorted(missing)]
    return told


class TestPrivateNames:
    def test_each_is_there_and_has_what_is_used_of_it(self):
        assert not changes(), "\n".join(changes())

    def test_each_is_in_the_table_and_listed(self):
        assert set(imported()) == set(USES), "USES of this test has to name what flower_private imports"
        listed = ast.literal_eval(
            next(n for n in ast.parse(PRIVATE.read_text()).body if isinstance(n, ast.Assign)).value
        )
        assert listed == sorted(listed, key=lambda name: (not name.isupper(), name[0].islower(), name))
        assert set(listed) == set(imported())

    def test_each_is_used(self):
        texts = [path.read_text() for path in PACKAGE.rglob("*.py") if path != PRIVATE]
        unused = [name for name in imported() if not any(re.search(rf"\b{name}\b", text) for text in texts)]
        assert not unused, f"flower_private imports what nothing uses: {', '.join(unused)}"

    def test_what_is_gone_is_told_in_a_sentence(self, monkeypatch):
        module = importlib.import_module("flwr.supernode.fleet_http_client")
        monkeypatch.delattr(module, "FleetHttpClient")
        assert changes() == [
            f"{FLOWER} has no FleetHttpClient in flwr.supernode.fleet_http_client any more, which is used for a site's "
            "line: see federation/flower_private.py"
        ]

    def test_what_lost_a_part_is_told_in_a_sentence(self, monkeypatch):
        monkeypatch.setitem(USES, "Fab", Use("the stub of a bundle", "content colour"))
        (text,) = changes()
        assert "has no colour in Fab any more, which is used for the stub of a bundle" in text


class TestCalls:
    def test_each_goes_where_the_proxy_lets_it_and_answers_what_is_read(self):
        assert not changed_calls(), "\n".join(changed_calls())

    def test_the_proxy_lets_through_what_a_site_calls(self):
        from eucaim_fl.federation.proxy import FLEET_CALLS

        assert {path.removeprefix("/v1/fleet/") for path, _ in CALLS["FleetHttpClient"].values()} <= set(FLEET_CALLS)

    def test_a_task_is_claimed_under_the_name_that_is_signed(self):
        from eucaim_fl.federation.flower_run import _ACQUIRE

        client = found("RuntimeHttpClient", imported()["RuntimeHttpClient"])
        assert {call(client, "AcquireTask")["rpc_method"]} == _ACQUIRE

    def test_another_path_is_told_in_a_sentence(self, monkeypatch):
        monkeypatch.setitem(CALLS, "ControlHttpClient", {"StartRun": ("/v1/start", "run_id luck"), "Stop": ("", "")})
        assert changed_calls() == [
            f"{FLOWER} calls /v1/control/start-run for ControlHttpClient.StartRun, not /v1/start: "
            "see federation/proxy.py",
            f"{FLOWER} answers ControlHttpClient.StartRun without luck",
            f"{FLOWER} has no ControlHttpClient.Stop any more: see federation/flower_private.py",
        ]


class TestInside:
    """Attributes that are no names one could import."""

    def test_a_message_keeps_its_numbers_where_we_set_them(self):
        from flwr.app import Message, RecordDict

        identity = found("TaskIdentity", imported()["TaskIdentity"])
        identity.task_id, identity.run_id, identity.node_id = 1, 2, 3
        message = Message(RecordDict(), 4, "query")
        message.metadata.__dict__["_message_id"], message.metadata.__dict__["_run_id"] = "m", 9
        assert (message.metadata.message_id, message.metadata.run_id) == ("m", 9), FLOWER

    def test_a_client_speaks_through_an_httpx_client_that_can_be_replaced(self):
        import httpx

        client = found("FleetHttpClient", imported()["FleetHttpClient"])("https://localhost:1")
        assert isinstance(client._client, httpx.Client), f"{FLOWER} keeps its HTTP client elsewhere"
        client._client.close()
        heard = []

        def answer(request: httpx.Request) -> httpx.Response:
            heard.append(request.url.path)
            return httpx.Response(200)

        client._client = httpx.Client(transport=httpx.MockTransport(answer))
        node = found("Node", imported()["Node"])(node_id=1)
        client.PullMessages(found("PullMessagesRequest", imported()["PullMessagesRequest"])(node=node))
        assert heard == ["/v1/fleet/pull-messages"]

    def test_the_release_is_told_in_headers_from_metadata(self):
        teller = found("RuntimeVersionHttpInterceptor", imported()["RuntimeVersionHttpInterceptor"])("SuperNode")
        told = dict(teller._metadata.as_metadata())
        assert importlib.metadata.version("flwr") in told.values(), f"{FLOWER} tells its release in another way"

    def test_an_error_travels_as_code_and_detail(self):
        error = found("FlowerError", imported()["FlowerError"]).from_json('{"code": 7, "detail": "no"}')
        assert (error.code, error.message) == (7, "no")

    def test_the_superlink_is_started_by_the_name_that_is_used(self):
        names = dict(re.findall(r"from (flwr\.[\w.]+) import (\w+)\n", SERVER.read_text()))
        assert len(names) == 2
        for module, name in names.items():
            assert callable(found(name, module)), f"{FLOWER} has no {name} in {module} any more: see {SERVER.name}"

    def test_the_superlink_looks_for_lapsed_claims_in_a_method_of_its_own(self):
        state = found("SqlLinkState", "flwr.server.superlink.linkstate.sql_linkstate")
        base = found("SqlCoreState", "flwr.supercore.corestate.sql_corestate")
        looks = getattr(base, "_cleanup_expired_task_tokens", None)
        assert looks is not None, f"{FLOWER} looks for lapsed claims elsewhere: see {SERVER.name}"
        assert state._cleanup_expired_task_tokens is looks
        assert list(inspect.signature(looks).parameters) == ["self"]

    def test_replies_name_what_they_answer(self):
        client = found("RuntimeHttpClient", imported()["RuntimeHttpClient"])
        message = typing.get_type_hints(client.PullMessages)["return"].DESCRIPTOR.fields_by_name["messages_list"]
        metadata = message.message_type.fields_by_name["metadata"].message_type.fields_by_name
        assert {"message_id", "reply_to_message_id", "group_id", "created_at"} <= set(metadata)


def imports_of_flower(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "flwr":
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "flwr")


class TestTheOneDoor:
    def test_no_other_module_takes_private_names(self):
        strays = {
            f"{path.relative_to(ROOT)}: {module}"
            for path in PACKAGE.rglob("*.py")
            if path not in (PRIVATE, SERVER)
            for module in imports_of_flower(path)
            if module not in PUBLIC
        }
        assert not strays, f"take it from federation/flower_private.py: {sorted(strays)}"

    def test_flower_is_pinned_and_the_pin_is_what_is_installed(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        pins = [d for d in project["dependencies"] if re.match(r"flwr\b", d)]
        assert pins == [f"flwr=={importlib.metadata.version('flwr')}"]


@pytest.mark.parametrize("name", ["_message_id", "_run_id"])
def test_metadata_keeps_its_numbers_under_the_names_that_are_set(name: str) -> None:
    from flwr.app import Metadata

    metadata = Metadata(1, "m", 1, 2, "", "", 0.0, 1.0, "query")
    assert name in metadata.__dict__, f"{FLOWER} keeps {name} elsewhere: see federation/objects.py, superlink_grid.py"
