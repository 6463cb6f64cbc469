"""A researcher's model becomes a contract and a file; what would have to be executed does not."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from eucaim_fl.arrays import decode_arrays, encode_arrays
from eucaim_fl.config import DataConfig, ModelConfig, SegmentationConfig
from eucaim_fl.errors import ConfigError, ModelRefusedError
from eucaim_fl.inference.bundle_config import BundleConfig, read_mapping
from eucaim_fl.inference.bundle_files import open_bundle
from eucaim_fl.inference.bundles import from_bundle, from_onnx, from_program, from_run
from eucaim_fl.inference.runtime import planned_network, prepare
from eucaim_fl.models.networks import build, get_arrays
from tests.inference.frozen import TASK, contract_for, linear, onnx_bytes

SPLEEN = SegmentationConfig(labels=("spleen",))
NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": "@channels",
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 2,
    "norm": "batch",
}
STEPS: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": -57,
        "a_max": 164,
        "b_min": 0,
        "b_max": 1,
        "clip": True,
    },
    {"_target_": "EnsureTyped", "keys": "image"},
]
METADATA = {
    "intended_use": "an example",
    "data_source": "Task09",
    "network_data_format": {"inputs": {"image": {"modality": "CT", "num_channels": 1}}},
}


def network(**changes: Any) -> Any:
    from monai.networks.nets import UNet

    return UNet(3, 1, 2, (4, 8), (2,), num_res_units=2, **{"norm": "batch", **changes}).eval()


def bundle(folder: Path, weights: Any = None, **changes: Any) -> Path:
    """A bundle as MONAI's model zoo has them; everything outside of what is read may be an expression."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {
        "imports": ["$import os"],
        "channels": 1,
        "device": "$torch.device('cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": STEPS},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5},
        **changes,
    }
    (folder / "configs/metadata.json").write_text(json.dumps(METADATA))
    (folder / "configs/inference.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    torch.save(network().state_dict() if weights is None else weights, folder / "models/model.pt")
    return folder


def zipped(folder: Path, path: Path, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"spleen/{file.relative_to(folder)}")
        for name, raw in more.items():
            archive.writestr(name, raw)
    return path


class TestABundle:
    def test_it_becomes_a_contract_and_answers_as_monais_network_does(self, tmp_path: Path) -> None:
        theirs = network()
        folder = bundle(tmp_path / "Spleen CT", {"model": theirs.state_dict()})
        frozen = from_bundle(folder, SPLEEN)
        contract = frozen.contract
        assert (contract.name, contract.format, contract.patch_voxels) == ("spleen-ct", "network", (16, 16, 16))
        assert contract.data.spacing_mm == (1.5, 1.5, 2.0)
        assert (contract.data.modality, contract.data.intensity.low, contract.data.intensity.high) == ("CT", -57, 164)
        assert (contract.intended_use, contract.trained_on) == ("an example", "Task09")
        given = np.random.default_rng(1).random((1, 1, 16, 16, 16), dtype=np.float32)
        with torch.no_grad():
            expected = torch.softmax(theirs(torch.from_numpy(given)), 1).numpy()
        found = prepare(contract, SPLEEN)(memoryview(frozen.content))(given)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_a_zip_file_does_as_well(self, tmp_path: Path) -> None:
        folder = bundle(tmp_path / "spleen")
        assert from_bundle(zipped(folder, tmp_path / "spleen.zip"), SPLEEN) == from_bundle(folder, SPLEEN)

    def test_instance_normalisation_without_a_scale_gets_one_that_changes_nothing(self, tmp_path: Path) -> None:
        theirs = network(norm="instance")
        definition = {**NETWORK, "norm": "INSTANCE"}
        frozen = from_bundle(bundle(tmp_path / "b", theirs.state_dict(), network_def=definition), SPLEEN)
        given = np.random.default_rng(1).random((1, 1, 16, 16, 16), dtype=np.float32)
        with torch.no_grad():
            expected = torch.softmax(theirs(torch.from_numpy(given)), 1).numpy()
        found = prepare(frozen.contract, SPLEEN)(memoryview(frozen.content))(given)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_yaml_is_read_as_data(self, tmp_path: Path) -> None:
        folder = bundle(tmp_path / "b")
        path = folder / "configs/inference.json"
        (folder / "configs/inference.yaml").write_text(yaml.safe_dump(json.loads(path.read_text())))
        path.unlink()
        assert from_bundle(folder, SPLEEN).contract.network is not None
        (folder / "configs/inference.yaml").write_text("network_def: !!python/object/apply:os.system [true]")
        with pytest.raises(ModelRefusedError, match="can't be read"):
            from_bundle(folder, SPLEEN)


class Ran:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


class TestAttacks:
    def test_a_python_expression(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        code = f"$__import__('os').mkdir('{trace}')"
        parts: list[dict[str, Any]] = [
            {"network_def": {**NETWORK, "out_channels": code}},
            {"network_def": code},
            {"network_def": "@other", "other": {"_target_": code}},
            {"channels": code},
            {"preprocessing": {"_target_": "Compose", "transforms": [code]}},
            {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [code, 16, 16]}},
            {"network_def": {**NETWORK, code: 1}},
        ]
        for number, part in enumerate(parts):
            with pytest.raises(ModelRefusedError, match="expression") as caught:
                from_bundle(bundle(tmp_path / f"b{number}", **part), SPLEEN)
            assert caught.value.fix
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("%other.json::x", "macro"),
            ("@nowhere", "not there"),
            ("@a", "refers to itself"),
            ("@channels + 1", "within an expression"),
        ],
    )
    def test_macros_and_references(self, tmp_path: Path, value: str, words: str) -> None:
        folder = bundle(tmp_path / "b", network_def={**NETWORK, "in_channels": value}, a="@b", b="@a")
        with pytest.raises(ModelRefusedError, match=words):
            BundleConfig(open_bundle(folder)).part("network_def")

    def test_references_that_double_with_each_step(self, tmp_path: Path) -> None:
        doubling = {f"r{n}": [f"@r{n + 1}"] * 2 for n in range(30)} | {"r30": 1}
        with pytest.raises(ModelRefusedError, match=r"network_def in the bundle's .* holds too many values"):
            from_bundle(bundle(tmp_path / "b", network_def={**NETWORK, "channels": "@r0"}, **doubling), SPLEEN)

    @pytest.mark.parametrize(
        "target", ["os.system", "monai.networks.nets.evil.UNet", "evil.UNet", "BasicUNet", 3, None]
    )
    def test_other_targets(self, tmp_path: Path, target: Any) -> None:
        with pytest.raises(ModelRefusedError, match="no network that is known"):
            from_bundle(bundle(tmp_path / "b", network_def={**NETWORK, "_target_": target}), SPLEEN)

    def test_a_pickle_in_the_weights(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        state = {**network().state_dict(), "x": Ran(trace)}
        with pytest.raises(ModelRefusedError, match="more than tensors"):
            from_bundle(bundle(tmp_path / "b", state), SPLEEN)
        assert not trace.exists()

    def test_paths_out_of_a_zip_file_links_and_bombs(self, tmp_path: Path) -> None:
        folder = bundle(tmp_path / "b")
        for name in ("../../evil", "/etc/evil", "a\\..\\evil", "C:evil"):
            with pytest.raises(ModelRefusedError, match="leads out"):
                open_bundle(zipped(folder, tmp_path / "x.zip", **{name: b"x"}))
        path = zipped(folder, tmp_path / "x.zip")
        link = zipfile.ZipInfo("spleen/models/other.pt")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(link, "/etc/passwd")
        with pytest.raises(ModelRefusedError, match="link"):
            open_bundle(path)
        bomb = zipped(tmp_path / "nothing", tmp_path / "bomb.zip", **{"configs/metadata.json": b" " * 50 * 2**20})
        assert bomb.stat().st_size < 2**17
        with pytest.raises(ModelRefusedError, match="larger"):
            from_bundle(bomb, SPLEEN)
        with pytest.raises(ModelRefusedError, match="larger"):
            open_bundle(bomb).read("configs/metadata.json", 100)

    def test_links_out_of_a_folder(self, tmp_path: Path) -> None:
        folder = bundle(tmp_path / "b")
        (folder / "models").rename(tmp_path / "elsewhere")
        (folder / "models").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ModelRefusedError, match="link"):
            from_bundle(folder, SPLEEN)

    @pytest.mark.parametrize(
        ("name", "raw"),
        [
            ("a.yaml", b"a: &x [1]\nb: [*x, *x]"),
            ("a.yaml", b"[" * 100),
            ("a.json", b"[" * 100_000),
            ("a.json", b"\xff"),
            ("a.yaml", b"- 1"),
            ("a.json", b" " * 2**21),
        ],
    )
    def test_configurations_that_are_none(self, name: str, raw: bytes) -> None:
        with pytest.raises(ModelRefusedError, match=r"can't be read|holds no names|longer"):
            read_mapping(raw, name)


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"act": "relu6"}, "arguments of UNet"),
            ({"up_kernel_size": 5}, "up_kernel_size"),
            ({"adn_ordering": "AND"}, "adn_ordering"),
            ({"norm": ["batch", {"eps": 0.1}]}, "norm"),
            ({"out_channels": 3}, "out_channels"),
            ({"surprise": 1}, "arguments of UNet"),
            ({"spatial_dims": 2}, "spatial_dims"),
        ],
    )
    def test_arguments_of_another_network(self, tmp_path: Path, changes: Any, words: str) -> None:
        with pytest.raises(ModelRefusedError, match=words):
            from_bundle(bundle(tmp_path / "b", network_def={**NETWORK, **changes}), SPLEEN)

    def test_weights_of_another_network_are_told_by_name(self, tmp_path: Path) -> None:
        state = network().state_dict()
        name = sorted(state)[0]
        state["surplus"] = torch.zeros(1)
        state[name] = torch.zeros(1, 1)
        with pytest.raises(ModelRefusedError, match=r"shape \[1, 1\].*1 arrays are unknown"):
            from_bundle(bundle(tmp_path / "a", state), SPLEEN)
        with pytest.raises(ModelRefusedError, match="no state_dict"):
            from_bundle(bundle(tmp_path / "b", {"epoch": 3}), SPLEEN)

    def test_steps_that_would_be_left_out_in_silence(self, tmp_path: Path) -> None:
        odd: list[Any] = [
            [*STEPS[:2], {"_target_": "RandFlipd", "keys": "image"}, *STEPS[2:]],
            [*STEPS[:2], STEPS[3], STEPS[2], STEPS[4]],
            [*STEPS[:4], {**STEPS[4], "clip": False}],
            [*STEPS[:3], {**STEPS[3], "mode": "nearest"}, STEPS[4]],
            STEPS[:4],
            [STEPS[0], STEPS[1], {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}],
        ]
        for number, steps in enumerate(odd):
            folder = bundle(tmp_path / f"b{number}", preprocessing={"_target_": "Compose", "transforms": steps})
            with pytest.raises(ModelRefusedError, match="can't be prepared here"):
                from_bundle(folder, SPLEEN)
            assert from_bundle(folder, SPLEEN, data=DataConfig()).contract.data == DataConfig()

    def test_values_that_no_contract_holds(self, tmp_path: Path) -> None:
        steps = [*STEPS[:2], {**STEPS[2], "axcodes": "XYZ"}, *STEPS[3:]]
        folder = bundle(tmp_path / "b", preprocessing={"_target_": "Compose", "transforms": steps})
        with pytest.raises(ConfigError, match="orientation"):
            from_bundle(folder, SPLEEN)

    def test_channels_that_nobody_names(self, tmp_path: Path) -> None:
        folder = bundle(tmp_path / "b", network_def={**NETWORK, "in_channels": 2})
        with pytest.raises(ModelRefusedError, match="2 channels"):
            from_bundle(folder, SPLEEN)
        with pytest.raises(ModelRefusedError, match="takes 2 channels"):
            from_bundle(folder, SPLEEN, data=DataConfig())

    def test_what_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelRefusedError, match="neither a folder"):
            from_bundle(tmp_path / "none", SPLEEN)
        with pytest.raises(ModelRefusedError, match=r"no configs/metadata\.json"):
            BundleConfig(open_bundle(tmp_path))
        folder = bundle(tmp_path / "b")
        (folder / "models/model.pt").unlink()
        with pytest.raises(ModelRefusedError, match=r"no models/model\.pt"):
            from_bundle(folder, SPLEEN)
        with pytest.raises(ModelRefusedError, match="inferer"):
            from_bundle(bundle(tmp_path / "c", inferer={"_target_": "SlidingWindowInferer"}), SPLEEN)


