"""What crosses the wire: exactly what was meant, or a refusal."""

from __future__ import annotations

import json
import threading
from multiprocessing import Pipe

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eucaim_fl.arrays import arrays_sha256
from eucaim_fl.errors import PlanError, ReplyError
from eucaim_fl.federation.messages import (
    Refusal,
    from_record,
    instruction_content,
    read_instruction,
    read_reply,
    read_report,
    refusal_content,
    reply_content,
    to_record,
)
from eucaim_fl.federation.wire import receive, send
from eucaim_fl.records import ArraySpec, Past

SPECS = (ArraySpec("n", (), "int64", False), ArraySpec("w", (2, 2), "float32", True))
ARRAYS = {"n": np.array(3), "w": np.arange(4, dtype=np.float32).reshape(2, 2)}
REPORT = {
    "kind": "round", "site": "a", "plan_sha256": "1" * 64, "round": 1, "patients": 5, "cohort_sha256": "2" * 64,
}  # fmt: skip
SILENT = {"scope": "all", "patients": 0, "withheld": "too_few"}
JUDGED = {**REPORT, "kind": "final", "validated": {"site": "a", "plan_sha256": "1" * 64, "scopes": [SILENT]}}


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0


def message(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1, message_type="train")


class TestArrays:
    @given(
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        )
    )
    def test_any_array_comes_back_to_the_bit(self, array):
        specs = (ArraySpec("x", array.shape, array.dtype.name, True),)
        back = from_record(to_record({"x": array}), specs)
        assert arrays_sha256(back) == arrays_sha256({"x": array})

    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("w", Array("float32", (2, 2), "eucaim.raw", b"\0" * 12)),
            ("w", Array("float32", (2, 2), "numpy.ndarray", b"\0" * 16)),
            ("w", Array("object", (2, 2), "eucaim.raw", b"\0" * 16)),
            ("w", Array("float64", (2, 2), "eucaim.raw", b"\0" * 32)),
            ("w", Array("float32", (4,), "eucaim.raw", b"\0" * 16)),
            ("w", Array("float32", (-2, -2), "eucaim.raw", b"\0" * 16)),
            ("w", Array("float32", (10**9, 10**9), "eucaim.raw", b"\0" * 16)),
            ("extra", Array("float32", (1,), "eucaim.raw", b"\0" * 4)),
        ],
        ids=["short", "numpy", "object", "wider", "shape", "negative", "huge", "foreign"],
    )
    def test_an_array_that_is_not_the_plans_is_refused_before_memory_is_taken(self, name, array):
        record = to_record(ARRAYS)
        record[name] = array
        with pytest.raises(ReplyError, match=r"Array|arrays"):
            from_record(record, SPECS)

    def test_a_missing_array_is_refused(self):
        with pytest.raises(PlanError, match="1 missing"):
            from_record(to_record({"w": ARRAYS["w"]}), SPECS, PlanError)

    def test_a_file_that_was_read_is_not_copied(self):
        content = bytes(range(256)) * 4
        whole = np.frombuffer(content, np.uint8)
        assert to_record({"file": whole})["file"].data is content
        for part in (whole[1:], whole[::-1], whole[:-1], whole.reshape(4, 256).T):
            assert to_record({"file": part})["file"].data == part.tobytes()


class TestInstruction:
    def test_it_comes_back(self):
        found = read_instruction(instruction_content("{}", 4, to_record(ARRAYS)))
        assert (found.plan_json, found.round) == ("{}", 4)
        assert set(found.weights) == {"n", "w"}

    @pytest.mark.parametrize("past", [Past(), Past("0a" * 16), Past("0a" * 16, 0), Past("0a" * 16, 3), Past("", 2)])
    def test_what_was_before_comes_back(self, past):
        assert read_instruction(instruction_content("{}", 4, past=past)).past == past

    def test_what_is_not_told_leaves_no_trace(self):
        """Sites of an earlier version get what they always got."""
        assert set(instruction_content("{}", 4)["instruction"]) == {"plan", "round"}

    @pytest.mark.parametrize(
        "content",
        [
            RecordDict(),
            RecordDict({"instruction": ConfigRecord({"plan": 1, "round": 1})}),
            RecordDict({"instruction": ConfigRecord({"plan": "{}", "round": -1})}),
            RecordDict({"instruction": ConfigRecord({"plan": "{}", "round": 1}), "code": ConfigRecord({"x": b"y"})}),
            *(
                RecordDict({"instruction": ConfigRecord({"plan": "{}", "round": 4, **past})})
                for past in (
                    {"run": 7},
                    {"run": "A" * 32},
                    {"run": "a" * 33},
                    {"run": "a" * 32 + "\n"},
                    {"counted": 4},
                    {"counted": -1},
                    {"counted": "1"},
                    {"counted": True},
                    {"counted": 1.0},
                )
            ),
        ],
    )
    def test_anything_else_is_refused(self, content):
        with pytest.raises(PlanError, match="instruction"):
            read_instruction(content)


