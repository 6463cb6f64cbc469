"""Gradients per patient layer by layer, from what each layer saw and what came back to it, in one pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eucaim_fl.errors import PrivateTrainingError

__all__ = ["LayerGradients", "lengths", "unsupported_layers"]

Formula = Callable[[Any, Tensor, Tensor, int], dict[nn.Parameter, Tensor]]
"""(layer, its input, gradient at its output, patients) → trainable parameter → gradients (patients, *shape).

Inputs and gradients lead with an axis of patients × examples × what else the network put there (windows, say)."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_BROADCAST = {"ViT": "cls_token", "PatchEmbeddingBlock": "position_embeddings"}
"""Parameters (1, …) that a block adds to, or puts before, every example: they can be given one copy an example."""
_FEW = 2
"""Channels up to which unfolding is quicker than a convolution with a group for each patient."""
_BIAS_TABLE = "relative_position_bias_table"
_PIECE = 512
_CANCELLING = 30.0
"""Terms of a gradient that are together so many times as long as the gradient leave too few right digits in float32.

The error of a sum in float32 is some 1e-7 to 1e-6 of what its terms are long together, so up to here it stays below
what a clipped gradient is shorter than the bound."""


def lengths(rows: Tensor) -> Tensor:
    """L2 norm of each row over all its further axes, float64 (rows,); it may be inf if it is above 10¹⁸.

    Short pieces are summed as they are and then in float64: PyTorch's norm of 10⁷ equal float32 is 0.8 % too small.

    >>> lengths(torch.full((1, 1000, 1000), 0.1)).item() / 100 - 1 < 1e-6
    True
    """
    flat = rows.flatten(1)
    if flat.shape[1] <= 4 * _PIECE:
        exact: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
        return exact
    whole = flat.shape[1] // _PIECE * _PIECE
    pieces = torch.linalg.vector_norm(flat[:, :whole].reshape(len(flat), -1, _PIECE), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1, keepdim=True)
    found: Tensor = torch.linalg.vector_norm(torch.cat([pieces, rest], dim=1), dim=1, dtype=torch.float64)
    return found


def _by_patient(rows: Tensor, patients: int) -> Tensor:
    return rows.reshape(patients, -1, *rows.shape[1:])


def _is_pointwise(layer: Any) -> bool:
    """Whether a convolution is a matrix applied to every voxel, which PyTorch does one group after the other."""
    alone = all(n == 1 for n in (*layer.kernel_size, *layer.stride, layer.groups))
    return alone and not layer.transposed and not any(layer.padding)


def _is_matrix(layer: Any) -> bool:
    """Whether a layer can be looked at as a matrix that is applied at every place."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1) or _is_pointwise(layer)


def _at_places(layer: Any, values: Tensor, patients: int) -> Tensor:
    """Channels first, then all places of all of a patient's examples: (patients, channels, places)."""
    if type(layer) is nn.Linear:
        return values.reshape(patients, -1, values.shape[-1]).transpose(1, 2)
    return _by_patient(values.flatten(2), patients).transpose(1, 2).flatten(2)


