"""What a frozen model answers: its shape, probabilities made of logits, and whether they are any."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.config import TaskConfig
from eucaim_fl.errors import DataError, ModelAnswerError
from eucaim_fl.validation_config import ModelContract

__all__ = ["LARGEST_BATCH_BYTES", "Images", "answer_shape", "check_answer", "check_images", "to_probabilities"]

Images = NDArray[np.float32]

LARGEST_BATCH_BYTES = 4 * 2**30
"""Of the images of one call, and of what is answered to them."""

_SUM_TOLERANCE = 1e-3
_RANGE_TOLERANCE = 1e-5


def check_images(images: NDArray[Any], contract: ModelContract, task: TaskConfig) -> None:
    """See that images are what a model is made for: float32, finite, shape (n, channels, *spatial), n ≥ 1.

    Where a window or grid is fixed by the contract, and the task is not segmentation, `spatial` must be that size.
    Raises DataError that says what does not fit; what the images are instead is in its local detail.
    """
    channels, fixed = contract.data.number_of_channels(), contract.image_voxels(task.spatial_dims)
    problem, found = "", f"{images.dtype} of shape {list(images.shape)}"
    if images.dtype != np.float32 or images.ndim != 2 + task.spatial_dims:
        problem = f"are not float32 with {2 + task.spatial_dims} axes"
    elif 0 in images.shape:
        problem = "are empty"
    elif images.shape[1] != channels:
        problem = f"have not {channels} channels"
    elif fixed is not None and task.name != "segmentation" and images.shape[2:] != fixed:
        problem = f"have not the size {list(fixed)}"
    elif max(images.size, *[_product(answer_shape(images.shape, task))]) * 4 > LARGEST_BATCH_BYTES:
        problem = f"or their answer take more than {LARGEST_BATCH_BYTES // 2**30} GiB"
    elif not np.isfinite(images).all():
        problem = "hold values that are not finite"
    if problem:  # what they are instead is the site's business
        raise DataError(
            f"The images for {contract.name} {problem}.", fix="Prepare them as its contract says.", local_detail=found
        )


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def answer_shape(images: tuple[int, ...], task: TaskConfig) -> tuple[int, ...]:
    """Shape of the answer to images of a shape (n, channels, *spatial): (n, outputs), with *spatial for segmentation.

    >>> from eucaim_fl.config import SegmentationConfig
    >>> answer_shape((2, 1, 64, 64, 32), SegmentationConfig(labels=("lesion",)))
    (2, 2, 64, 64, 32)
    """
    spatial = images[2:] if task.name == "segmentation" else ()
    return (images[0], task.outputs(), *spatial)


def to_probabilities(raw: Images, contract: ModelContract, task: TaskConfig) -> Images:
    """Probabilities, float32, of what a model said: softmax over axis 1; sigmoid for several labels.

    raw: shape (n, outputs, …). Probabilities, and the log risk of survival, stay as they are. NaN stays NaN.

    >>> from eucaim_fl.config import ClassificationConfig, DataConfig
    >>> task = ClassificationConfig(target="grade", classes=("low", "high"))
    >>> contract = ModelContract(
    ...     name="m", format="onnx", sha256="0" * 64, size_bytes=1, data=DataConfig(), intended_use="a test"
    ... )
    >>> to_probabilities(np.zeros((1, 2), np.float32), contract, task)
    array([[0.5, 0.5]], dtype=float32)
    """
    if contract.outputs == "probabilities" or task.name == "survival":
        return raw
    found: Images
    with np.errstate(over="ignore", invalid="ignore"):
        if task.name == "multilabel":
            found = 0.5 * (1.0 + np.tanh(0.5 * raw))
            return found.astype(np.float32, copy=False)
        powers = np.exp(raw - raw.max(axis=1, keepdims=True))
        found = powers / powers.sum(axis=1, keepdims=True)
    return found.astype(np.float32, copy=False)


def check_answer(answer: NDArray[Any], images: tuple[int, ...], task: TaskConfig) -> None:
    """See that an answer to images of a shape is probabilities: float32, of the right shape, finite, from 0 to 1.

    Those of classes, and of a voxel's labels, add up to 1 within 0.001; the log risk of survival is only finite.
    Raises ModelAnswerError that says what is wrong with it.
    """
    problem = ""
    if answer.dtype != np.float32 or answer.shape != answer_shape(images, task):
        problem = f"{answer.dtype} of shape {list(answer.shape)}, not float32 of {list(answer_shape(images, task))}"
    elif not np.isfinite(answer).all():
        problem = "not all finite"
    elif task.name == "survival":
        return
    elif answer.min() < -_RANGE_TOLERANCE or answer.max() > 1 + _RANGE_TOLERANCE:
        problem = "not between 0 and 1"
    elif task.name != "multilabel" and np.abs(answer.sum(axis=1, dtype=np.float64) - 1).max() > _SUM_TOLERANCE:
        problem = "not 1 when added up over the classes"
    if problem:
        raise ModelAnswerError(
            f"What the model answered is {problem}.",
            fix="Check the contract's outputs (logits or probabilities), channels and intensity against the model.",
        )
