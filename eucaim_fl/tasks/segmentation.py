"""Segmentation: one class for every voxel; class 0 is background, class i is the plan's i-th label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import DataConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, picture, shown_slice
from eucaim_fl.tasks.sampling import crop, patch_start

__all__ = ["loss", "predict", "predictions", "preview", "training_example"]


def loss(training: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The local loss: logits (B, 1 + labels, *spatial) and classes (B, 1, *spatial) → one number.

    dice_ce (default): Dice over the labels plus cross entropy over all classes. Dice is computed over the batch, so
    that slices without a label do not pull it.
    Source: MONAI `DiceCELoss`, `DiceLoss`; torch `CrossEntropyLoss`.
    """
    if training.loss == "cross_entropy":
        cross_entropy = nn.CrossEntropyLoss()
        return lambda logits, classes: cross_entropy(logits, classes[:, 0].long())
    kind = DiceLoss if training.loss == "dice" else DiceCELoss
    measure = kind(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return lambda logits, classes: measure(logits, classes)


def training_example(
    case: PreparedCase, plan: FederationPlan, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One slice or patch of a case: image (C, *spatial) and classes (1, *spatial).

    With probability `training.foreground_share` it holds a labelled voxel (if the case has any). 2-D networks get
    slices along the third axis.
    """
    image, label = case.image(), case.label()
    if label is None:
        raise ValueError("a case without label was selected for training")
    training, two_d = plan.training, plan.task.spatial_dims == 2
    shape = label.shape
    centre = [int(rng.integers(n)) for n in shape]
    if rng.random() < training.foreground_share and len(case.foreground_voxels):
        if two_d:
            centre[2] = int(rng.choice(np.asarray(case.foreground_slices)))
            here = np.argwhere(label[..., centre[2]])  # the kept sample of voxels may have none in this slice
        else:
            here = case.foreground_voxels
        if len(here):
            place = here[int(rng.integers(len(here)))]
            centre[: len(place)] = [int(v) for v in place]
    if two_d:
        image, label = image[..., centre[2]], label[..., centre[2]]
        centre, shape = centre[:2], shape[:2]
    size = training.patch_voxels or shape
    start = patch_start(centre, size, shape)
    return crop(image, start, size).astype(np.float32), crop(label[None], start, size).astype(np.uint8)


@torch.no_grad()
def predict(network: nn.Module, case: PreparedCase, plan: FederationPlan) -> NDArray[np.uint8]:
    """Classes of a whole case, (I, J, K), on the grid the network was trained on.

    2-D networks see all slices along the third axis; patches overlap by `training.inference_overlap` and are blended
    with Gaussian weights. Source: MONAI `sliding_window_inference`.
    """
    training, two_d = plan.training, plan.task.spatial_dims == 2
    device = next(network.parameters()).device
    volume = torch.from_numpy(np.array(case.image(), dtype=np.float32)).to(device)
    inputs = volume.permute(3, 0, 1, 2) if two_d else volume[None]
    size = training.patch_voxels or tuple(inputs.shape[2:])
    if tuple(size) == tuple(inputs.shape[2:]):
        batches = [network(batch) for batch in torch.split(inputs, training.inference_batch)]
        logits = torch.cat(batches)
    else:
        logits = sliding_window_inference(
            inputs, size, training.inference_batch, network, overlap=training.inference_overlap, mode="gaussian"
        )
    classes = logits.argmax(dim=1).to(torch.uint8).cpu()
    return np.ascontiguousarray(classes.permute(1, 2, 0).numpy() if two_d else classes[0].numpy())


def predictions(network: nn.Module, cases: Iterable[PreparedCase], plan: FederationPlan) -> Iterator[NDArray[np.uint8]]:
    """Classes of each whole case, (I, J, K), in order; see `predict`."""
    return (predict(network, case, plan) for case in cases)


def preview(case: PreparedCase, prediction: NDArray[np.uint8], data: DataConfig) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of the slice with most label: truth outlined in blue, prediction in orange; see `picture`."""
    label = case.label()
    image = np.asarray(case.image())
    truth = np.zeros(image.shape[1:], bool) if label is None else np.asarray(label) > 0
    k = int(np.argmax(truth.sum(axis=(0, 1)))) if truth.any() else image.shape[3] // 2
    outlines = ((truth[..., k], TRUTH_COLOUR), (prediction[..., k] > 0, PREDICTION_COLOUR))
    return picture(shown_slice(image, k, data), outlines, orientation=data.orientation)