class TestARun:
    def test_its_best_model_is_taken_with_its_plan(self, tmp_path: Path, plan_for: Any) -> None:
        plan = plan_for()
        from eucaim_fl.models.planned import network_for

        (tmp_path / "run/models").mkdir(parents=True)
        (tmp_path / "run/plan.json").write_text(plan.canonical_json())
        arrays = get_arrays(network_for(plan, 1))
        (tmp_path / "run/models/best.safetensors").write_bytes(b"".join(map(bytes, encode_arrays(arrays))))
        frozen = from_run(tmp_path / "run", intended_use="a test")
        assert frozen.contract.network == plan.model
        assert frozen.contract.data == plan.data
        assert plan.sha256()[:12] in frozen.contract.trained_on
        found = decode_arrays(frozen.content)
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
        name = sorted(arrays)[0]
        wrong = {**arrays, name: np.zeros(3, np.float32)}
        (tmp_path / "run/models/last.safetensors").write_bytes(b"".join(map(bytes, encode_arrays(wrong))))
        with pytest.raises(ModelRefusedError, match=name.replace(".", r"\.")):
            from_run(tmp_path / "run", intended_use="a test", which="last")

    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be read"):
            from_run(tmp_path, intended_use="a test")


class TestAnOnnxFile:
    def test_its_contract_comes_from_a_description(self, tmp_path: Path) -> None:
        raw = onnx_bytes(linear())
        path, described = tmp_path / "m.onnx", tmp_path / "m.yaml"
        path.write_bytes(raw)
        described.write_text("name: model\ndata: {size_voxels: [8, 8, null]}\nintended_use: a test\n")
        assert from_onnx(path, TASK, described).contract == contract_for(raw)
        described.write_text("name: model\nsha256: x\n")
        with pytest.raises(ConfigError, match="sha256"):
            from_onnx(path, TASK, described)
        described.write_text("name: model\ndata: {colour: true}\nintended_use: a test\n")
        with pytest.raises(ModelRefusedError, match="channels"):
            from_onnx(path, TASK, described)
        with pytest.raises(ConfigError, match="can't be read"):
            from_onnx(path, TASK, tmp_path / "none.yaml")


