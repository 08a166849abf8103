"""Mix units by an invertible matrix where nothing nonlinear lies between two weights.

Between adjacent linear layers ``W2 W1 = (W2 A^-1)(A W1)``. In attention the scores depend on
``W_Q^T W_K`` head by head, so ``W_Q -> A W_Q`` and ``W_K -> A^-T W_K`` keep them, and so do
the values and the output projection. Where such places are is read off the module's graph.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._modules import clone
from invariance.core._rng import generator
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._structures import Leg, Symmetries, SymmetryKind
from invariance.symmetry._verify import verify
from invariance.symmetry.elements._group_elements import compact, named_tensors, write_tensors
from invariance.transforms._base import Transform


class LinearMixing(Transform):
    """Mix the units of every linear path by a random, well-conditioned matrix.

    The matrix is ``Q diag(s) R`` with random orthogonal ``Q`` and ``R`` and singular values
    log-uniform in ``[1/spread, spread]``. Its action mixes parameters, so no entry of the
    new network corresponds to one old entry, and ``Applied.action`` is ``None``.

    Args:
        seed: Seed of the matrices.
        spread: Largest singular value, at least 1; 1 gives rotations.
        inverted: Apply the inverse matrices instead.

    Example:
        Where nothing nonlinear lies between two weights:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [2.0]], [[3.0, 4.0]]], activation="identity")
        >>> x = torch.ones(1, 1).double()
        >>> round(LinearMixing(seed=0)(model, x)(x).item(), 9)
        11.0
    """

    group: ClassVar[Group] = Group.LINEAR_MIXING

    def __init__(self, seed: int = 0, *, spread: float = 3.0, inverted: bool = False) -> None:
        if not (spread >= 1 and math.isfinite(spread)):
            raise TransformError(f"LinearMixing: spread must be finite, at least 1. Got {spread}.")
        self.seed, self.spread, self.inverted = as_seed(seed), float(spread), bool(inverted)

    def __repr__(self) -> str:
        extra = ", inverted=True" if self.inverted else ""
        return f"LinearMixing(seed={self.seed}, spread={self.spread!r}{extra})"

    def inverse(self) -> LinearMixing:
        """Return the transform that undoes this one."""
        return LinearMixing(self.seed, spread=self.spread, inverted=not self.inverted)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy with mixed units; see the base class."""
        from invariance.symmetry.analysis._symmetries import symmetries as analyse

        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        found = analyse(model, x)
        groups = found.of(SymmetryKind.LINEAR_MIXING)
        if not groups:
            raise TransformError(_no_path(found, who))
        tensors = named_tensors(model, double=True)
        matrices = {}
        for number, group in enumerate(groups):
            matrix = self._matrix(number, group.size)
            against = torch.linalg.inv(matrix).T
            matrices[f"{number}: {group.site}"] = matrix
            for leg in group.legs:
                if leg.power not in (1, -1):
                    raise TransformError(f"{who}: {leg.parameter!r} is not mixed linearly.")
                acting = matrix if leg.power == 1 else against
                tensors[leg.parameter] = _mixed(tensors[leg.parameter], leg, acting)
        new = clone(model)
        write_tensors(new, tensors)
        return Applied(
            model=new,
            verification=verify(model, new, x, who),
            action=None,
            description=f"mixed {', '.join(group.site for group in groups)}",
            detail={"matrices": matrices},
        )

    def _matrix(self, number: int, size: int) -> Tensor:
        """Draw one matrix, ``(size, size)`` float64."""
        draw = generator(self.seed, "mixing", number)
        noise = torch.randn(2, size, size, generator=draw, dtype=torch.float64)
        (q, r), _ = torch.linalg.qr(noise)
        exponent = 2 * torch.rand(size, generator=draw, dtype=torch.float64) - 1
        values = torch.exp(exponent * math.log(self.spread))
        matrix: Tensor = (r.T / values) @ q.T if self.inverted else (q * values) @ r
        return matrix


def _mixed(tensor: Tensor, leg: Leg, matrix: Tensor) -> Tensor:
    """Multiply a tensor by a matrix along a leg's units, address by address."""
    dims, units, addresses = compact(leg)
    at = np.flatnonzero(units >= 0)
    at = at[np.lexsort((units[at], addresses[at]))]
    size = matrix.shape[0]
    if at.size % size or not np.array_equal(units[at], np.tile(np.arange(size), at.size // size)):
        raise TransformError(
            f"LinearMixing: {leg.parameter!r} does not hold all {size} units at every address."
        )
    front = torch.movedim(tensor, dims, tuple(range(len(dims))))
    flat = front.reshape(units.size, -1).clone()
    where = torch.from_numpy(at).to(tensor.device)
    blocks = flat[where].reshape(at.size // size, size, -1)
    flat[where] = (matrix.to(flat) @ blocks).reshape(at.size, -1)
    return torch.movedim(flat.reshape(front.shape), tuple(range(len(dims))), dims)


def _no_path(found: Symmetries, who: str) -> str:
    """Explain why nothing can be mixed."""
    reasons = [str(stop) for stop in found.stops if SymmetryKind.LINEAR_MIXING in stop.kinds]
    shown = "; ".join(reasons[:3]) or "every pair of weights has something nonlinear between"
    return f"{who}: no linear path between two weights was found: {shown}."
