"""The fast path: exact curvature of a multilayer perceptron, or a stack of equal ones.

A hand-written sweep of matrix products, no autograd. With z = W a + b the output of a
layer and R a root of the loss's Hessian in f (``HessianFactor``), the cotangents
``D = R^T df/dz`` of one row satisfy ``H_z = D^T D``, so that for this row (theory: with
everything else fixed, f is piecewise linear in one layer's parameters)

    Tr H_W = |a|^2 |D|^2,   Tr H_b = |D|^2,   diag H_W = (columns' |D|^2) (a^2)^T,
    relative flatness = |a|^2 |D W|^2,

and D of the layer below is ``D W`` times the activation's slopes. ``D W`` is therefore
free in every layer but the first, where only its norm is needed: with W^T = Q T that is
``|D T^T|``, on the narrow side of W.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from invariance.core._errors import DataError
from invariance.core._perceptron import (
    Dense,
    Norm,
    Slope,
    Step,
    derivatives,
    qualified,
    slice_perceptrons,
)
from invariance.curvature._batches import Sums, Tally, check_budget
from invariance.curvature.exact._curved import Remainder
from invariance.curvature.exact._result import Wants
from invariance.curvature.losses._base import Draws, Loss
from invariance.curvature.losses._resolve import CrossEntropy

#: Aim for temporaries of this many bytes a chunk on the CPU: they then stay in its cache.
_CACHE_BYTES = 16 * 2**20

#: Outputs from which the last layer is passed without forming a root of the loss's Hessian.
_MANY = 24

#: Columns a block when multiplying by a triangular matrix, which halves its products.
_TRIANGLE_BLOCK = 64


def bytes_per_row(steps: Sequence[Step], channels: int, *, rootless: bool = False) -> int:
    """Estimate the temporaries that one row of one model needs in :func:`sweep_chunk`, in bytes."""
    widths = [0]
    stored, itemsize = 0, 4
    for step in steps:
        if isinstance(step, Dense):
            out, inputs = step.weight.shape[-2:]
            itemsize = step.weight.element_size()
            stored += inputs
            widths.append(out)
        elif isinstance(step, Norm):
            stored += widths[-1]
        else:
            stored += 2 * widths[-1]
    if any(isinstance(step, Slope) and step.smooth for step in steps):
        # Every row's own matrices: two of the widest hidden layer and a product of two.
        square = max(width * width for width in widths[:-1])
        stored += 3 * max(square, sorted(widths)[-1] * sorted(widths)[-2])
    # Activations and slopes are kept; two cotangent blocks of the widest layers are alive
    # at once, and a squared copy of one for the diagonal; the root is made from a few like it.
    out = widths[-1]
    if rootless:  # no cotangent of the outputs is formed
        top = sorted([0, *widths[:-1]])[-2:]
        return itemsize * (2 * stored + 3 * out + channels * (sum(top) + top[-1]))
    top = sorted(widths)[-2:]
    return itemsize * (2 * stored + channels * (sum(top) + top[-1]) + 4 * out * channels)


def chunk_rows(row_bytes: int, budget: int, device: torch.device) -> int:
    """Return how many rows to sweep at once within ``budget`` bytes (at least one)."""
    target = min(budget, _CACHE_BYTES) if device.type == "cpu" else budget
    return max(1, target // max(row_bytes, 1), min(32, budget // max(row_bytes, 1)))


def triangular_factor(step: Dense) -> tuple[Tensor, bool]:
    """Return ``(B, triangular)`` with ``|D B| = |D W|`` for all D, on the narrow side of W."""
    weight = step.weight
    if weight.shape[-2] > weight.shape[-1]:
        return weight, False
    factor: Tensor = torch.linalg.qr(weight.mT, mode="r").R
    return factor.mT, True


def _energy(cotangents: Tensor, signs: Tensor | None, samples: int | None) -> Tensor:
    """Return the (signed) squared norm of each row's cotangents, draw by draw.

    Shapes: ``cotangents (*lead, n, R, d)``; returns ``(*lead, n, samples or 1)``.
    """
    if signs is None:
        *rows, columns, width = cotangents.shape
        draws = cotangents.reshape(*rows, samples or 1, columns // (samples or 1) * width)
        norms: Tensor = torch.linalg.vector_norm(draws, dim=-1)
        return norms.square()
    energies = cotangents.square().sum(-1) * signs
    return _by_draw(energies.unsqueeze(-1), samples).squeeze(-1)


def _by_draw(columns: Tensor, samples: int | None) -> Tensor:
    """Add up the columns ``(*lead, n, R, d)`` of every draw; ``(*lead, n, samples or 1, d)``."""
    *rows, count, width = columns.shape
    draws = samples or 1
    return columns.reshape(*rows, draws, count // draws, width).sum(-2)


def _product(cotangents: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``(*lead, n, R, d)`` by ``(*lead, d, m)`` as one matrix product a model."""
    flat = cotangents.flatten(-3, -2) @ matrix
    return flat.view(*cotangents.shape[:-1], matrix.shape[-1])