def _columns(layer: Any, seen: Tensor, patients: int) -> Tensor:
    """What the matrix was applied to: (patients, weights of one output, places)."""
    if type(layer) is not nn.Linear and not _is_pointwise(layer):
        seen = nn.functional.unfold(seen, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return _at_places(layer, seen, patients)


def _weighted(layer: Any, seen: Tensor, back: Tensor, patients: int) -> dict[nn.Parameter, Tensor]:
    """Gradients of linear layers and convolutions.

    One convolution with a group a patient has all patients' gradients at the price of their sum. Opacus unfolds what
    the layer saw instead: 27 times the memory for a kernel of three voxels in 3-D, and up to 17 times the time. That
    is better only for few channels in 2-D, and where there is nothing to unfold.
    """
    found: dict[nn.Parameter, Tensor] = {}
    if layer.weight.requires_grad:
        if _is_matrix(layer) and (type(layer) is nn.Linear or _is_pointwise(layer) or layer.in_channels <= _FEW):
            rows = _at_places(layer, back, patients) @ _columns(layer, seen, patients).transpose(1, 2)
            found[layer.weight] = rows.view(patients, *layer.weight.shape)
        else:
            found[layer.weight] = _grouped(layer, _by_patient(seen, patients), _by_patient(back, patients))
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = _at_places(layer, back, patients).sum(2)
    return found


def _grouped(layer: Any, seen: Tensor, back: Tensor) -> Tensor:
    """seen, back (patients, examples, channels, *spatial): one after the other along the channels."""
    patients, examples = seen.shape[:2]
    side_by_side = (t.transpose(0, 1).reshape(examples, -1, *t.shape[3:]) for t in (back, seen))
    _, weight, _ = torch.ops.aten.convolution_backward(
        *side_by_side, layer.weight.new_empty((patients * layer.weight.shape[0], *layer.weight.shape[1:])),
        None, layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding,
        patients * layer.groups, (False, True, False),
    )  # fmt: skip
    return _by_patient(weight, patients)


def _lengths_of(layer: Any, seen: Tensor, back: Tensor, patients: int) -> list[Tensor] | None:
    """Norms of a layer's gradients from products between its places, without the gradients.

    None where there are so many places that this costs more than the gradients themselves. Where places cancel each
    other, little of the result is right: see `_terms`.
    Source: Goodfellow 2015, Efficient Per-Example Gradient Computations; Bu et al. 2022, Scalable and Efficient
    Training of Large Convolutional Neural Networks with Differential Privacy (when it pays).
    """
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or not layer.weight.requires_grad or not _is_matrix(layer):
        return None
    places = back.numel() // (patients * layer.weight.shape[0])
    if 2 * places**2 > layer.weight.numel():
        return None
    rows, columns = _at_places(layer, back, patients), _columns(layer, seen, patients)
    squares = ((rows.transpose(1, 2) @ rows) * (columns.transpose(1, 2) @ columns)).sum((1, 2), dtype=torch.float64)
    found = [squares.clamp(min=0).sqrt()]
    if layer.bias is not None and layer.bias.requires_grad:
        found.append(lengths(rows.sum(2)))
    return found


def _terms(layer: Any, seen: Tensor, back: Tensor, patients: int) -> Tensor:
    """At least Σ over places of |what was seen| · |what came back|, of which a layer's gradients are sums; (patients,).

    By Cauchy and Schwarz: no value meets more others than the kernel has places, and a bias sees ones.
    """
    came = _by_patient(back, patients)
    is_linear = type(layer) is nn.Linear
    kernel = 1 if is_linear else math.prod(layer.kernel_size)
    ones = 0 if layer.bias is None else came[0].numel() // came.shape[-1 if is_linear else 2]
    return (kernel * lengths(_by_patient(seen, patients)).square() + ones).sqrt() * lengths(came)


def _prelu(layer: Any, seen: Tensor, back: Tensor, patients: int) -> dict[nn.Parameter, Tensor]:
    below = _by_patient(seen.clamp(max=0).mul_(back), patients)
    one = layer.num_parameters == 1
    return {layer.weight: below.flatten(1).sum(1, keepdim=True) if one else below.flatten(3).sum((1, 3))}


def _opacus(kind: type[nn.Module]) -> Callable[..., dict[nn.Parameter, Tensor]]:
    """Opacus' own formula for one kind of layer; its import takes seconds, and not every process trains."""
    from opacus.grad_sample import GradSampleModule

    formula: Callable[..., dict[nn.Parameter, Tensor]] = GradSampleModule.GRAD_SAMPLERS[kind]
    return formula


def _norm(layer: Any, seen: Tensor, back: Tensor, patients: int) -> dict[nn.Parameter, Tensor]:
    rows = _opacus(type(layer))(layer, [seen], back)
    return {
        parameter: each.reshape(patients, -1, *parameter.shape).sum(1)
        for parameter, each in rows.items()
        if parameter.requires_grad
    }


def _bias_table(layer: Any, _seen: Tensor, back: Tensor, patients: int) -> dict[nn.Parameter, Tensor]:
    """back: gradient at the scores (windows, heads, n, n), to which the table was added by position."""
    table, n = layer.relative_position_bias_table, back.shape[-1]
    scores = back.reshape(patients, -1, back.shape[1], n * n).sum(1).transpose(1, 2)
    places = layer.relative_position_index[:n, :n].reshape(-1)
    return {table: back.new_zeros(patients, *table.shape).index_add_(1, places, scores)}


_FORMULAS: Mapping[type[nn.Module], Formula] = {
    **dict.fromkeys((nn.Linear, *_CONVOLUTIONS), _weighted),
    **dict.fromkeys(_NORMS, _norm),
    nn.PReLU: _prelu,
}


def _own(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}


def _is_covered(layer: Any, names: set[str]) -> bool:
    if type(layer) in _FORMULAS:
        return getattr(layer, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(layer, "padding", 0), str)
    if names == {_BIAS_TABLE}:
        return isinstance(getattr(layer, "softmax", None), nn.Softmax)
    return names == {_BROADCAST.get(type(layer).__name__)}


def unsupported_layers(network: nn.Module) -> tuple[str, ...]:
    """Names of layers for which there is no formula, and of those that run twice because they save memory."""
    return tuple(
        name
        for name, layer in network.named_modules()
        if getattr(layer, "use_checkpoint", False) is True
        or ((own := _own(layer)) and not _is_covered(layer, set(own)))
    )


@dataclass(frozen=True)
class _Use:
    """One use of a layer: what it saw and what came back, kept until the patients' norms are known."""

    formula: Formula
    layer: nn.Module
    seen: Tensor
    back: Tensor


@dataclass
class LayerGradients:
    """Gradients of one batch of patients, taken while one backward pass goes through the network.

    keep_all: keep every patient's gradient until all norms are known. Otherwise a layer's are kept only where they
    take less memory than what they are made of; else the norms are taken and the clipped sum is made a second time
    from what the layer saw and what came back, scaled. No second backward pass is needed.
    Source: Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost (book-keeping).
    """

    network: nn.Module
    patients: int
    keep_all: bool
    _uses: list[_Use] = field(default_factory=list)
    _kept: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    _lengths: list[Tensor] = field(default_factory=list)
    _terms: list[Tensor] = field(default_factory=list)
    _times: Counter[nn.Parameter] = field(default_factory=Counter)
    _starts: list[Tensor] = field(default_factory=list)
    _copies: dict[str, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)
    _awaited: int = 0

    def backward(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        """One pass forward and back. images (patients × examples, C, *spatial); loss: outputs → sum over patients.

        Raises PrivateTrainingError for a network that changes in place what a layer saw, or loses what it answered.
        """
        with self._watched(len(images)):
            own = {name: copies for name, (_, copies) in self._copies.items()}
            call = partial(torch.func.functional_call, self.network, own, tie_weights=False) if own else self.network
            outputs: Tensor = call(images)
        # Towards these alone: weights' own gradients, summed over patients, would be computed for nothing.
        grads = torch.autograd.grad(loss(outputs), [*self._starts, *own.values()], allow_unused=True)
        for (parameter, _), grad in zip(self._copies.values(), grads[len(self._starts) :], strict=True):
            if grad is not None:
                self._keep(
                    parameter, grad.view(self.patients, -1, *parameter.shape[1:]).sum(1).view(-1, *parameter.shape)
                )
        self._starts.clear()
        self._copies.clear()
        if self._awaited:
            raise PrivateTrainingError(
                "Some layers of the network have outputs through which no gradient comes back.",
                fix="Set privacy.gradients to loop.",
            )

    def norms(self) -> Tensor:
        """L2 norm of each patient's gradient over all parameters, float64 (patients,)."""
        kept = [lengths(rows) for rows in self._kept.values()]
        norms: Tensor = torch.linalg.vector_norm(torch.stack([*self._lengths, *kept]), dim=0)
        return norms

    def unsure(self, norms: Tensor) -> Tensor:
        """Whose gradient is so much smaller than its terms that rounding decides what it is, bool (patients,).

        Whoever sets the weights can bring this about. The norm of such a gradient may be wrong, and what `add_scaled`
        makes a second time, in another order, may be longer than what was measured; neither holds for gradients that
        are kept. norms: as `norms` gives them.
        """
        unsure = torch.zeros_like(norms, dtype=torch.bool)
        for terms in self._terms:
            unsure |= terms > _CANCELLING * norms
        return unsure

    def add_scaled(self, factors: Tensor, totals: Mapping[nn.Parameter, Tensor]) -> None:
        """Add Σ factor · gradient over patients to each parameter's total. factors (patients,); 0 leaves one out."""
        factors = factors.to(next(iter(totals)).dtype)
        left_out = factors == 0
        some = bool(left_out.any())
        for parameter, rows in self._kept.items():
            flat = rows.flatten(1)
            flat = flat.masked_fill(left_out[:, None], 0) if some else flat
            totals[parameter].view(-1).add_(factors @ flat)
        for use in self._uses:
            back = _by_patient(use.back, self.patients)
            column = factors.view(-1, *(1,) * (back.ndim - 1))
            scaled, seen = (back * column).flatten(0, 1), use.seen
            if some:  # what is not finite would stay so, times 0
                gone = left_out.repeat_interleave(len(seen) // self.patients).view(-1, *(1,) * (seen.ndim - 1))
                seen = seen.masked_fill(gone, 0)
                scaled = scaled.masked_fill(gone.view(-1, *(1,) * (scaled.ndim - 1)), 0)
            for parameter, rows in use.formula(use.layer, seen, scaled, 1).items():
                totals[parameter].add_(rows[0])

    def _keep(self, parameter: nn.Parameter, rows: Tensor) -> None:
        before = self._kept.get(parameter)
        self._kept[parameter] = rows if before is None else before + rows

    @contextmanager
    def _watched(self, examples: int) -> Iterator[None]:
        handles = []
        for name, layer in self.network.named_modules():
            own = _own(layer)
            if type(layer) in _FORMULAS and own:
                handles.append(layer.register_forward_hook(self._saw))
            elif _BIAS_TABLE in own:
                handles.append(layer.softmax.register_forward_pre_hook(partial(self._scored, layer)))
            else:
                for parameter, values in own.items():
                    copies = values.detach().expand(examples, *values.shape[1:]).clone().requires_grad_()
                    self._copies[f"{name}.{parameter}".lstrip(".")] = values, copies
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _saw(self, layer: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        seen, shape = inputs[0].detach(), output.shape
        if not inputs[0].requires_grad:
            output = output.detach().requires_grad_()
            self._starts.append(output)
        # A view that is changed in place later (a residual added to a norm) leaves the graph; what it looks at stays.
        whole = output._base if output._is_view() and output.is_contiguous() else None
        place = output if whole is None or whole.numel() != output.numel() or not whole.is_contiguous() else whole
        self._follow(place, lambda back: _Use(_FORMULAS[type(layer)], layer, seen, back.reshape(shape)), layer, seen)
        return output

    def _scored(self, layer: nn.Module, _softmax: nn.Module, inputs: Sequence[Tensor]) -> None:
        """The scores of an attention over windows, after its table of positions was added."""
        nothing = inputs[0].new_empty(0)
        self._follow(inputs[0], lambda back: _Use(_bias_table, layer, nothing, back), layer, nothing)

    def _follow(self, place: Any, use: Callable[[Tensor], _Use], layer: nn.Module, seen: Tensor) -> None:
        version = seen._version
        self._times.update(_own(layer).values())
        self._awaited += 1

        def came_back(back: Tensor) -> None:
            if seen._version != version:
                raise PrivateTrainingError(
                    f"A {type(layer).__name__} of the network has its input changed in place after it was used.",
                    fix="Set privacy.gradients to loop.",
                )
            self._awaited -= 1
            self._came_back(use(back.detach()))

        place.register_hook(came_back)

    def _came_back(self, use: _Use) -> None:
        own = list(_own(use.layer).values())
        size = self.patients * sum(p.numel() for p in own)
        keep = self.keep_all or use.formula is not _weighted or any(self._times[p] > 1 for p in own)
        if keep or size <= use.seen.numel() + use.back.numel():
            for parameter, each in use.formula(use.layer, use.seen, use.back, self.patients).items():
                self._keep(parameter, each)
            return
        found = _lengths_of(use.layer, use.seen, use.back, self.patients)
        if found is None:
            rows = use.formula(use.layer, use.seen, use.back, self.patients)
            found = [lengths(each) for each in rows.values()]
        self._lengths += found
        self._terms.append(_terms(use.layer, use.seen, use.back, self.patients))
        self._uses.append(use)
