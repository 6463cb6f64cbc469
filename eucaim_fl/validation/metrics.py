"""Metrics of one patient (segmentation) or one group of patients (classification). NaN means: not defined here."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import DataError

__all__ = [
    "auc",
    "balanced_accuracy",
    "brier",
    "brier_per_patient",
    "calibration_error",
    "calibration_line",
    "confusion",
    "dice",
    "hd95_mm",
    "hd95_of",
    "logistic_fit",
    "surface_distances",
]

BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.integer[Any]]


def dice(pred: BoolArray, truth: BoolArray) -> float:
    """Dice overlap of two masks of one case: 2|P∩T| / (|P|+|T|).

    pred, truth: bool, any shape, same grid.
    Returns a value in [0, 1]; NaN when both are empty, so the caller must decide.
    Raises DataError if the shapes differ.
    Source: Dice 1945; use as in Metrics Reloaded (Maier-Hein et al. 2024).

    >>> dice(np.array([[[True, True]]]), np.array([[[True, False]]]))
    0.6666666666666666
    """
    pred, truth = _masks(pred, truth)
    sizes = int(pred.sum()) + int(truth.sum())
    return 2 * int((pred & truth).sum()) / sizes if sizes else math.nan


def hd95_mm(pred: BoolArray, truth: BoolArray, spacing_mm: tuple[float, ...]) -> float:
    """95th percentile Hausdorff distance of two masks of one case, in mm: max(P95 d(P→T), P95 d(T→P)).

    d(A→B): from each surface voxel's centre of A to the nearest one of B; a surface voxel has a neighbour by face (by
    edge in 2-D) outside the mask, and outside the image counts as outside. Percentiles interpolate linearly.
    pred, truth: bool, shape (D, H, W) or (H, W), same grid. spacing_mm: voxel size along the same axes.
    Returns NaN when both are empty, so the caller must decide; when one is empty, the diagonal of the image,
    √Σ(size·spacing)²: worse than any two masks in it can be, and finite, so that a missed lesion counts in a mean.
    Raises DataError if the shapes differ, or spacing is not one positive number per axis.
    Source: Metrics Reloaded (Maier-Hein et al. 2024), HD95, whose advice for a missing mask is the worst value.
    """
    distances = surface_distances(pred, truth, spacing_mm)
    return hd95_of(*distances, math.hypot(*(size * mm for size, mm in zip(pred.shape, spacing_mm, strict=True))))


def hd95_of(to_truth: FloatArray, to_pred: FloatArray, diagonal_mm: float) -> float:
    """`hd95_mm` of distances that are known, as `surface_distances` gives them; the diagonal where one side is empty.

    Returns NaN when both are empty, so the caller must decide.
    """
    if not len(to_truth) and not len(to_pred):
        return math.nan
    if not len(to_truth) or not len(to_pred):
        return diagonal_mm
    return float(max(np.percentile(to_truth, 95), np.percentile(to_pred, 95)))


def surface_distances(
    pred: BoolArray, truth: BoolArray, spacing_mm: tuple[float, ...]
) -> tuple[FloatArray, FloatArray]:
    """Distances in mm from each surface voxel's centre of `pred` to the nearest one of `truth`, and the reverse.

    Surfaces are those of `hd95_mm`. pred, truth: bool, shape (D, H, W) or (H, W), same grid. spacing_mm: voxel size
    along the same axes. Returns one distance for each surface voxel; of an empty mask none, and infinity to it.
    Raises DataError if the shapes differ, or spacing is not one positive number per axis.
    """
    pred, truth = _masks(pred, truth)
    if len(spacing_mm) != pred.ndim or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise DataError("Spacing must be one positive number for each axis of the masks.")
    from scipy.spatial import cKDTree

    spacing = np.asarray(spacing_mm, dtype=np.float64)
    pred_points, truth_points = _surface(pred) * spacing, _surface(truth) * spacing
    if not len(pred_points) or not len(truth_points):
        return np.full(len(pred_points), math.inf), np.full(len(truth_points), math.inf)
    to_truth, to_pred = cKDTree(truth_points).query(pred_points)[0], cKDTree(pred_points).query(truth_points)[0]
    return np.asarray(to_truth), np.asarray(to_pred)


def auc(scores: FloatArray, truth: IntArray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher.

    A tie counts one half. scores: shape (n,), or (n, 2) of which the second column is taken; truth: shape (n,), 0 or 1.
    For K > 2 classes scores have shape (n, K), truth holds 0 … K−1, and the value is the plain mean of the K
    one-against-the-rest areas.
    Returns a value in [0, 1]; NaN unless every class occurs, so the caller must decide.
    Raises DataError if shapes don't fit, a score is not finite, or a class is outside its range.
    Source: Hanley and McNeil 1982; macro average as in Metrics Reloaded (Maier-Hein et al. 2024).

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    scores, classes = _scores(scores)
    truth = _truth(truth, len(scores), classes)
    if classes == 2:
        return _rank_auc(scores[:, 1], truth == 1)
    return float(np.mean([_rank_auc(scores[:, k], truth == k) for k in range(classes)]))


def _rank_auc(scores: FloatArray, positive: BoolArray) -> float:
    high, low = scores[positive], np.sort(scores[~positive])
    if not len(high) or not len(low):
        return math.nan
    halves = np.searchsorted(low, high, "left").sum() + np.searchsorted(low, high, "right").sum()
    return int(halves) / (2 * len(high) * len(low))


def confusion(predicted: IntArray, truth: IntArray, classes: int) -> NDArray[np.int64]:
    """Numbers of patients by true class (row) and predicted class (column), shape (classes, classes).

    Raises DataError if lengths differ or a class is outside 0 … classes−1.
    """
    truth = _truth(truth, len(predicted), classes)
    predicted = _truth(predicted, len(truth), classes)
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def balanced_accuracy(predicted: IntArray, truth: IntArray, classes: int) -> float:
    """Mean over classes of the share of its patients that were recognised (recall).

    predicted, truth: shape (n,), 0 … classes−1.
    Returns a value in [0, 1]; NaN unless every class occurs in `truth`, so the caller must decide.
    Raises DataError if lengths differ or a class is outside its range.
    Source: Brodersen et al. 2010.

    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 2)
    0.75
    """
    counts = confusion(predicted, truth, classes)
    patients = counts.sum(axis=1)
    return float(np.mean(np.diag(counts) / patients)) if patients.all() else math.nan


def brier_per_patient(probabilities: FloatArray, truth: IntArray) -> FloatArray:
    """Each patient's squared error, shape (n,); `brier` is its mean.

    Two classes: (p₁ − y)², in [0, 1]. K > 2 classes: Σₖ (pₖ − [y = k])², in [0, 2].
    probabilities: shape (n,) (of the second of two classes) or (n, K) with rows that sum to 1.
    Raises DataError if shapes don't fit or a value is no probability.
    """
    probabilities, classes = _scores(probabilities)
    truth = _truth(truth, len(probabilities), classes)
    rounding = 1e-3  # half precision sums to 1 that well
    if (abs(probabilities - 0.5) > 0.5 + rounding).any() or (abs(probabilities.sum(axis=1) - 1) > rounding).any():
        raise DataError("Probabilities must lie between 0 and 1 and sum to 1 for each patient.")
    if classes == 2:
        return np.asarray((probabilities[:, 1] - truth) ** 2)
    return np.asarray(((probabilities - (truth[:, None] == np.arange(classes))) ** 2).sum(axis=1))


def brier(probabilities: FloatArray, truth: IntArray) -> float:
    """Brier score: mean squared error of the probabilities; 0 is perfect. See `brier_per_patient` for the formula.

    Returns NaN without patients, so the caller must decide.
    Raises DataError if shapes don't fit or a value is no probability.
    Source: Brier 1950; for two classes the half of it that is in common use.

    >>> brier(np.array([0.5, 1.0]), np.array([1, 1]))
    0.125
    """
    errors = brier_per_patient(probabilities, truth)
    return math.fsum(errors) / len(errors) if len(errors) else math.nan


def calibration_error(probabilities: FloatArray, truth: IntArray, bins: int = 10) -> float:
    """Expected calibration error: Σ_b n_b/n · |observed share in b − mean predicted probability in b|.

    Two classes: the probability of the second class and its share. K > 2 classes: the likeliest class's probability,
    and the share of patients in whom it is right. Bins hold equally many patients (as equally as n allows), in order of
    the probability; the order of patients changes nothing.
    probabilities: shape (n,) or (n, K); truth: shape (n,), 0 … K−1. Returns a value in [0, 1]; NaN without patients.
    The value is too large for few patients: each bin's noise counts as an error.
    Raises DataError if shapes don't fit, a value is no probability, or bins is not positive.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3; bins of equal mass as in Nixon et al.
    2019, Measuring Calibration in Deep Learning.

    >>> round(calibration_error(np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1]), bins=2), 6)
    0.2
    """
    brier_per_patient(probabilities, truth)  # refuses what is no probability
    columns, classes = _scores(probabilities)
    if bins < 1:
        raise DataError("Calibration needs at least one bin.")
    if not len(columns):
        return math.nan
    if classes == 2:
        confidence, right = columns[:, 1], np.asarray(truth, dtype=np.float64)
    else:
        confidence = columns.max(axis=1)
        right = (columns.argmax(axis=1) == truth).astype(np.float64)
    order = np.lexsort((right, confidence))
    gaps = [abs(math.fsum(right[part]) - math.fsum(confidence[part])) for part in np.array_split(order, bins)]
    return math.fsum(gaps) / len(order)


def calibration_line(probabilities: FloatArray, truth: IntArray) -> tuple[float, float]:
    """Calibration slope b of logit P(y = 1) = a + b · logit p, and intercept a where b is held at 1.

    Slope 1 and intercept 0 is perfect; a slope below 1: predictions are too extreme; an intercept below 0: too high.
    Two classes only. probabilities: shape (n,) or (n, 2), taken as at least 10⁻⁶ away from 0 and 1; truth: shape (n,).
    Returns (NaN, NaN) unless both classes occur; a slope that no finite number fits best is NaN.
    Raises DataError if shapes don't fit, a value is no probability, or there are more than two classes.
    Source: Cox 1958, Two Further Applications of a Model for Binary Regression; Van Calster et al. 2019.
    """
    brier_per_patient(probabilities, truth)
    columns, classes = _scores(probabilities)
    if classes != 2:
        raise DataError("A calibration line is for two classes.")
    seen = np.asarray(truth, dtype=np.float64)
    if not 0 < seen.sum() < len(seen):
        return math.nan, math.nan
    clipped = np.clip(columns[:, 1], 1e-6, 1 - 1e-6)
    logits = np.log(clipped / (1 - clipped))
    ones = np.ones_like(logits)
    both = np.stack([ones, logits], axis=1)
    slope = logistic_fit(both, np.zeros_like(logits), seen[None], ones[None])[0, 1]
    return float(slope), float(logistic_fit(ones[:, None], logits, seen[None], ones[None])[0, 0])


def logistic_fit(
    design: FloatArray, offset: FloatArray, positives: FloatArray, patients: FloatArray
) -> NDArray[np.float64]:
    """Coefficients of greatest likelihood of logit P(y = 1) = offset + design·β, of many samples at once, shape (B, k).

    Newton's method; a step is halved as long as the likelihood, which is concave, falls by it. design: shape (n, k);
    offset: shape (n,), or (B, n) of each sample; positives, patients: of each of n groups and each sample how many have
    y = 1, and how many there are, shape (B, n).
    A sample for which no finite numbers fit best (one class, classes that do not overlap) has NaN.
    """
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    seen = positives.sum(axis=1)
    active = np.flatnonzero((seen > 0) & (seen < patients.sum(axis=1)))
    beta, offsets = np.zeros((len(positives), design.shape[1])), np.broadcast_to(offset, positives.shape)
    found = np.full_like(beta, math.nan)
    for _ in range(100):
        mean = 0.5 * (1 + np.tanh((offsets[active] + beta[active] @ design.T) / 2))
        expected = patients[active] * mean
        curvature = ((expected * (1 - mean)) @ products).reshape(-1, design.shape[1], design.shape[1])
        gradient = (positives[active] - expected) @ design
        solvable = _condition(curvature) <= 1e12
        active = active[solvable]
        if not len(active):
            break
        step = _solved(curvature[solvable], gradient[solvable])
        line = offsets[active] + beta[active] @ design.T
        step *= _length(line, step @ design.T, positives[active], patients[active])[:, None]
        beta[active] += step
        ended = abs(step).max(axis=1) < 1e-9
        found[active[ended]] = beta[active[ended]]
        active = active[~ended]
    return found


def _length(line: FloatArray, step: FloatArray, positives: FloatArray, patients: FloatArray) -> FloatArray:
    """1, ½, ¼ … of each sample's step, the first by which Σ y·η − n·log(1 + e^η) does not fall; shape (B,).

    A whole step of Newton's that moves no η by more than M = 3/2 needs no look: the third derivative of log(1 + e^η)
    is at most its second, so with the gradient's gain λ² the likelihood rises by at least λ²·(1 − (e^M − 1 − M)/M²).
    line, step: η and what a whole step adds to it, shape (B, n).
    Source: Bach 2010, Self-concordant analysis for logistic regression, lemma 1.
    """

    def likelihood(line: FloatArray, own: NDArray[np.intp]) -> FloatArray:
        return np.asarray((positives[own] * line - patients[own] * np.logaddexp(0.0, line)).sum(axis=1))

    length, left = np.ones(len(line)), np.flatnonzero(abs(step).max(axis=1) > 1.5)
    before = np.zeros(len(line))
    before[left] = likelihood(line[left], left)
    for _ in range(50):
        if not len(left):
            break
        after = likelihood(line[left] + length[left, None] * step[left], left)
        left = left[~(after >= before[left] - 1e-9 * (1 + abs(before[left])))]
        length[left] /= 2
    return length


def _condition(matrices: FloatArray) -> FloatArray:
    """Condition numbers of symmetric matrices that are not negative, shape (B, k, k); written out for k of 1 and 2."""
    if matrices.shape[1] == 1:
        return np.where(matrices[:, 0, 0] > 0, 1.0, math.inf)
    if matrices.shape[1] > 2:
        return np.asarray(np.linalg.cond(matrices))
    a, b, d = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    largest = (a + d) / 2 + np.hypot((a - d) / 2, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = largest**2 / (a * d - b * b)  # the smallest eigenvalue is the determinant over the largest one
    return np.where(found >= 1, found, math.inf)


def _solved(matrices: FloatArray, right: FloatArray) -> FloatArray:
    """x of A·x = y for each sample, A as in `_condition`; y: shape (B, k)."""
    if matrices.shape[1] == 1:
        return np.asarray(right / matrices[:, 0])
    if matrices.shape[1] > 2:
        return np.asarray(np.linalg.solve(matrices, right[:, :, None])[:, :, 0])
    a, b, d = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    determinant = a * d - b * b
    return (
        np.stack([d * right[:, 0] - b * right[:, 1], a * right[:, 1] - b * right[:, 0]], axis=1) / determinant[:, None]
    )


def _masks(pred: BoolArray, truth: BoolArray) -> tuple[BoolArray, BoolArray]:
    if pred.shape != truth.shape:
        raise DataError(f"A mask of shape {pred.shape} can't be compared with one of shape {truth.shape}.")
    return pred.astype(bool, copy=False), truth.astype(bool, copy=False)


def _surface(mask: BoolArray) -> NDArray[np.int64]:
    """Indices of the surface voxels, shape (n, axes)."""
    padded = np.pad(mask, 1)
    inner = tuple(slice(1, -1) for _ in mask.shape)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            inside &= np.roll(padded, shift, axis)[inner]
    return np.argwhere(mask & ~inside)


def _scores(scores: FloatArray) -> tuple[FloatArray, int]:
    """As shape (n, K) and K; one column is that of the second of two classes."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise DataError("Scores must be one value per patient, or one per patient and class.")
    if not np.isfinite(scores).all():
        raise DataError("A score is not finite.")
    return scores, scores.shape[1]


def _truth(truth: IntArray, length: int, classes: int) -> NDArray[np.int64]:
    values = np.asarray(truth)
    if values.shape != (length,) or (length and values.dtype.kind not in "iub"):
        raise DataError("Classes must be whole numbers, one per patient.")
    if length and (values.min() < 0 or values.max() >= classes):
        raise DataError(f"A class lies outside 0 to {classes - 1}.")
    return values.astype(np.int64)
