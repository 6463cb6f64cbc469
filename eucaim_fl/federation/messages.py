"""Between our values and Flower's records. Arrays travel as plain little-endian buffers with dtype and shape.

An instruction holds `instruction` (plan as canonical JSON, round; where sites keep something between rounds, also the
run and perhaps the site's last round that counted) and, except for hello, `weights`. A reply holds `report` (a
`SiteReport` as JSON) with `update` and perhaps `pictures`, or of frozen models `signature` (the border's, over the
report's record of them), or `refusal` (code and safe text). Whatever arrives is
checked before memory is taken for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.config import SITE_NAME, parse
from eucaim_fl.errors import ConfigError, PlanError, ReplyError
from eucaim_fl.records import ArraySpec, Past
from eucaim_fl.site.report import SiteReport

__all__ = [
    "Instruction",
    "Refusal",
    "Reply",
    "from_record",
    "instruction_content",
    "read_instruction",
    "read_reply",
    "read_report",
    "refusal_content",
    "reply_content",
    "to_record",
]

_RAW = "eucaim.raw"
_LARGEST_REPORT_BYTES = 4 * 2**20
_LONGEST_SIGNATURE = 128
_LARGEST_PICTURES_BYTES = 32 * 2**20
_RUN = r"[0-9a-f]{32}"
_UNTOLD = Past()
_DTYPES = {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}


@dataclass(frozen=True)
class Instruction:
    """What a site is asked: the plan's text (hostile until `read_plan` passed it), the round, the arriving weights, and
    what was before."""

    plan_json: str
    round: int
    weights: ArrayRecord | None
    past: Past = _UNTOLD


@dataclass(frozen=True)
class Refusal:
    """A site's coded no; site: the name it gives itself, empty if it could not even read its site file."""

    code: str
    reason: str
    site: str = ""


@dataclass(frozen=True)
class Reply:
    """A site's checked answer; update holds views into the message's own buffers. signature: over the report's record
    of frozen models, not verified yet; empty without one."""

    report: SiteReport
    update: Arrays
    pictures: NDArray[np.uint8] | None
    bytes: int
    signature: str = ""


def to_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Arrays of any shape → Flower's record, in sorted order of names."""
    return ArrayRecord(
        {
            name: FlowerArray(
                dtype=arrays[name].dtype.name,
                shape=tuple(int(n) for n in arrays[name].shape),
                stype=_RAW,
                data=_bytes(arrays[name]),
            )
            for name in sorted(arrays)
        }
    )


def _bytes(array: Array) -> bytes:
    """An array's bytes, little-endian in C order; of an array over a file that was read they are that file's own."""
    plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    whole = plain.base
    return whole if isinstance(whole, bytes) and len(whole) == plain.nbytes else plain.tobytes()


