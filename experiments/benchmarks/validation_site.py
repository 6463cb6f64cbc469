"""A site's part of the benchmark of a validation's cost: a made-up hospital's patients, and a large model's bytes."""

from __future__ import annotations

import csv
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import yaml
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto
from validation_cost_process import Stages, peak_mb

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import PlanError
from eucaim_fl.federation.messages import reply_content, to_record
from eucaim_fl.federation.model_files import FOLDER, arrived_files, file_specs, read_files
from eucaim_fl.federation.parcel import pack, unpack
from eucaim_fl.inference import sandbox
from eucaim_fl.inference.runtime import prepare
from eucaim_fl.models.planned import initial_arrays
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.site import judging
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.judging import JudgingNode

__all__ = ["file", "site"]

_TASKS = {
    "classification": {"name": "classification", "spatial_dims": 2, "target": "malignant", "classes": ["0", "1"]},
    "segmentation": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
}
_NETWORKS = {
    "classification": {"name": "small_cnn", "args": {"channels": [32, 64, 128], "strides": [2, 2, 2]}},
    "segmentation": {"name": "unet", "args": {"channels": [16, 32, 64], "strides": [2, 2], "num_res_units": 1}},
}
_MOST_TURNS = 200


def site(job: Mapping[str, Any]) -> dict[str, Any]:
    """Patients judged by the product's own node, by stage; then the same images with and without a lock, in turns."""
    stages = Stages()
    with tempfile.TemporaryDirectory() as temporary:
        place = _hospital(Path(temporary), job)
        plan, content = _plan(job)
        with stages.of("bring images to the grid (once)"):
            JudgingNode(place, plan)
        with stages.of("open the cohort"):
            node = JudgingNode(place, plan)
        seen = _watch(stages)
        with stages.of("the whole answer"):
            answer = node.validate(1, {"frozen": memoryview(content)})
        refused = refusals(answer, plan, (), node.bounds)
        if refused:
            raise RuntimeError(f"the gate stopped the answer: {refused[0]}")
        packed = pack(reply_content(answer.report, answer.update, answer.pictures))
        told = answer.report.model_dump_json().encode()
        return {
            **job,
            "stages": {name: dict(one) for name, one in stages.found.items()},  # the turns below count in them too
            "bytes": {"leaves": len(told), "as_sent": len(recorddict_to_proto(packed).SerializeToString()),
                      "model": len(content)},
            "peak_mb": peak_mb(),
            "locked_mb": seen["peak_mb"],
            "locked_cpu_s": seen["cpu_s"],
            "ratio": _in_turns(plan, content, seen["images"]),
        }  # fmt: skip