def _triangle_energy(
    cotangents: Tensor, factor: Tensor, signs: Tensor | None, samples: int | None
) -> Tensor:
    """Return ``_energy(D @ factor)`` for a lower triangular factor, skipping its zeros."""
    width = factor.shape[-1]
    total: Tensor | None = None
    for low in range(0, width, _TRIANGLE_BLOCK):
        high = min(low + _TRIANGLE_BLOCK, width)
        part = _energy(_product(cotangents[..., low:], factor[..., low:, low:high]), signs, samples)
        total = part if total is None else total + part
    if total is None:
        raise AssertionError("a layer has at least one output")
    return total


class _Sweep:
    """Carries the Hessian in the outputs of the steps from the last step to the first.

    Its Gauss-Newton part is carried as a root, the cotangents ``(*lead, n, R, d)``; what
    smooth activations add is carried by a :class:`Remainder`.
    """

    def __init__(
        self,
        cotangents: Tensor,
        signs: Tensor | None,
        samples: int | None,
        remainder: Remainder | None,
        wants: Wants,
        triangle: tuple[Tensor, bool] | None,
        sums: Sums,
    ) -> None:
        self.cotangents = cotangents
        #: ``H = cotangents^T partner`` where they are not the same, and ``H = D partner`` with
        #: the diagonal D while the cotangents still are one.
        self.partner: Tensor | None = None
        self.unit: Tensor | None = None
        self.signs = signs
        self.samples = samples
        self.remainder = remainder
        self.wants = wants
        self.triangle = triangle
        self.sums = sums
        #: Kind ``"trace"`` is keyed by parameter, as is ``"scaled"``, and ``"kappa"`` by layer.
        self.tally = Tally(samples)

    def slope(self, step: Slope, inputs: Tensor) -> None:
        """Pass an activation."""
        second: Tensor | None = None
        if step.smooth:
            _, first, second = derivatives((step,), inputs, second=True)
            assert first is not None
        else:
            first = step.slope(inputs)
        # In place: the cotangents are this sweep's own, and fresh memory costs page faults.
        self._scale(first)
        if self.remainder is not None:
            self.remainder.through_activation(first, second)

    def _scale(self, factor: Tensor) -> None:
        """Pass an elementwise product with ``factor (*lead, n or 1, d)``."""
        if self.unit is None:
            self.cotangents.mul_(factor.unsqueeze(-2))
        else:
            self.unit = self.unit * factor
        if self.partner is not None:
            self.partner.mul_(factor.unsqueeze(-2))

    def norm(self, step: Norm, inputs: Tensor) -> None:
        """Add the affine blocks of a BatchNorm (f is linear in gain and shift), and pass it."""
        squares = self._squares()
        for leaf, parameter, factor in (
            ("weight", step.gain, step.normalised(inputs).square()),
            ("bias", step.shift, None),
        ):
            if parameter is None:
                continue
            name = qualified(step.name, leaf)
            rows = squares if factor is None else squares * factor.unsqueeze(-2)
            self.tally.add("trace", name, rows.sum(-1))
            self._scaled(name, rows)
            if self.wants.diagonal:
                spread = None if self.samples is None else self.tally.variances(rows.mT).sum(-2)
                self.sums.add_diagonal(name, rows.sum((-3, -2)), spread)
        scale = step.scale
        self._scale(scale.unsqueeze(-2))
        if self.remainder is not None:
            self.remainder.scale(scale.unsqueeze(-2))

    def dense(self, step: Dense, inputs: Tensor, below: int) -> None:
        """Add the blocks of a linear layer, and pass it if there are layers below.

        Shapes: ``inputs (*lead, n, in)``.
        """
        entries = self.wants.diagonal or self.wants.scales is not None
        squares = self._squares() if entries else None
        energy = self._energy() if squares is None else squares.sum(-1)
        norms = self._blocks(step, inputs, energy, squares)
        if below < 0:
            if self.wants.relative_flatness:
                self.tally.add("kappa", step.name, norms * self._carried(step))
            return
        if self.unit is None:
            self.cotangents = _product(self.cotangents, step.weight)
        else:
            self.cotangents = self.unit.unsqueeze(-1) * step.weight
            self.unit = None
        if self.partner is not None:
            self.partner = _product(self.partner, step.weight)
        self._pass_remainder(step, below)
        if self.wants.relative_flatness:
            self.tally.add("kappa", step.name, norms * self._energy())

    def last(self, step: Dense, inputs: Tensor, diagonal: Tensor, below: int) -> None:
        """Add the blocks of the last layer, through which the cotangents have been pulled.

        Shapes: ``inputs (n, in)``, ``diagonal (n, K)``.
        """
        squares = diagonal.unsqueeze(-2)
        norms = self._blocks(step, inputs, squares.sum(-1), squares)
        if self.wants.relative_flatness:
            self.tally.add("kappa", step.name, norms * self._energy())
        if below < 0:
            return
        columns, width = self.cotangents.shape[-2:]
        if below and columns > 2 * width:
            # H has rank ``width`` at most, and itself has fewer columns than its root.
            self.partner = self.cotangents.mT @ self.cotangents
            self.unit = self.partner.new_ones(len(self.partner), width)
            self.cotangents = self.partner.new_empty(0)
        self._pass_remainder(step, below)

    def _blocks(
        self, step: Dense, inputs: Tensor, energy: Tensor, squares: Tensor | None
    ) -> Tensor:
        """Add the traces and entries of a linear layer; returns its inputs' squared norms."""
        norms: Tensor = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True).square()
        self.tally.add("trace", qualified(step.name, "weight"), norms * energy)
        if step.bias is not None:
            self.tally.add("trace", qualified(step.name, "bias"), energy)
        if squares is not None and (self.wants.diagonal or self.wants.scales is not None):
            self._entries(step, inputs, squares)
        return norms

    def _pass_remainder(self, step: Dense, below: int) -> None:
        """Pass a linear layer with what smooth activations add."""
        if self.remainder is not None:
            whole = below > 1 or (below > 0 and self.wants.relative_flatness)
            self.remainder.through_linear(step.weight, whole=whole)

    def _entries(self, step: Dense, inputs: Tensor, squares: Tensor) -> None:
        """Add what a linear layer's single entries make: diagonals and scaled traces."""
        weight, bias = qualified(step.name, "weight"), qualified(step.name, "bias")
        features = inputs.square()
        if self.wants.diagonal:
            spread = None if self.samples is None else self.tally.variances(squares.mT)
            of_weight = None if spread is None else spread.mT @ features.square()
            self.sums.add_diagonal(weight, squares.sum(-2).mT @ features, of_weight)
            if step.bias is not None:
                of_bias = None if spread is None else spread.sum(-2)
                self.sums.add_diagonal(bias, squares.sum((-3, -2)), of_bias)
        scale = (self.wants.scales or {}).get(weight)
        if scale is not None:
            carried = _product(squares, scale.to(squares).square())
            self.tally.add("scaled", weight, (carried @ features.unsqueeze(-1)).squeeze(-1))
        self._scaled(bias, squares)

    def _scaled(self, name: str, rows: Tensor) -> None:
        """Add a vector's scaled trace ``sum_i scale_i^2 H_ii`` from ``(*lead, n, S, d)``."""
        scale = (self.wants.scales or {}).get(name)
        if scale is not None:
            self.tally.add("scaled", name, rows @ scale.to(rows).square())

    def _squares(self) -> Tensor:
        """Return the diagonal of the Hessian here, draw by draw: ``(*lead, n, S, d)``."""
        if self.unit is not None and self.partner is not None:
            total = (self.unit * self.partner.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)
            return self._with_remainder(total)
        squares = self.cotangents * (self.cotangents if self.partner is None else self.partner)
        if self.signs is not None:
            squares = squares * self.signs.unsqueeze(-1)
        return self._with_remainder(_by_draw(squares, self.samples))

    def _with_remainder(self, squares: Tensor) -> Tensor:
        """Add the diagonal of what smooth activations make, shared by all draws."""
        more = None if self.remainder is None else self.remainder.diagonal
        return squares if more is None else squares + more.unsqueeze(-2) / squares.shape[-2]

    def _energy(self) -> Tensor:
        """Return the trace of the Hessian here, draw by draw: ``(*lead, n, S)``."""
        if self.partner is not None:
            return self._squares().sum(-1)
        energy = _energy(self.cotangents, self.signs, self.samples)
        more = None if self.remainder is None else self.remainder.diagonal
        return energy if more is None else energy + more.sum(-1, keepdim=True) / energy.shape[-1]

    def _carried(self, step: Dense) -> Tensor:
        """Return ``tr(W^T H W)`` of each row without forming anything of W's wide side."""
        matrix, lower = self.triangle or triangular_factor(step)
        if self.partner is not None:
            left = self.cotangents if self.unit is None else torch.diag_embed(self.unit)
            both = _product(left, matrix) * _product(self.partner, matrix)
            energy = both.sum((-2, -1)).unsqueeze(-1)
        else:
            energy = self._one_sided(matrix, lower=lower)
        more = None if self.remainder is None else self.remainder.carried(step.weight)
        return energy if more is None else energy + more.unsqueeze(-1) / energy.shape[-1]

    def _one_sided(self, matrix: Tensor, *, lower: bool) -> Tensor:
        """Return the energies of the cotangents times a matrix."""
        return (
            _triangle_energy(self.cotangents, matrix, self.signs, self.samples)
            if lower
            else _energy(_product(self.cotangents, matrix), self.signs, self.samples)
        )


