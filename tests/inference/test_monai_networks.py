"""A bundle's network and image preparation in this software's words, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eucaim_fl.arrays import decode_arrays, encode_arrays
from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.errors import ConfigError, JournalError, ModelRefusedError
from eucaim_fl.inference.monai_networks import translate
from eucaim_fl.inference.transforms import data_of
from eucaim_fl.models.arguments import check_model
from eucaim_fl.models.assembly import Ends, monai_call

VOXELS = SegmentationConfig(labels=("lesion",))
ENDS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
SEGRESNET = {**ENDS, "init_filters": 16, "upsample_mode": "deconv"}


class TestNetworks:
    @pytest.mark.parametrize(
        ("definition", "name"),
        [
            ({"_target_": "monai.networks.nets.SegResNet", **SEGRESNET}, "segresnet"),
            ({"_target_": "AttentionUnet", **ENDS, "channels": [8, 16], "strides": [2]}, "attention_unet"),
            ({"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 24}, "swin_unetr"),
            (
                {
                    "_target_": "DynUNet", **ENDS, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
                    "upsample_kernel_size": [2, 2], "filters": [8, 16, 32],
                },
                "dynunet",
            ),
        ],
    )  # fmt: skip
    def test_the_same_class_with_the_same_arguments_is_found(self, definition: dict[str, Any], name: str) -> None:
        assert translate(definition, VOXELS, None).model.name == name

    def test_a_classifier_too(self) -> None:
        task = ClassificationConfig(target="t", classes=("a", "b"))
        found = translate(
            {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 3, "out_channels": 2}, task, None
        )
        assert (found.model.name, found.in_channels) == ("densenet121", 3)

    def test_others_are_refused(self) -> None:
        with pytest.raises(ModelRefusedError, match="no network that is known"):
            translate({"_target_": "VNet"}, VOXELS, None)
        with pytest.raises(ModelRefusedError, match="use_conv_final"):
            translate({"_target_": "SegResNet", **ENDS, "init_filters": 16, "use_conv_final": False,
                       "upsample_mode": "deconv"}, VOXELS, None)  # fmt: skip

    def test_what_is_a_class_of_our_own_has_no_such_call(self) -> None:
        from eucaim_fl.config import ModelConfig

        task = ClassificationConfig(target="t", classes=("a", "b"))
        with pytest.raises(TypeError):
            monai_call(check_model(ModelConfig(name="resnet"), task), Ends(2, 1, 2))


class TestPreparation:
    def test_a_list_that_is_none(self) -> None:
        with pytest.raises(ModelRefusedError, match="no Compose"):
            data_of({"_target_": "Compose"}, "CT", 1)

    def test_a_value_out_of_range(self) -> None:
        window = {"_target_": "ScaleIntensityRanged", "a_min": 5, "a_max": 1, "b_min": 0, "b_max": 1, "clip": True}
        steps = [{"_target_": "Orientationd", "axcodes": "LPS"}, window]
        with pytest.raises(ConfigError, match="low must be below"):
            data_of({"_target_": "Compose", "transforms": steps}, "CT", 1)


class TestArraysInMemory:
    def test_they_come_out_as_they_went_in(self) -> None:
        arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3), "none": np.zeros((0, 2))}
        found = decode_arrays(b"".join(map(bytes, encode_arrays(arrays))))
        assert list(found) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)

    @pytest.mark.parametrize("raw", [b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"{}x", b"\x02" + b"\0" * 7 + b"[]"])
    def test_damaged_ones_are_refused(self, raw: bytes) -> None:
        with pytest.raises(JournalError, match="damaged"):
            decode_arrays(raw)