def _hospital(root: Path, job: Mapping[str, Any]) -> Path:
    """A site file; patients have a disc in noise, of which every other one is bright."""
    folder = root / "data"
    folder.mkdir()
    rng, side, rows = np.random.default_rng(2026), int(job["pixels"]), []
    axis = np.arange(side)
    for number in range(int(job["patients"])):
        centre, radius = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.08, 0.2) * side
        disc = (axis[:, None] - centre[0]) ** 2 + (axis[None] - centre[1]) ** 2 < radius**2
        image = rng.normal(0, 20, (side, side)) + (60 + 60 * (number % 2)) * disc
        name = f"p{number:04d}"
        for kind, pixels in (("image", image.astype(np.float32)), ("label", disc.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(pixels[..., None], np.diag([1.0, 1.0, 5.0, 1.0])),
                         folder / f"{name}-{kind}.nii")  # fmt: skip
        sex, age = str(rng.choice(["F", "M"])), int(rng.integers(20, 90))
        rows.append([name, f"{name}-image.nii", f"{name}-label.nii", sex, age, number % 2])
    with (folder / "clinical.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["patient_id", "image", "label", "sex", "age", "malignant"], *rows])
    values = {
        "name": "a",
        "cohort": {"layout": "nifti_csv", "folder": str(folder)},
        "cache": {"folder": str(root / "cache")},
        "release": {"data_is": "confidential", "minimum_patients": 10, "minimum_metric_patients": 5,
                    "score_histograms": True},
    }  # fmt: skip
    (root / "a.yaml").write_text(yaml.safe_dump(values))
    return root / "a.yaml"


def _plan(job: Mapping[str, Any]) -> tuple[FederationPlan, bytes]:
    """A plan of one frozen model, and its file."""
    recipe = {
        "name": "cost", "sites": ["a"], "rounds": 1, "task": _TASKS[job["task"]], "model": _NETWORKS[job["task"]],
        "data": {"modality": None, "spacing_mm": [None, None, None],
                 "size_voxels": [job["pixels"], job["pixels"], None],
                 "intensity": {"kind": "window", "low": -100.0, "high": 200.0}},
        "training": {"local_steps": 1},
    }  # fmt: skip
    trained = make_plan(ExperimentConfig.model_validate(recipe), ("a",))
    kind = str(job["format"])
    content = _onnx(int(job["pixels"])) if kind == "onnx" else b"".join(encode_arrays(initial_arrays(trained)[1]))
    plan = trained.model_dump()
    model = {
        "name": "frozen", "format": kind, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content),
        "network": plan["model"] if kind == "network" else None, "data": plan["data"], "intended_use": "Cost.",
    }  # fmt: skip
    asked = {
        "models": [model],
        "thresholds": (0.1, 0.25, 0.4, 0.5, 0.625, 0.75),
        "subgroups": [{"by": "sex"}, {"by": "age", "edges": (40, 55, 70)}],
    }
    return FederationPlan.model_validate({**plan, "validation": asked}), content


def _onnx(pixels: int) -> bytes:
    """Three convolutions with strides of 2, the mean, and a layer of two classes."""
    import onnx
    from onnx import TensorProto, helper

    rng, nodes, stored, before = np.random.default_rng(0), [], [], "x"
    for index, (ins, outs) in enumerate(((1, 32), (32, 64), (64, 128))):
        weight = rng.normal(0, np.sqrt(2 / (9 * ins)), (outs, ins, 3, 3)).astype(np.float32)
        stored.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [before, f"w{index}"], [f"c{index}"], strides=[2, 2], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        before = f"r{index}"
    stored.append(onnx.numpy_helper.from_array(rng.normal(0, 0.1, (128, 2)).astype(np.float32), "last"))
    nodes += [helper.make_node("GlobalAveragePool", [before], ["m"]), helper.make_node("Flatten", ["m"], ["f"]),
              helper.make_node("MatMul", ["f", "last"], ["y"])]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", ["n", 1, pixels, pixels]), ("y", ["n", 2]))]  # fmt: skip
    graph = helper.make_graph(nodes, "cost", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _watch(stages: Stages) -> dict[str, Any]:
    """Count the node's stages from now on; see what the locked process takes, and which images it gets."""
    seen: dict[str, Any] = {"images": [], "peak_mb": 0.0, "cpu_s": 0.0}
    predict, close = sandbox.Sandbox.predict, sandbox.Sandbox.close

    def predicted(model: sandbox.Sandbox, images: Any) -> Any:
        if len(seen["images"]) < _MOST_TURNS:
            seen["images"].append(np.array(images))
        with stages.of("… inference, in the locked process"):
            return predict(model, images)

    def closed(model: sandbox.Sandbox) -> None:
        process = model._process
        if process is not None and process.poll() is None:
            folder = Path(f"/proc/{process.pid}")
            words = folder.joinpath("stat").read_text().rpartition(")")[2].split()
            seen["cpu_s"] += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
            peak = next((line for line in folder.joinpath("status").read_text().splitlines() if "VmHWM" in line), "")
            seen["peak_mb"] = max(seen["peak_mb"], float(peak.split()[1]) * 1024 / 1e6 if peak else 0.0)
        close(model)

    changed: dict[Any, dict[str, Any]] = {
        judging: {
            "open_model": stages.around("… opening the model (libraries, lock, file)", judging.open_model),
            "mask_results": stages.around("… metrics of masks", judging.mask_results),
        },
        JudgingNode: {
            "_groups": stages.around("… groups", JudgingNode._groups),
            "_keep": stages.around("… keeping patients' results", JudgingNode._keep),
            "_tellable": stages.around("… what may be told", JudgingNode._tellable),
        },
        sandbox.Sandbox: {"predict": predicted, "close": closed},
    }
    for where, functions in changed.items():
        for name, function in functions.items():
            setattr(where, name, function)
    return seen


def _in_turns(plan: FederationPlan, content: bytes, batches: list[Any]) -> float:
    """Median wall seconds of a batch in a locked process over those in this one."""
    asked = plan.validation
    if asked is None:
        raise RuntimeError("the plan asks for no validation")
    contract = asked.models[0]
    here = SimpleNamespace(predict=prepare(contract, plan.task, 1)(memoryview(content)))
    seconds: dict[str, list[float]] = {"locked": [], "plain": []}
    with sandbox.open_model(contract, plan.task, content, asked.limits) as locked:
        for batch in batches:
            for name, model in (("locked", locked), ("plain", here)):
                started = time.perf_counter()
                model.predict(batch)
                seconds[name].append(time.perf_counter() - started)
    return statistics.median(seconds["locked"]) / statistics.median(seconds["plain"])


def file(job: Mapping[str, Any]) -> dict[str, Any]:
    """A model's bytes from the run's folder to the sealed file of a locked process, as each side handles them."""
    plan, _ = _plan({"task": "classification", "format": "network", "pixels": 32})
    size, steps = int(job["bytes"]), Stages()
    memory: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / FOLDER / "frozen"
        place.parent.mkdir()
        block = np.random.default_rng(0).bytes(10**6)
        with place.open("wb") as stream:
            for _ in range(size // len(block)):
                stream.write(block)
        digest = hashlib.sha256()
        for _ in range(size // len(block)):
            digest.update(block)
        asked = plan.validation
        if asked is None:
            raise RuntimeError("the plan asks for no validation")
        contract = asked.models[0].model_copy(update={"size_bytes": size, "sha256": digest.hexdigest()})
        asked = asked.model_copy(update={"models": (contract,)})

        def step(name: str, work: Any) -> Any:
            with steps.of(name):
                found = work()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory[name] = {"memory_mb": pages * os.sysconf("SC_PAGESIZE") / 1e6, "peak_mb": peak_mb()}
            return found

        step("before", lambda: None)
        arrays = step("coordinator: read and compare", lambda: read_files(Path(temporary), asked))
        sent = step("coordinator: as a message's record", lambda: RecordDict({"weights": to_record(arrays)}))
        packed = step("coordinator: packed", lambda: pack(sent))
        arrived = step("site's client: unpacked", lambda: unpack(packed, PlanError))
        record = arrived.array_records["weights"]
        step("site's client: compared with the plan", lambda: arrived_files(record, asked))
        files = step("worker: compared with the plan", lambda: arrived_files(record, asked))
        handle = step("worker: compared again and sealed", lambda: sandbox._sealed(files["frozen"], contract))
        os.close(handle)
        if file_specs(asked)[0].shape != (size,):
            raise RuntimeError("another size travelled")
    return {"bytes": size, "steps": {name: {**one, **memory[name]} for name, one in steps.found.items()}}
