"""Evaluation: results of patients, never of files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.training.evaluation import evaluate, patient_results, previews

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]
VOLUMES = SegmentationConfig(spatial_dims=3, labels=("lesion",))
TWO_LABELS = SegmentationConfig(spatial_dims=3, labels=("liver", "lesion"))
CLASSES = ClassificationConfig(spatial_dims=3, target="malignant", classes=("no", "yes"))


class Rounded(nn.Module):
    """A network whose answer is the image itself: class 0, 1, … by its values."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([-(images - k).abs() * self.weight for k in range(self.classes)], dim=1)


class MeanLogit(nn.Module):
    """Logits (0, mean of the image)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1) * self.weight
        return torch.stack([torch.zeros_like(mean), mean], dim=1)


def block(value: int = 1) -> np.ndarray:
    array = np.zeros((6, 6, 4), dtype=np.uint8)
    array[1:4, 1:4, 1:3] = value
    return array


EMPTY = np.zeros((6, 6, 4), dtype=np.uint8)


class TestPatientResults:
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_a_perfect_network_has_dice_one_and_no_distance(
        self, plan_for: Plans, prepared_case: Cases, spatial_dims: int
    ) -> None:
        task = VOLUMES.model_copy(update={"spatial_dims": spatial_dims})
        found = patient_results(Rounded(), [prepared_case(block(), block())], plan_for(task))
        assert found == {"p": {"dice": 1.0, "hd95_mm": 0.0}}

    def test_several_cases_of_a_patient_are_averaged(self, plan_for: Plans, prepared_case: Cases) -> None:
        half = block()
        half[:, :, 2] = 0
        cases = [
            prepared_case(block(), block(), "second"),
            prepared_case(block(), block(), "first"),
            prepared_case(half, block(), "second"),
        ]
        found = patient_results(Rounded(), cases, plan_for(VOLUMES))
        assert list(found) == ["second", "first"]
        assert found["first"]["dice"] == 1.0
        assert found["second"]["dice"] == pytest.approx((1 + 2 / 3) / 2)

    def test_a_distance_is_in_millimetres(self, plan_for: Plans, prepared_case: Cases) -> None:
        one, other = EMPTY.copy(), EMPTY.copy()
        one[2, 2, 1] = other[2, 2, 2] = 1
        found = patient_results(Rounded(), [prepared_case(one, other)], plan_for(VOLUMES))
        assert found["p"] == {"dice": 0.0, "hd95_mm": 4.0}

    def test_a_metric_that_no_case_defines_is_nan(self, plan_for: Plans, prepared_case: Cases) -> None:
        found = patient_results(Rounded(), [prepared_case(EMPTY, EMPTY)], plan_for(VOLUMES))
        assert np.isnan(found["p"]["dice"])
        assert np.isnan(found["p"]["hd95_mm"])

    def test_an_undefined_case_does_not_spoil_the_patients_others(self, plan_for: Plans, prepared_case: Cases) -> None:
        cases = [prepared_case(EMPTY, EMPTY), prepared_case(block(), block())]
        assert patient_results(Rounded(), cases, plan_for(VOLUMES))["p"]["dice"] == 1.0

    def test_several_labels_have_a_value_each_and_a_mean_over_the_defined(
        self, plan_for: Plans, prepared_case: Cases
    ) -> None:
        found = patient_results(Rounded(3), [prepared_case(block(2), block(2))], plan_for(TWO_LABELS))["p"]
        assert np.isnan(found["dice_liver"])
        assert found["dice_lesion"] == found["dice"] == 1.0
        assert set(found) == {f"{k}{end}" for k in ("dice", "hd95_mm") for end in ("", "_liver", "_lesion")}

    def test_probabilities_of_a_patients_images_are_averaged(self, plan_for: Plans, prepared_case: Cases) -> None:
        cases = [prepared_case(np.full((4, 4, 4), v), patient="p", target=1) for v in (-1.0, 1.0)]
        found = patient_results(MeanLogit(), cases, plan_for(CLASSES))
        assert found["p"]["probabilities"] == pytest.approx([0.5, 0.5])
        assert found["p"]["truth"] == 1

    def test_the_network_is_asked_in_evaluation_mode(self, plan_for: Plans, prepared_case: Cases) -> None:
        network = nn.Sequential(Rounded(), nn.Dropout(0.99)).train()
        found = patient_results(network, [prepared_case(block(), block())], plan_for(VOLUMES))
        assert found["p"]["dice"] == 1.0


class TestEvaluate:
    def test_a_segmentation_is_summed_over_patients(self, plan_for: Plans, prepared_case: Cases) -> None:
        cases = [
            prepared_case(block(), block(), "a"),
            prepared_case(EMPTY, block(), "b"),
            prepared_case(EMPTY, EMPTY, "c"),
        ]
        found = evaluate(Rounded(), cases, plan_for(VOLUMES), "test")
        assert (found.split, found.patients) == ("test", 3)
        assert found.sums["dice"] == (2.0, 1.0, 1.0)
        assert found.values["dice"] == 0.5

    @pytest.mark.parametrize("histograms", [False, True])
    def test_a_classification_gives_histograms_only_if_asked(
        self, plan_for: Plans, prepared_case: Cases, histograms: bool
    ) -> None:
        cases = [
            prepared_case(np.full((4, 4, 4), 5.0 if target else -5.0), patient=f"p{n}", target=target)
            for n, target in enumerate((0, 1, 1))
        ]
        found = evaluate(MeanLogit(), cases, plan_for(CLASSES), "validation", histograms=histograms)
        assert found.patients == 3
        assert found.values["auc"] == found.values["balanced_accuracy"] == 1.0
        assert found.sums["confusion"] == (1.0, 0.0, 0.0, 2.0)
        assert any(name.startswith("scores_") for name in found.sums) is histograms


class TestPreviews:
    def test_one_picture_a_patient_padded_to_one_size(self, plan_for: Plans, prepared_case: Cases) -> None:
        wide = np.zeros((6, 3, 4), dtype=np.uint8)
        wide[1:3, 1:2] = 1
        cases = [
            prepared_case(block(), block(), "a"),
            prepared_case(EMPTY, EMPTY, "a"),
            prepared_case(wide, wide, "b"),
            prepared_case(block(), block(), "c"),
        ]
        pictures = previews(Rounded(), cases, plan_for(VOLUMES), 2)
        assert pictures.shape == (2, 192, 192, 3)
        assert pictures.dtype == np.uint8
        assert pictures[0].any()
        assert pictures[1, :96].any()
        assert not pictures[1, 96:].any()

    def test_no_case_gives_no_picture(self, plan_for: Plans) -> None:
        assert len(previews(Rounded(), [], plan_for(VOLUMES), 3)) == 0
