"""Scale every hidden unit by its own factor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.symmetry._structures import SymmetryGroup, SymmetryKind
from invariance.transforms._acting import FloatArray, check_factors, none_found, prepare
from invariance.transforms._base import Transform


class NeuronScaling(Transform):
    """One positive factor for every hidden unit: what makes it times it, what reads it by it.

    The factors are drawn log-uniformly from ``[1 / spread, spread]``, one for every unit of
    every scaling group of the module (channels of a residual stream are one unit). Behind a
    BatchNorm the unit is made by its affine part, so its statistics are never touched;
    :class:`~invariance.transforms.BatchNormScaling` moves those.

    Args:
        spread: Largest factor; 1 or more.
        seed: Seed of the draw.
        powers_of_two: Draw powers of two only, for bitwise equal outputs.
        factors: Explicit factors instead: for every group, in the order of execution, one
            per unit or one number for all.
        inverted: Divide by the factors instead.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [2.0]], [[3.0, 4.0]]])
        >>> x = torch.ones(1, 1).double()
        >>> scaled = NeuronScaling(spread=10.0, seed=0)(model, x)
        >>> round(scaled(x).item(), 9)  # 3 relu(1) + 4 relu(2)
        11.0
    """

    group = Group.NEURON_SCALING

    def __init__(
        self,
        spread: float = 10.0,
        seed: int = 0,
        *,
        powers_of_two: bool = False,
        factors: Sequence[float | Sequence[float]] | None = None,
        inverted: bool = False,
    ) -> None:
        if not (isinstance(spread, (int, float)) and math.isfinite(spread) and spread >= 1):
            raise TransformError(
                f"NeuronScaling needs a finite spread of at least 1, got {spread!r}."
            )
        self.spread = float(spread)
        self.seed = as_seed(seed)
        self.powers_of_two = bool(powers_of_two)
        self.factors = None if factors is None else [_as_list(entry) for entry in factors]
        self.inverted = bool(inverted)

    def __repr__(self) -> str:
        parts = [f"spread={self.spread!r}", f"seed={self.seed!r}"]
        if self.powers_of_two:
            parts.append("powers_of_two=True")
        if self.factors is not None:
            parts.append(f"factors={self.factors!r}")
        if self.inverted:
            parts.append("inverted=True")
        return f"NeuronScaling({', '.join(parts)})"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["factors"]`` maps groups to their factors."""
        actor = prepare(model, example_input)
        groups = actor.analysis.symmetries.of(SymmetryKind.SCALING, SymmetryKind.BATCHNORM_AFFINE)
        if not groups:
            raise none_found(repr(self), "hidden unit that may be scaled", actor)
        used = {}
        for number, (group, factors) in enumerate(zip(groups, self._elements(groups), strict=True)):
            actor.scale(group, 1.0 / factors if self.inverted else factors)
            used[f"{number}:{group.site}"] = factors.tolist()
        units = sum(group.size for group in groups)
        return actor.finish(
            model,
            repr(self),
            f"scaled {units} units in {len(groups)} groups",
            actor.action(),
            {"factors": used},
        )

    def inverse(self) -> NeuronScaling:
        """Return the scaling by the reciprocal factors."""
        return NeuronScaling(
            self.spread,
            self.seed,
            powers_of_two=self.powers_of_two,
            factors=self.factors,
            inverted=not self.inverted,
        )

    def _elements(self, groups: Sequence[SymmetryGroup]) -> list[FloatArray]:
        if self.factors is None:
            return [self._draw(number, group.size) for number, group in enumerate(groups)]
        if len(self.factors) != len(groups):
            raise TransformError(
                f"NeuronScaling got factors for {len(self.factors)} groups; the module has "
                f"{len(groups)}: {', '.join(f'{g.site} ({g.size})' for g in groups)}."
            )
        elements = []
        for given, group in zip(self.factors, groups, strict=True):
            values = check_factors("NeuronScaling", given if isinstance(given, list) else [given])
            if values.size not in (1, group.size):
                raise TransformError(
                    f"NeuronScaling got {values.size} factors for the {group.size} units made by "
                    f"`{group.site}`."
                )
            elements.append(np.broadcast_to(values, (group.size,)).copy())
        return elements

    def _draw(self, number: int, size: int) -> FloatArray:
        stream = generator(self.seed, "neuron scaling", number)
        uniform = torch.rand(size, generator=stream, dtype=torch.float64).numpy()
        exponent = (2 * uniform - 1) * math.log2(self.spread)
        if self.powers_of_two:
            exponent = np.rint(exponent)
        drawn: FloatArray = np.exp2(exponent)
        return drawn


def _as_list(entry: float | Sequence[float]) -> float | list[float]:
    return float(entry) if isinstance(entry, (int, float)) else [float(value) for value in entry]
