"""Losses that a user wrote: any mean over rows, with derivatives by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from invariance.core._errors import DataError, MeasureError
from invariance.core._reads import Reads
from invariance.curvature._batches import check_outputs
from invariance.curvature.losses._base import HessianFactor, Loss

#: Relative disagreement between a user's mean loss and the mean of its rows, in units of
#: the square root of the machine epsilon, above which it is refused as "not a mean".
_MEAN_TOLERANCE = 10.0

#: Rows among which one is looked for that has a gradient.
PROBE_ROWS = 32


@dataclass(frozen=True, eq=False)
class CustomLoss(Loss):
    """A user's ``function(outputs, y) -> scalar``: a mean, weighted mean or sum over rows.

    Derivatives come from autograd on the whole batch, so the function must be written in
    differentiable PyTorch operations; what it averages over is probed and checked.

    Attributes:
        function: The callable; it must accept a single row.
        watched: Name to each tensor of the measured model, none of which it may depend on: a
            penalty on the parameters is no function of the outputs, and derivatives that pass
            through the outputs miss it.
        shape: The shape of one row's outputs as the function takes them, if not ``(K,)``.
        reduction: What :meth:`probed` found; until then a mean is taken for granted.
        rows: Rows of the data in all, over which a sum's denominator of one is spread.
        anchor: One row of outputs and target, whose weight is the unit of a weighted mean.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    reduction: Literal["", "mean", "sum", "weighted"] = ""
    rows: int = 0
    anchor: tuple[Tensor, Tensor] | None = None

    @property
    def name(self) -> str:
        """Name for ``Estimate.method``."""
        function = self.function
        return str(getattr(function, "__name__", type(function).__name__))

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function that is not a scalar, finite mean over rows."""
        check_outputs(outputs)
        if y.shape[:1] != outputs.shape[:1]:
            raise DataError(f"{outputs.shape[0]} rows of outputs but targets {tuple(y.shape)}.")
        with torch.no_grad():
            value = self._called(outputs.detach(), y)
            if not isinstance(value, Tensor) or value.ndim != 0:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise MeasureError(
                    f"The loss {self.name!r} must return a scalar. Got {got}. Average it: "
                    "loss=lambda outputs, y: your_loss(outputs, y).mean()."
                )
            if not bool(torch.isfinite(value)):
                raise MeasureError(f"The loss {self.name!r} returned {value.item()}.")
            self._check_additive(outputs.detach(), y)
            self._check_own(float(value), outputs.detach(), y)

    def _called(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Call the function with outputs as the model gives them."""
        if self.shape is not None:
            if math.prod(self.shape) != outputs.shape[-1]:
                raise DataError(
                    f"The loss {self.name!r} is a function, and the model's outputs have another "
                    f"shape than {self.shape} a row in some batch. Pad the batches to one shape."
                )
            outputs = outputs.reshape(-1, *self.shape)
        return self.function(outputs, y)

    def probed(self, outputs: Tensor, y: Tensor, labels: Iterable[Tensor], rows: int) -> CustomLoss:
        """Find out by calls on few rows what the function averages over, or that it sums.

        A row a beside others of weight M has the share ``m_a / (m_a + M)`` of its gradient
        alone in a mean, and all of it in a sum.

        Args:
            outputs: ``(n, K)`` outputs of the first rows.
            y: Their targets.
            labels: The targets of all batches.
            rows: Rows in all.

        Returns:
            The loss, with what was found.
        """
        outputs = outputs.detach()
        check_outputs(outputs)
        anchor = self._find_anchor(outputs, y)
        if anchor is None:  # flat, or refused by check
            return replace(self, reduction="mean", rows=rows)
        found = replace(self, reduction="weighted", anchor=anchor, rows=rows)
        both = torch.cat([anchor[0], anchor[0]]), torch.cat([anchor[1], anchor[1]])
        with torch.no_grad():
            twice, once = float(self._called(*both)), float(self._called(*anchor))
        slack = _MEAN_TOLERANCE * math.sqrt(torch.finfo(outputs.dtype).eps)
        if abs(found.mass(anchor[1])) < slack and abs(twice - 2 * once) <= slack * abs(once):
            return replace(self, reduction="sum", rows=rows)
        for target in labels:
            if target.shape[1:] != y.shape[1:]:
                break
            n = target.shape[0]
            mass = found.mass(target)
            if not abs(mass - n) <= slack * n:
                return found
        return replace(self, reduction="mean", rows=rows)

    def _find_anchor(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the first row that has a gradient, alone."""
        for i in range(outputs.shape[0]):
            row = outputs[i : i + 1], y[i : i + 1]
            gradient = self._gradient(*row)
            if bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any()):
                return row
        return None

    def _gradient(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the function's own gradient in the outputs."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            value = self._called(leaf, y)
            if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
                return torch.zeros_like(outputs)
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(outputs) if gradient is None else gradient

    def mass(self, y: Tensor) -> float:
        """Return the weight of rows with targets ``y`` together, in units of the anchor's."""
        assert self.anchor is not None
        row, target = self.anchor
        y = y.to(target.device)
        alone = self._gradient(row, target)
        among = self._gradient(row.expand(1 + y.shape[0], -1), torch.cat([target, y]))
        share = float((among[:1] * alone).sum() / alone.square().sum())
        excess = 1.0 / share - 1.0 if share else math.inf
        return 0.0 if abs(excess) < 8 * torch.finfo(row.dtype).eps else excess

    def masses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the rows' weights: equal for a mean, one in all for a sum."""
        if self.reduction == "weighted":
            return outputs.new_tensor([self.mass(row) for row in torch.split(y, 1)])
        each = 1.0 / (self.rows or outputs.shape[0]) if self.reduction == "sum" else 1.0
        return outputs.new_full(outputs.shape[:1], each)

    def total(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the numerator, by one call on all rows: it need not work inside ``vmap``."""
        return self._called(outputs, y) * self._factor(outputs, y)

    def _factor(self, outputs: Tensor, y: Tensor) -> float:
        """Return what turns the function's value into the sum of the rows' values."""
        if self.reduction == "weighted":
            return self.mass(y)
        return 1.0 if self.reduction == "sum" else float(outputs.shape[0])

    def _check_additive(self, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function whose value is not that of its parts together, each by its weight."""
        n = outputs.shape[0]
        slack = _MEAN_TOLERANCE * math.sqrt(torch.finfo(outputs.dtype).eps)
        whole, tiny = float(self.total(outputs, y)), torch.finfo(outputs.dtype).tiny
        for cut in {1, n // 2} - {0, n}:
            head, rest = (outputs[:cut], y[:cut]), (outputs[cut:], y[cut:])
            parts = [
                float(self.total(*part)) if self._factor(*part) else 0.0 for part in (head, rest)
            ]
            if not abs(whole - sum(parts)) <= slack * max(*map(abs, parts), abs(whole), tiny):
                raise MeasureError(
                    f"The loss {self.name!r} is not the mean over rows of a loss of one row, nor a "
                    f"sum: on {n} rows it adds up to {whole:.6g}, its first {cut} and its other "
                    f"rows to {sum(parts):.6g}. Divide by the number of rows, the sum of their "
                    "weights or nothing, and use no statistics of the batch."
                )

    def _check_own(self, value: float, outputs: Tensor, y: Tensor) -> None:
        """Refuse a function whose value changes with the model's parameters at fixed outputs."""
        with Reads(self.watched, moved=True) as reads:
            moved = float(self._called(outputs, y))
        if reads.names and moved != value:
            read = ", ".join(map(repr, list(reads.names)[:3]))
            raise MeasureError(
                f"The loss {self.name!r} depends on the model's parameters beyond the outputs: it "
                f"reads {read}{' and others' if len(reads.names) > 3 else ''}. Curvature here is "
                "that of a loss of outputs and targets. Leave the penalty out and add its own "
                "curvature (a weight decay of c |theta|^2 adds 2 c to every diagonal entry)."
            )

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the function's value on each row, ``(n,)``, by calling it row by row."""
        rows = range(outputs.shape[0])
        alone = torch.stack([self._called(outputs[i : i + 1], y[i : i + 1]) for i in rows])
        if self.reduction != "weighted":
            return alone
        masses = self.masses(outputs, y)  # alone, a row without weight is 0 / 0
        return torch.where(masses > 0, alone, 0.0) * masses

    def gradients(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each row's value in its outputs, ``(n, K)``."""
        return self._derivatives(outputs, y)[0].detach()

    def hessians(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, K, K)``, symmetrised: K backward passes through the rows' gradients."""
        first, leaf = self._derivatives(outputs, y)
        columns = []
        for k in range(leaf.shape[1]):
            column = None
            if first.requires_grad:  # else the loss is linear in the outputs
                cotangent = torch.zeros_like(first)
                cotangent[:, k] = 1
                (column,) = torch.autograd.grad(
                    first, leaf, cotangent, retain_graph=True, allow_unused=True
                )
            columns.append(torch.zeros_like(leaf) if column is None else column)
        second = torch.stack(columns, dim=1)
        return (second + second.mT) / 2

    def _derivatives(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows' gradients with their graph, and the leaf that they are taken in."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (first,) = torch.autograd.grad(self.total(leaf, y), leaf, create_graph=True)
            return first, leaf

    def hessian_factor(self, outputs: Tensor, y: Tensor) -> HessianFactor:
        """Return eigenvectors times ``sqrt |eigenvalue|``, with the eigenvalues' signs."""
        eigenvalues, vectors = torch.linalg.eigh(self.hessians(outputs, y))
        root = vectors * eigenvalues.abs().sqrt().unsqueeze(-2)
        signs = torch.where(eigenvalues < 0, -1.0, 1.0).to(outputs.dtype)
        return HessianFactor(root, signs if bool((signs < 0).any()) else None)
