"""Flip the signs of hidden units."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.symmetry._structures import SymmetryKind
from invariance.transforms._acting import FloatArray, none_found, prepare
from invariance.transforms._base import Transform


class SignFlip(Transform):
    """Random signs for the units of every group that admits them; its own inverse.

    Units admit a flip behind odd activations (tanh, identity), before a BatchNorm (whose
    running mean and weight take the sign up) and where a weight follows a normalisation.

    Args:
        seed: Seed of the draw; at least one unit of every group is flipped.

    Example:
        Where the activation is odd:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [2.0]], [[3.0, 4.0]]], activation="tanh")
        >>> x = torch.ones(1, 1).double()
        >>> flipped = SignFlip(seed=0)(model, x)
        >>> torch.equal(flipped(x), model(x))
        True
    """

    group = Group.SIGN_FLIP

    def __init__(self, seed: int = 0) -> None:
        self.seed = as_seed(seed)

    def __repr__(self) -> str:
        return f"SignFlip(seed={self.seed!r})"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["signs"]`` maps groups to their signs."""
        actor = prepare(model, example_input)
        groups = actor.analysis.symmetries.of(SymmetryKind.SIGN_FLIP)
        if not groups:
            raise none_found(repr(self), "hidden unit whose sign may change", actor)
        used = {}
        for number, group in enumerate(groups):
            signs = self._draw(number, group.size)
            actor.flip(group, signs)
            used[f"{number}:{group.site}"] = signs.astype(int).tolist()
        units = sum(group.size for group in groups)
        return actor.finish(
            model, repr(self), f"flipped among {units} units in {len(groups)} groups",
            actor.action(), {"signs": used},
        )  # fmt: skip

    def inverse(self) -> SignFlip:
        """Return the same flip: it undoes itself."""
        return SignFlip(self.seed)

    def _draw(self, number: int, size: int) -> FloatArray:
        stream = generator(self.seed, "sign flip", number)
        signs = 1.0 - 2.0 * torch.randint(0, 2, (size,), generator=stream).double().numpy()
        signs[int(torch.randint(0, size, (1,), generator=stream))] = -1.0
        return np.asarray(signs, dtype=np.float64)