def sweep_perceptrons(
    steps: Sequence[Step],
    data: Iterable[tuple[Tensor, Tensor]],
    rows: int,
    loss: Loss,
    wants: Wants,
    memory_budget: int,
    names: Collection[str] | None = None,
    *,
    own_rows: bool = False,
    draws: Draws | None = None,
) -> Sums:
    """Sweep one network, or a stack of M of one shape.

    Networks are taken in groups that fit the budget with as many rows as fit with them.

    Shapes: ``steps (M, ...)``, ``data (n, d)``; returns ``(M,)``.
    """
    check_budget(memory_budget)
    dense = [step for step in steps if isinstance(step, Dense)]
    weight = dense[0].weight
    lead = weight.shape[:-2]
    count = lead.numel()
    outputs = dense[-1].weight.shape[-2]
    channels = loss.columns(outputs) if draws is None else draws.columns()
    rootless = draws is None and _passes_rootless(steps, loss)
    per_row = bytes_per_row(steps, channels, rootless=rootless)
    at_once = chunk_rows(per_row, memory_budget, weight.device)
    group = max(1, min(count, at_once // rows))
    chunk = max(1, at_once // group)
    first = 0 if names is None else first_step(steps, names)
    found: list[Sums] = []
    with torch.no_grad():
        for low in range(0, count, group):
            high = min(low + group, count)
            part = slice_perceptrons(steps, low, high) if lead else steps
            sums = Sums((high - low,) if lead else ())
            triangle = first_triangle(part[first], wants)
            for x, y in data:
                if x.ndim != 2 + own_rows or x.shape[-1] != weight.shape[-1]:
                    raise DataError(
                        f"The model takes rows of {weight.shape[-1]} features. Got x of shape "
                        f"{tuple(x.shape)}; reshape x to (n, {weight.shape[-1]})."
                    )
                px, py = (x[low:high], y[low:high]) if own_rows else (x, y)
                if lead and not own_rows:
                    py = y.expand(high - low, *y.shape)
                pieces = torch.split(px, chunk, dim=-2), torch.split(py, chunk, dim=len(lead))
                for bx, by in zip(*pieces, strict=True):
                    where, labels = bx.to(weight), by.to(weight.device)
                    sweep_chunk(part, where, labels, loss, draws, wants, triangle, sums, first)
            found.append(sums)
    return Sums.joined(found)


def _passes_rootless(steps: Sequence[Step], loss: Loss) -> bool:
    """Whether the last layer is passed by :meth:`CrossEntropy.factor_times`."""
    last = steps[-1]
    if not isinstance(last, Dense) or last.weight.ndim != 2:
        return False
    return isinstance(loss, CrossEntropy) and last.weight.shape[0] > _MANY


def is_curved(steps: Sequence[Step], names: Collection[str] | None = None) -> bool:
    """Whether second derivatives of activations enter the curvature in ``names``."""
    first = 0 if names is None else first_step(steps, names)
    return any(isinstance(step, Slope) and step.smooth for step in steps[first:])


def sweep_chunk(
    steps: Sequence[Step],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    draws: Draws | None,
    wants: Wants,
    triangle: tuple[Tensor, bool] | None,
    sums: Sums,
    first: int,
) -> None:
    """Forward and backward over one chunk of rows; adds to ``sums``.

    Shapes: ``x (n, d)``, ``y (n, ...)``.
    """
    outputs, trail = x, []
    for step in steps:
        trail.append(outputs)
        outputs = step.forward(outputs)
    flat, labels = outputs.flatten(0, -2), y.flatten(0, 1) if outputs.ndim > 2 else y
    loss.check(flat, labels)
    rows = outputs.shape[:-1]
    remainder = None
    if any(isinstance(step, Slope) and step.smooth for step in steps[first:]):
        remainder = Remainder(loss.gradients(flat, labels).reshape(outputs.shape))
    start = len(steps) - 1
    last = steps[start]
    if draws is None and _passes_rootless(steps, loss):
        assert isinstance(last, Dense)
        assert isinstance(loss, CrossEntropy)
        diagonal, pulled = loss.factor_times(flat, labels, last.weight)
        state = _Sweep(pulled, None, None, remainder, wants, triangle, sums)
        below = sum(isinstance(other, Dense) for other in steps[first:start])
        state.last(last, trail[start], diagonal, below if start > first else -1)
        start -= 1
    else:
        find = loss.hessian_factor if draws is None else draws.factor
        root, signs, samples = find(flat, labels)
        sums.columns = max(sums.columns, root.shape[-1])
        # A copy: it is changed in place, and a root may be the loss's own.
        cotangents = root.mT.clone(memory_format=torch.contiguous_format)
        cotangents = cotangents.reshape(*rows, *cotangents.shape[1:])
        signs = None if signs is None else signs.reshape(*rows, signs.shape[1])
        state = _Sweep(cotangents, signs, samples, remainder, wants, triangle, sums)
    for position in range(start, first - 1, -1):
        step, inputs = steps[position], trail[position]
        if isinstance(step, Slope):
            state.slope(step, inputs)
        elif isinstance(step, Norm):
            state.norm(step, inputs)
        else:
            below = sum(isinstance(other, Dense) for other in steps[first:position])
            state.dense(step, inputs, below if position > first else -1)
    mass = loss.masses(flat, labels).reshape(rows).sum(-1)
    sums.add_chunk(outputs.shape[-2], mass, state.tally)


def first_step(steps: Sequence[Step], names: Collection[str]) -> int:
    """Return the position of the first step that owns one of the parameters ``names``."""
    return next(
        i
        for i, step in enumerate(steps)
        if qualified(step.name, "weight") in names or qualified(step.name, "bias") in names
    )


def first_triangle(step: Step, wants: Wants) -> tuple[Tensor, bool] | None:
    """Factor the first visited layer's weight once, if its relative flatness is wanted."""
    if not wants.relative_flatness or not isinstance(step, Dense):
        return None
    return triangular_factor(step)
