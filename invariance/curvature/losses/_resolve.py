"""Losses, described so that curvature can be computed exactly: value, gradient, Hessian in f.

Every loss here is a ratio of two sums over rows,

    L = sum_n values_n / sum_n masses_n ,

which is what PyTorch's ``reduction="mean"`` computes: the masses are 1 for a plain mean,
the class weight of the row's label for a weighted cross-entropy, 0 for an ignored row.
Summing both over batches and dividing once weights a ragged last batch exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._errors import DataError, MeasureError, unknown_name
from invariance.core._forward import reading, run
from invariance.core._intake import output_shape
from invariance.core._modules import all_finite, computes_as_its_class, origin
from invariance.core._reads import state_of
from invariance.curvature._batches import Batches, check_outputs
from invariance.curvature.losses._base import HessianFactor, Loss, draw_signs
from invariance.curvature.losses._custom import PROBE_ROWS, CustomLoss
from invariance.curvature.losses._elementwise import (
    BinaryCrossEntropy,
    Elementwise,
    MeanSquaredError,
    PoissonLikelihood,
)
from invariance.curvature.losses._positions import Positionwise

__all__ = [
    "CrossEntropy",
    "CustomLoss",
    "HessianFactor",
    "Loss",
    "LossLike",
    "MeanSquaredError",
    "loss_on",
    "resolve_loss",
    "softmax_root",
]

#: What an argument called ``loss`` may be, everywhere in the package.
LossLike: TypeAlias = "str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss"


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Softmax cross-entropy as ``torch.nn.CrossEntropyLoss(reduction="mean")`` has it.

    A row with target vector t has value ``-sum_c t_c log p_c``, gradient ``T p - t`` and
    Hessian ``T (diag(p) - p p^T)`` with ``T = sum_c t_c``. For a label y that is
    ``t_c = w_c ((1 - s) [c = y] + s / K)`` with class weights w and label smoothing s.

    Attributes:
        class_weights: ``(K,)`` non-negative class weights, or ``None``.
        label_smoothing: In ``[0, 1]``.
        ignore_index: Rows with this label do not count.
    """

    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise MeasureError(f"label_smoothing must lie in [0, 1]. Got {self.label_smoothing}.")
        weights = self.class_weights
        if weights is not None:
            if weights.ndim != 1 or not bool(torch.isfinite(weights).all()):
                raise MeasureError(
                    "class_weights must be a (K,) tensor of finite numbers. "
                    f"Got shape {tuple(weights.shape)}."
                )
            if bool((weights < 0).any()):
                raise MeasureError(
                    f"class_weights must not be negative. Got {weights.min().item():.4g}."
                )

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        extras = [
            text
            for text, present in (
                ("class weights", self.class_weights is not None),
                (f"label smoothing {self.label_smoothing:g}", self.label_smoothing > 0),
            )
            if present
        ]
        return "cross-entropy" + (f" ({', '.join(extras)})" if extras else "")

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse outputs and labels that cross-entropy is not defined on."""
        check_outputs(outputs)
        n, k = outputs.shape
        if self.class_weights is not None and self.class_weights.shape[0] != k:
            raise DataError(
                f"class_weights has {self.class_weights.shape[0]} entries for a model with "
                f"{k} outputs. Give one weight a class."
            )
        if y.is_floating_point():
            if y.shape != outputs.shape:
                raise DataError(
                    f"Class labels must be integers of shape ({n},), or probabilities of shape "
                    f"({n}, {k}). Got {y.dtype} of shape {tuple(y.shape)}; labels need y.long()."
                )
            if not all_finite(y) or bool((y < 0).any()):
                raise DataError("Class probabilities must be finite and not negative.")
            if bool((empty := (y == 0).all(-1)).any()):
                raise DataError(
                    f"Row {int(empty.nonzero()[0, 0])} of the class probabilities is all zero, "
                    "which names no class: its loss would be an exact 0. Leave such rows out."
                )
            return
        if y.dtype == torch.bool:
            raise DataError(
                "Class labels must be integers, from 0 to the number of classes minus 1. Got "
                "torch.bool; for two classes use y.long()."
            )
        if y.shape != (n,):
            raise DataError(
                f"Class labels must have shape ({n},), one a row. Got {tuple(y.shape)}."
            )
        counted = y[y != self.ignore_index]
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= k):
            wrong = int(counted.min()) if int(counted.min()) < 0 else int(counted.max())
            raise DataError(
                f"Label {wrong} is out of range: the model has {k} outputs, so labels run from "
                f"0 to {k - 1} (rows labelled {self.ignore_index} are ignored)."
            )

    def _targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n, K)`` target vectors t, zero on ignored rows."""
        k = outputs.shape[-1]
        if y.is_floating_point():
            targets = y.to(outputs)
            keep = None
        else:
            keep = (y != self.ignore_index).unsqueeze(-1)
            # A comparison instead of one_hot: it works inside vmap and for ignored labels.
            targets = (y.unsqueeze(-1) == torch.arange(k, device=y.device)).to(outputs.dtype)
        if self.label_smoothing > 0:
            targets = (1 - self.label_smoothing) * targets + self.label_smoothing / k
        if self.class_weights is not None:
            targets = targets * self.class_weights.to(outputs)
        return targets if keep is None else targets * keep

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` numerators ``-sum_c t_c log p_c``."""
        return -(self._targets(outputs, y) * F.log_softmax(outputs, dim=-1)).sum(-1)

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the weight of each row: its label's class weight, 0 for an ignored row."""
        if y.is_floating_point():
            return outputs.new_ones(outputs.shape[:-1])
        keep = y != self.ignore_index
        if self.class_weights is None:
            return keep.to(outputs.dtype)
        return self.class_weights.to(outputs)[torch.where(keep, y, 0)] * keep

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``T p - t`` for each row."""
        targets = self._targets(outputs, y)
        return targets.sum(-1, keepdim=True) * outputs.softmax(-1) - targets

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a root of ``T (diag p - p p^T)`` with K - 1 columns."""
        scale = self._totals(outputs, y).sqrt()[..., None, None]
        return HessianFactor(softmax_root(outputs) * scale, None)

    def _totals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``T``, the sum of each row's target vector."""
        if self.class_weights is None and not y.is_floating_point():
            return (y != self.ignore_index).to(outputs.dtype)
        return self._targets(outputs, y).sum(-1)

    def columns(self, outputs: int) -> int:
        """Return ``K - 1``."""
        return outputs - 1

    def factor_times(self, outputs: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Hessians' diagonals, and the root's columns pulled through a linear layer.

        Args:
            outputs: ``(n, K)`` network outputs.
            y: Targets of those rows.
            weight: ``(K, h)``.

        Returns:
            ``(n, K)`` and ``(n, K - 1, h)``; neither takes a ``(K, K)`` matrix.
        """
        total = self._totals(outputs, y).unsqueeze(-1)
        pulled = softmax_root_times(outputs, weight).mul_(total.sqrt().unsqueeze(-1))
        return softmax_energies(outputs) * total, pulled

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return random columns of ``sqrt T (diag(q) - p q^T)``, ``q = sqrt p``: n K numbers."""
        signs = draw_signs((*outputs.shape, count), outputs, draws)
        scale = (self._totals(outputs, y) / count).sqrt()[..., None, None]
        return HessianFactor(softmax_mix(outputs, signs) * scale, None, count)

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return a root of ``w_y (diag p - p p^T)``."""
        return softmax_root(outputs) * self.masses(outputs, y).sqrt()[..., None, None]


@dataclass(frozen=True, eq=False)
class NegativeLogLikelihood(CrossEntropy):
    """``torch.nn.NLLLoss()`` of log-probabilities, which is linear in them: ``-w_y f_y``.

    Its curvature is that of the network alone. As a likelihood it is the softmax's, whose Fisher
    matrix in the log-probabilities is ``diag(p)``.
    """

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return super().name.replace("cross-entropy", "negative log-likelihood")

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the ``(n,)`` numerators ``-w_y f_y``."""
        return -(self._targets(outputs, y) * outputs).sum(-1)

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``-w_y e_y`` for each row."""
        return -self._targets(outputs, y)

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a root of zero, without a column."""
        return HessianFactor(outputs.new_zeros(*outputs.shape, 0), None)

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``sqrt(w_y p)`` on a diagonal."""
        weight = self.masses(outputs, y).unsqueeze(-1) * outputs.exp()
        return torch.diag_embed(weight.sqrt())

    def columns(self, outputs: int) -> int:
        """Return 0."""
        return 0

    def factor_times(self, outputs: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return zeros, and no column."""
        return torch.zeros_like(outputs), weight.new_zeros(outputs.shape[0], 0, weight.shape[1])

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return a root of zero, without a column."""
        return HessianFactor(outputs.new_zeros(*outputs.shape, 0), None, count)


def resolve_loss(
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | Loss, *models: nn.Module
) -> Loss:
    """Turn what a user may pass as ``loss`` into a :class:`Loss`.

    Args:
        loss: ``"cross_entropy"``, ``"mse"``, ``torch.nn.CrossEntropyLoss(...)``,
            ``torch.nn.MSELoss()``, ``NLLLoss``, ``BCEWithLogitsLoss`` or ``PoissonNLLLoss``,
            their functional forms, alone or in a ``functools.partial``, a callable
            ``(outputs, y) -> scalar`` mean, weighted mean or sum over rows, or a
            :class:`Loss`. A subclass of a torch loss with a ``forward`` of its own is a
            callable like any other.
        models: What is measured: a callable whose value depends on their parameters at fixed
            outputs is refused when it is checked.

    Returns:
        The loss, with exact derivatives in the outputs.

    Raises:
        UsageError: An unknown name.
        MeasureError: A loss without reduction, or not a loss at all.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(2, 4).double(), torch.tensor([0, 3])
        >>> loss = resolve_loss("cross_entropy")
        >>> round(float(loss.mean(logits, labels)), 6)  # ln 4
        1.386294
    """
    shape = next((found for m in models if (found := output_shape(m)) is not None), None)
    if isinstance(loss, Loss):
        return _shaped(loss, shape)
    if isinstance(loss, str):
        named: dict[str, Loss] = {"cross_entropy": CrossEntropy(), "mse": MeanSquaredError()}
        if loss not in named:
            raise unknown_name("loss", loss, named)
        return _shaped(named[loss], shape)
    if isinstance(loss, type):
        raise MeasureError(
            f"The loss must be an instance. Got the class {loss.__name__}; call it: "
            f"{loss.__name__}()."
        )
    module = _as_module(loss)
    if getattr(module, "reduction", None) == "none":
        raise MeasureError(
            "The loss returns a value for every entry: use reduction='mean' or 'sum'. "
            "Got reduction='none'."
        )
    known = _known(module)
    if known is not None:
        known = _shaped(known, shape)
        return SumReduced(known) if getattr(module, "reduction", "") == "sum" else known
    if callable(loss):
        watched = {k: v for model in models for k, v in state_of(origin(model)).items()}
        return CustomLoss(loss, watched, shape)
    raise MeasureError(
        "The loss must be a name, a torch.nn loss or a callable (outputs, y) -> scalar. "
        f"Got {type(loss).__name__}."
    )


#: Functional losses, and the modules that compute the same from the same keywords.
_MODULES: dict[object, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.nll_loss: nn.NLLLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
}


def _as_module(loss: object) -> object:
    """The module of a functional loss, alone or in a ``functools.partial``."""
    if isinstance(loss, functools.partial) and loss.func in _MODULES and not loss.args:
        try:
            return _MODULES[loss.func](**loss.keywords)
        except TypeError:
            return loss
    if isinstance(loss, nn.Module) or not callable(loss):
        return loss
    return _MODULES[loss]() if loss in _MODULES else loss


def _known(loss: object) -> Loss | None:
    """What is known in closed form of a torch loss, whatever its reduction."""
    kinds = tuple(_MODULES.values())
    if not (isinstance(loss, kinds) and isinstance(loss, nn.Module)):
        return None
    if not any(isinstance(loss, kind) and _is_as_written(loss, kind) for kind in kinds):
        return None
    if isinstance(loss, nn.CrossEntropyLoss):
        return CrossEntropy(loss.weight, loss.label_smoothing, loss.ignore_index)
    if isinstance(loss, nn.MSELoss):
        return MeanSquaredError()
    if isinstance(loss, nn.NLLLoss):
        return NegativeLogLikelihood(loss.weight, 0.0, loss.ignore_index)
    if isinstance(loss, nn.BCEWithLogitsLoss) and loss.weight is None and loss.pos_weight is None:
        return BinaryCrossEntropy()
    if isinstance(loss, nn.PoissonNLLLoss) and loss.log_input:
        return PoissonLikelihood(full=loss.full)
    return None


def _shaped(loss: Loss, shape: tuple[int, ...] | None) -> Loss:
    """A loss of outputs that the model gives in another shape than ``(n, K)``."""
    if shape is None or isinstance(loss, Positionwise):
        return loss
    if isinstance(loss, SumReduced):
        return replace(loss, inner=_shaped(loss.inner, shape))
    if isinstance(loss, Elementwise | CustomLoss):
        return replace(loss, shape=shape)
    if isinstance(loss, CrossEntropy) and not shape:
        raise DataError(
            "The model has one output a row, of shape (n,), and cross-entropy needs one a class. "
            "For a yes or no take torch.nn.BCEWithLogitsLoss(), for regression loss='mse'."
        )
    return Positionwise(loss, shape) if isinstance(loss, CrossEntropy) else loss


def loss_on(loss: LossLike, batches: Batches, *models: nn.Module) -> Loss:
    """Resolve a loss for some data: what a sum or a user's function averages over is found out."""
    resolved = resolve_loss(loss, *models)
    if isinstance(resolved, SumReduced):
        return replace(resolved, rows=batches.rows)
    if isinstance(resolved, CustomLoss) and models and not resolved.reduction:
        x, y = batches.first()
        like = next(iter(models[0].parameters()), x)
        with torch.no_grad(), reading(models[0], x):
            outputs = run(
                models[0],
                x[:PROBE_ROWS].to(like.device, like.dtype)
                if x.is_floating_point()
                else x[:PROBE_ROWS].to(like.device),
            )
        labels = (by.to(outputs.device) for _, by in batches)
        return resolved.probed(outputs, y[:PROBE_ROWS].to(outputs.device), labels, batches.rows)
    return resolved


@dataclass(frozen=True, eq=False)
class SumReduced(Loss):
    """The sum over rows of what another loss averages: its denominator is one.

    Attributes:
        inner: The loss that averages.
        rows: Rows of the data in all, over which the one is spread.
    """

    inner: Loss
    rows: int = 0

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        return f"sum of the {self.inner.name}"

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse what the inner loss refuses."""
        self.inner.check(outputs, y)

    def scale(self, outputs: Tensor) -> float:
        """Return K where the inner loss averages over a row's entries, which a sum does not."""
        return float(outputs.shape[-1]) if isinstance(self.inner, Elementwise) else 1.0

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the rows' shares of the sum."""
        return self.inner.values(outputs, y) * self.scale(outputs)

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return one over the number of rows: one in all."""
        share = 1.0 / (self.rows or outputs.shape[-2])
        masses: Tensor = outputs.new_full(outputs.shape[:-1], share)
        return masses

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each row's share."""
        return self.inner.gradients(outputs, y) * self.scale(outputs)

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return a root of the Hessian of each row's share."""
        found = self.inner.hessian_factor(outputs, y)
        return found._replace(root=found.root * self.scale(outputs) ** 0.5)

    def columns(self, outputs: int) -> int:
        """Return what the inner loss has."""
        return self.inner.columns(outputs)

    def sampled_factor(
        self, outputs: Tensor, y: Tensor, count: int, draws: torch.Generator
    ) -> HessianFactor:
        """Return random columns of each row's share."""
        found = self.inner.sampled_factor(outputs, y, count, draws)
        return found._replace(root=found.root * self.scale(outputs) ** 0.5)

    def fisher_root(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return a root of each row's Fisher matrix, summed too."""
        root: Tensor = self.inner.fisher_root(outputs, y) * self.scale(outputs) ** 0.5
        return root


def _is_as_written(loss: nn.Module, base: type[nn.Module]) -> bool:
    """Whether calling ``loss`` runs the ``forward`` of ``base`` and nothing else."""
    kind = type(loss)
    same = kind.forward is base.forward and kind.__call__ is base.__call__
    return same and computes_as_its_class(loss)


def softmax_root(outputs: Tensor) -> Tensor:
    """Return a root of the softmax's covariance ``S = diag(p) - p p^T`` with K - 1 columns.

    With q = sqrt(p), S = diag(q) (I - q q^T) diag(q), and the projection away from the unit
    vector q has as root any orthonormal basis of its complement. The last K - 1 columns of the
    Householder reflection that sends q to the first axis are one, in closed form, so that

        root[0, j] = -q_0 q_j,  root[i, j] = q_i ([i = j] - q_i q_j / (1 + q_0)),  j = 1 .. K-1.

    The usual root with columns ``sqrt(p_c) (e_c - p)`` has one column more, which a curvature
    sweep would carry through every layer. On the diagonal, ``1 - q_i^2 / (1 + q_0)`` is
    computed as ``(q_0 + sum_{c != i} p_c) / (1 + q_0)``: no digits cancel when the network
    is confident (p_i near 1), where float32 would otherwise lose most of the trace.

    Shapes: ``outputs (..., K)``; returns ``(..., K, K - 1)``.
    """
    p = outputs.softmax(-1)
    q = p.sqrt()
    others = _sum_of_others(p)
    head = 1 + q[..., :1]
    tail = q[..., 1:]
    lower = -(tail.square().unsqueeze(-1) * (tail / head).unsqueeze(-2))
    lower.diagonal(dim1=-2, dim2=-1).copy_(tail * (q[..., :1] + others[..., 1:]) / head)
    upper = -(q[..., :1] * tail).unsqueeze(-2)
    return torch.cat([upper, lower], dim=-2)


def softmax_mix(outputs: Tensor, signs: Tensor) -> Tensor:
    """Return ``(diag(q) - p q^T) s`` with ``q = sqrt(p)``, a root of the softmax's covariance.

    In the likeliest class, ``1 - p`` is summed from the other classes: no digits cancel when the
    network is confident.

    Shapes: ``outputs (..., K)``, ``signs (..., K, m)``; returns ``(..., K, m)``.
    """
    p = outputs.softmax(-1)
    mixed = p.sqrt().unsqueeze(-1) * signs
    top = p.argmax(-1, keepdim=True)
    place = top.unsqueeze(-1).expand(*top.shape, signs.shape[-1])
    head, likeliest = mixed.gather(-2, place), p.gather(-1, top).unsqueeze(-1)
    rest = p.scatter(-1, top, 0.0).sum(-1)[..., None, None]
    others = mixed.scatter(-2, place, 0.0).sum(-2, keepdim=True)
    mixed = torch.addcmul(mixed, p.unsqueeze(-1), head + others, value=-1)
    return mixed.scatter(-2, place, head * rest - likeliest * others)


def _sum_of_others(p: Tensor) -> Tensor:
    """Return ``sum_{c != i} p_c`` for every i, without the difference ``1 - p_i``."""
    before = p.cumsum(-1).roll(1, -1)
    after = p.flip(-1).cumsum(-1).roll(1, -1)
    before[..., 0] = after[..., 0] = 0
    return before + after.flip(-1)


def softmax_energies(outputs: Tensor) -> Tensor:
    """Return the diagonal of the softmax's covariance, ``p_i (1 - p_i)``, ``(..., K)``."""
    p = outputs.softmax(-1)
    return p * _sum_of_others(p)


def softmax_root_times(outputs: Tensor, weight: Tensor) -> Tensor:
    """Return ``root^T W`` for the root of :func:`softmax_root`, which is not formed.

    Column j of the root is ``q_j (e_j - v)`` with one v for all j, and sums to zero. So with w_t
    the weights of the likeliest class and ``d_i = w_i - w_t``, row j of the product is

        q_j (d_j - u),  u = q_0 d_0 + (sum_i p_i d_i - p_0 d_0) / (1 + q_0),

    in which every term is small where the network is confident: no digits cancel.

    Shapes: ``outputs (n, K)``, ``weight (K, h)``; returns ``(n, K - 1, h)``.
    """
    p = outputs.softmax(-1)
    top = p.argmax(-1, keepdim=True)
    rest = p.scatter(-1, top, 0.0)
    likeliest = weight[top.squeeze(-1)]
    mean = rest @ weight - rest.sum(-1, keepdim=True) * likeliest
    first, q = weight[0] - likeliest, p.sqrt()
    shift = q[:, :1] * first + (mean - p[:, :1] * first) / (1 + q[:, :1])
    rows = (weight[1:] - (likeliest + shift).unsqueeze(1)).mul_(q[:, 1:].unsqueeze(-1))
    # Where w_j is w_t itself, what is left is the shift alone.
    inner = (top > 0).squeeze(-1).nonzero().squeeze(-1)
    at = top[inner, 0]
    rows[inner, at - 1] = -q[inner, at].unsqueeze(-1) * shift[inner]
    return rows