class TestAProgram:
    """Its archive's names tell its kind; it is never loaded."""

    TORCHSCRIPT = ("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl")
    EXPORTED = ("m/models/model.json", "m/data/weights/model_weights_config.json")

    def archive(self, path: Path, *names: str) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"not what it seems: whoever loads it fails")
        path.with_suffix(".yaml").write_text("data: {size_voxels: [8, 8, null]}\nintended_use: a test\n")
        return path

    @pytest.mark.parametrize(
        ("names", "kind"), [(TORCHSCRIPT, "torchscript"), (EXPORTED, "exported")], ids=["torchscript", "exported"]
    )
    def test_it_is_hashed_measured_and_named_after_its_file(self, tmp_path: Path, names: Any, kind: str) -> None:
        path = self.archive(tmp_path / "Triage Net.pt", *names)
        frozen = from_program(path, path.with_suffix(".yaml"))
        assert frozen.contract == contract_for(path.read_bytes(), kind, name="triage-net")
        assert frozen.content == path.read_bytes()

    def test_what_pytorch_writes_is_told_apart(self, tmp_path: Path) -> None:
        plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        for number, kind in enumerate(("torchscript", "exported")):
            path = self.archive(tmp_path / f"{number}.pt")
            if kind == "torchscript":
                torch.jit.save(torch.jit.script(plain), path)
            else:
                torch.export.save(torch.export.export(plain, (torch.zeros(2, 1, 8, 8),)), path.with_suffix(".pt2"))
                path = path.with_suffix(".pt2")
            assert from_program(path, path.with_suffix(".yaml")).contract.format == kind

    def test_weights_alone_are_no_program(self, tmp_path: Path) -> None:
        path = self.archive(tmp_path / "m.pt")
        torch.save(network().state_dict(), path)
        with pytest.raises(ModelRefusedError, match="weights without a network"):
            from_program(path, path.with_suffix(".yaml"))
        path.write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(ModelRefusedError, match="neither TorchScript nor an exported program"):
            from_program(path, path.with_suffix(".yaml"))

    def test_from_program_needs_a_description_beside_it(self, tmp_path: Path) -> None:
        path = self.archive(tmp_path / "m.pt", *self.TORCHSCRIPT)
        with pytest.raises(ConfigError, match="can't be read") as caught:
            from_program(path, tmp_path / "none.yaml")
        assert "called none.yaml beside it" in caught.value.fix
        (tmp_path / "m.yaml").write_text("format: torchscript\n")
        with pytest.raises(ConfigError, match="states format"):
            from_program(path, tmp_path / "m.yaml")


