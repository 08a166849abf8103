"""Reorder the hidden units."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.symmetry._structures import IntArray, SymmetryKind
from invariance.transforms._acting import none_found, prepare
from invariance.transforms._base import Transform


class Permutation(Transform):
    """A random permutation of the units of every group that admits one.

    Args:
        seed: Seed of the draw.
        inverted: Undo the permutation of this seed instead.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [2.0]], [[3.0, 4.0]]])
        >>> x = torch.ones(1, 1).double()
        >>> [p.tolist() for p in Permutation(seed=0)(model, x).parameters()]
        [[[2.0], [1.0]], [[4.0, 3.0]]]
    """

    group = Group.PERMUTATION

    def __init__(self, seed: int = 0, *, inverted: bool = False) -> None:
        self.seed = as_seed(seed)
        self.inverted = bool(inverted)

    def __repr__(self) -> str:
        tail = ", inverted=True" if self.inverted else ""
        return f"Permutation(seed={self.seed!r}{tail})"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["orders"]`` maps groups to their orders.

        In an order, entry ``j`` is the number of the old unit that became unit ``j``.
        """
        actor = prepare(model, example_input)
        groups = actor.analysis.symmetries.of(SymmetryKind.PERMUTATION)
        if not groups:
            raise none_found(repr(self), "hidden units that may change places", actor)
        used = {}
        for number, group in enumerate(groups):
            order = self._draw(number, group.size)
            actor.permute(group, order)
            used[f"{number}:{group.site}"] = order.tolist()
        units = sum(group.size for group in groups)
        return actor.finish(
            model,
            repr(self),
            f"permuted {units} units in {len(groups)} groups",
            actor.action(),
            {"orders": used},
        )

    def inverse(self) -> Permutation:
        """Return the permutation that undoes this one."""
        return Permutation(self.seed, inverted=not self.inverted)

    def _draw(self, number: int, size: int) -> IntArray:
        stream = generator(self.seed, "permutation", number)
        order: IntArray = torch.randperm(size, generator=stream).numpy()
        return np.argsort(order) if self.inverted else order