class TestReply:
    def read(self, **records):
        return read_reply(message(RecordDict(records)), SPECS)

    def test_a_good_reply_comes_back(self):
        content = reply_content(read_report(json.dumps(REPORT)), ARRAYS, np.zeros((1, 2, 2, 3), np.uint8))
        reply = read_reply(message(content), SPECS)
        assert reply.report.patients == 5
        assert reply.update["w"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
        assert reply.pictures.shape == (1, 2, 2, 3)
        assert reply.bytes > 24

    @pytest.mark.parametrize(
        "change",
        [
            {"patients": -1},
            {"site": "../etc"},
            {"note": "free text"},
            {"metrics": [{"split": "test", "patients": 3, "values": {"patient_name": 1.0}}]},
            {"metrics": [{"split": "test", "patients": 3, "values": {"dice": float("nan")}}]},
            {"train_loss": float("inf")},
            {"plan_sha256": "short"},
        ],
    )
    def test_a_report_with_anything_unforeseen_is_refused(self, change):
        with pytest.raises(ReplyError, match="report"):
            read_report(json.dumps({**REPORT, **change}))

    @pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null"])
    def test_a_report_that_is_no_report_is_refused(self, text):
        with pytest.raises(ReplyError, match="report"):
            read_report(text)

    def test_foreign_records_are_refused(self):
        report = ConfigRecord({"json": json.dumps(REPORT)})
        for extra in ({"metrics": MetricRecord({"x": 1.0})}, {"more": to_record(ARRAYS)}):
            with pytest.raises(ReplyError, match="other records"):
                read_reply(message(RecordDict({"report": report, **extra})), SPECS)

    def test_a_report_of_the_wrong_type_is_refused(self):
        with pytest.raises(ReplyError, match="no report"):
            read_reply(message(RecordDict({"report": ConfigRecord({"json": 3})})), SPECS)

    @pytest.mark.parametrize("shape", [(1, 2, 2, 4), (2, 2, 3)])
    def test_pictures_of_another_shape_are_refused(self, shape):
        content = reply_content(read_report(json.dumps(REPORT)), {}, None)
        content["pictures"] = to_record({"pictures": np.zeros(shape, np.uint8)})
        with pytest.raises(ReplyError, match="pictures"):
            read_reply(message(content), SPECS)

    def test_pictures_with_another_name_or_type_are_refused(self):
        content = reply_content(read_report(json.dumps(REPORT)), {}, None)
        for arrays in ({"x": np.zeros((1, 1, 1, 3), np.uint8)}, {"pictures": np.zeros((1, 1, 1, 3), np.float32)}):
            content["pictures"] = to_record(arrays)
            with pytest.raises(ReplyError, match="pictures"):
                read_reply(message(content), SPECS)

    def test_a_signature_comes_with_figures_of_frozen_models_only(self):
        judging = read_report(json.dumps(JUDGED))
        assert read_reply(message(reply_content(judging, {}, None, "signature")), SPECS).signature == "signature"
        assert read_reply(message(reply_content(judging, {}, None)), SPECS).signature == ""
        with pytest.raises(ReplyError, match="was not asked for"):
            read_reply(message(reply_content(read_report(json.dumps(REPORT)), {}, None, "signature")), SPECS)

    @pytest.mark.parametrize(
        "record", [{"validation": 3}, {"validation": "x" * 200}, {}, {"validation": "x", "more": "y"}]
    )
    def test_a_signature_of_another_form_is_refused(self, record):
        content = reply_content(read_report(json.dumps(JUDGED)), {}, None)
        content["signature"] = ConfigRecord(record)
        with pytest.raises(ReplyError, match=r"signature is none|signed in a way"):
            read_reply(message(content), SPECS)
        content["signature"] = to_record(ARRAYS)
        with pytest.raises(ReplyError, match="signed in a way"):
            read_reply(message(content), SPECS)

    def test_a_refusal_is_cut_to_harmless_text(self):
        found = read_reply(message(refusal_content("rm -rf", "line\n\x1b[31m" + "x" * 9000, "../a")), SPECS)
        assert isinstance(found, Refusal)
        assert found.code == "EFL000"
        assert len(found.reason) <= 500
        assert found.reason.isprintable()
        assert found.site == ""


class TestWire:
    def through(self, sent: Message, extra=None):
        here, there = Pipe()
        carrier = threading.Thread(target=send, args=(here, sent, extra))
        carrier.start()
        found = receive(there)
        carrier.join()
        return found

    def test_a_message_crosses_a_pipe_unchanged(self):
        sent = message(instruction_content("{}", 2, to_record(ARRAYS)))
        back, extra, size = self.through(sent, {"node_config": {"site-file": "x"}})
        assert extra == {"node_config": {"site-file": "x"}}
        assert vars(back.metadata) == {k: v for k, v in vars(sent.metadata).items() if k != "_delivered_at"} | {
            "_delivered_at": vars(back.metadata).get("_delivered_at")
        }
        assert back.content.config_records["instruction"] == sent.content.config_records["instruction"]
        assert arrays_sha256(from_record(back.content.array_records["weights"], SPECS)) == arrays_sha256(ARRAYS)
        assert size > 24

    def test_an_error_crosses_a_pipe_unchanged(self):
        back, _, _ = self.through(Message(Error(7, "why"), reply_to=message(RecordDict())))
        assert (back.error.code, back.error.reason) == (7, "why")

    def test_a_closed_pipe_is_told_from_a_message(self):
        here, there = Pipe()
        here.close()
        with pytest.raises(EOFError):
            receive(there)

    def test_records_that_are_not_ours_are_not_sent(self):
        here, _ = Pipe()
        with pytest.raises(TypeError, match="not sent"):
            send(here, message(RecordDict({"x": MetricRecord({"a": 1.0})})))

    def test_array_records_keep_their_kind(self):
        assert isinstance(to_record(ARRAYS), ArrayRecord)