class TestANetworkOfTheContract:
    def test_it_has_the_statistics_that_its_arrays_hold(self) -> None:
        model = ModelConfig(name="resnet", args={"depth": 10, "width": 8})
        contract = contract_for(b"x", "network", network=model, standardised=True, class_shares=1.0, data=DataConfig())
        names = get_arrays(planned_network(contract, TASK))
        assert {"input_mean", "input_std", "class_shares"} < set(names)
        plain = planned_network(contract.model_copy(update={"standardised": False, "class_shares": None}), TASK)
        assert set(get_arrays(plain)) == set(get_arrays(build(model, TASK)))

    def test_one_that_can_not_be_built_is_refused(self) -> None:
        contract = contract_for(b"x", "network", network=ModelConfig(name="no_such"))
        with pytest.raises(ModelRefusedError, match="no_such"):
            planned_network(contract, TASK)

    def test_a_file_that_is_no_safetensors(self) -> None:
        model = ModelConfig(name="small_cnn", args={"channels": [8], "strides": [2]})
        opener = prepare(contract_for(b"x", "network", network=model), TASK)
        buffer = io.BytesIO()
        torch.save({"w": torch.zeros(1)}, buffer)
        good = b"".join(map(bytes, encode_arrays({"w": np.zeros(4, np.float32)})))
        lies = [good.replace(*words) for words in ((b"F32", b"F64"), (b"[4]", b"[9]"), (b"16]", b"99]"))]
        assert good not in lies
        for raw in (buffer.getvalue(), b"", b"\xff" * 16, *lies, good[:-1], b"\xff" * 7 + b"\x7f" + good[8:]):
            with pytest.raises(ModelRefusedError, match="no safetensors"):
                opener(memoryview(raw))
        with pytest.raises(ModelRefusedError, match="not this network's"):
            opener(memoryview(b"".join(map(bytes, encode_arrays({"w": np.zeros(1)})))))