def _checked(name: str, array: FlowerArray, error: type[ReplyError] | type[PlanError]) -> Array:
    if array.stype != _RAW or array.dtype not in _DTYPES:
        raise error(f"Array '{name}' comes in a form that is not accepted.")
    dtype = np.dtype(array.dtype)
    if any(n < 0 for n in array.shape) or len(array.data) != math.prod(array.shape) * dtype.itemsize:
        raise error(f"Array '{name}' has another size than its shape says.")
    return np.frombuffer(array.data, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(array.shape)


def from_record(
    record: ArrayRecord, specs: Sequence[ArraySpec], error: type[ReplyError] | type[PlanError] = ReplyError
) -> Arrays:
    """Flower's record → arrays (read-only views, nothing is copied), exactly those that `specs` names.

    Raises ReplyError (or `error`) for a missing, foreign or differently shaped or typed array.
    """
    expected = {spec.name: spec for spec in specs}
    if set(record) != set(expected):
        missing, foreign = len(set(expected) - set(record)), len(set(record) - set(expected))
        raise error(f"The arrays are not the plan's: {missing} missing, {foreign} foreign.")
    arrays: Arrays = {}
    for name, spec in expected.items():
        array = record[name]
        if tuple(array.shape) != spec.shape or array.dtype != spec.dtype:
            raise error(f"Array '{name}' has another shape or type than the plan's network.")
        arrays[name] = _checked(name, array, error)
    return arrays


def instruction_content(
    plan_json: str, number: int, weights: ArrayRecord | None = None, past: Past = _UNTOLD
) -> RecordDict:
    """The content of an instruction; `weights` is built once and shared by all messages of a round."""
    told = ConfigRecord({"plan": plan_json, "round": number})
    if past.run:
        told["run"] = past.run
    if past.counted is not None:
        told["counted"] = past.counted
    content = RecordDict({"instruction": told})
    if weights is not None:
        content["weights"] = weights
    return content


def read_instruction(content: RecordDict) -> Instruction:
    """What the coordinator asks.

    Raises PlanError if the message holds anything else than an instruction.
    """
    if not set(content) <= {"instruction", "weights"} or "instruction" not in content.config_records:
        raise PlanError("The message is not an instruction of this software.")
    values = content.config_records["instruction"]
    plan, number = values.get("plan"), values.get("round")
    if not isinstance(plan, str) or not isinstance(number, int) or not 0 <= number <= 10_001:
        raise PlanError("The instruction holds no plan or no round.")
    return Instruction(plan, number, content.array_records.get("weights"), _past(values, number))


def _past(values: ConfigRecord, number: int) -> Past:
    run, counted = values.get("run", ""), values.get("counted")
    if not isinstance(run, str) or not (run == "" or re.fullmatch(_RUN, run)):
        raise PlanError("The instruction names its run in a way that is not known.")
    if counted is None:
        return Past(run)
    if not isinstance(counted, int) or isinstance(counted, bool) or not 0 <= counted < max(number, 1):
        raise PlanError("The instruction names a last round that counted which can't be.")
    return Past(run, counted)


def reply_content(
    report: SiteReport, update: Mapping[str, Array], pictures: NDArray[np.uint8] | None, signature: str = ""
) -> RecordDict:
    """The content of a reply. signature: over its record of frozen models, from who has the site's key."""
    content = RecordDict({"report": ConfigRecord({"json": report.model_dump_json()})})
    if update:
        content["update"] = to_record(update)
    if pictures is not None:
        content["pictures"] = to_record({"pictures": pictures})
    if signature:
        content["signature"] = ConfigRecord({"validation": signature})
    return content


def refusal_content(code: str, reason: str, site: str = "") -> RecordDict:
    """The content of a coded no; `reason` must be safe outside the hospital."""
    return RecordDict({"refusal": ConfigRecord({"code": code, "reason": reason[:500], "site": site})})


def read_reply(message: Message, specs: Sequence[ArraySpec]) -> Reply | Refusal:
    """A site's answer, checked: nothing in it is believed before.

    specs: the model's arrays; an update must hold exactly these, or none.
    Raises ReplyError that says what does not fit.
    """
    content = message.content
    if "refusal" in content.config_records:
        values = content.config_records["refusal"]
        code, reason = str(values.get("code", "")), str(values.get("reason", ""))
        site = str(values.get("site", ""))
        return Refusal(
            code if re.fullmatch(r"EFL\d{3}", code) else "EFL000",
            _printable(reason)[:500],
            site if re.fullmatch(SITE_NAME, site) else "",
        )
    if not set(content) <= {"report", "update", "pictures", "signature"} or "report" not in content.config_records:
        raise ReplyError("The reply holds other records than a report and an update.")
    text = content.config_records["report"].get("json")
    if not isinstance(text, str) or len(text) > _LARGEST_REPORT_BYTES:
        raise ReplyError("The reply holds no report, or one that is too long.")
    report = read_report(text)
    update = from_record(content.array_records["update"], specs) if "update" in content.array_records else {}
    pictures = _pictures(content.array_records["pictures"]) if "pictures" in content.array_records else None
    size = len(text) + sum(a.nbytes for a in update.values()) + (0 if pictures is None else pictures.nbytes)
    return Reply(report, update, pictures, size, _signature(content, report))


def read_report(text: str) -> SiteReport:
    """A site's report from its JSON. Raises ReplyError if a value is unknown, missing or out of range."""
    try:
        return parse(SiteReport, json.loads(text), "The report")
    except (ValueError, RecursionError):
        raise ReplyError("The report is not JSON.") from None
    except ConfigError as problem:
        raise ReplyError(_printable(problem.message)[:300]) from None


def _signature(content: RecordDict, report: SiteReport) -> str:
    if "signature" not in content:
        return ""
    given = content.config_records["signature"] if "signature" in content.config_records else ConfigRecord()
    text = given.get("validation")
    if report.validated is None or set(given) != {"validation"}:
        raise ReplyError("The reply is signed in a way that was not asked for.")
    if not isinstance(text, str) or len(text) > _LONGEST_SIGNATURE:
        raise ReplyError("The reply's signature is none.")
    return text


def _pictures(record: ArrayRecord) -> NDArray[np.uint8]:
    if set(record) != {"pictures"} or record["pictures"].dtype != "uint8":
        raise ReplyError("The pictures are not pictures.")
    array = record["pictures"]
    if len(array.shape) != 4 or array.shape[-1] != 3 or 0 in array.shape or len(array.data) > _LARGEST_PICTURES_BYTES:
        raise ReplyError("The pictures have a shape or size that is not accepted.")
    return _checked("pictures", array, ReplyError)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
