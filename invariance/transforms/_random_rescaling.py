"""A random rescaling of a network: the one treatment behind every "after rescaling"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invariance.core._rng import generator
from invariance.symmetry._structures import SymmetryKind
from invariance.symmetry.analysis._symmetries import symmetries
from invariance.transforms._neuron_scaling import NeuronScaling

#: Largest factor of a whole group of units, and of each unit of it.
GROUP_SPREAD, UNIT_SPREAD = 30.0, 10.0

#: The distribution in words, for every table that holds a value after a random rescaling.
GROUPS_RESCALED = (
    "all hidden units that scale together (a layer of a perceptron) are multiplied by one "
    "factor, log-uniform in [1/30, 30], and what reads them is divided by it"
)
UNITS_RESCALED = GROUPS_RESCALED + "; each unit is multiplied by one more, in [1/10, 10]"


def rescaling_factors(sizes: Sequence[int], seed: int, *, units: bool = True) -> list[list[float]]:
    """Draw a factor for every hidden unit; see :func:`random_rescaling`."""
    shared = torch.rand(len(sizes), generator=generator(seed, "layer scaling"), dtype=torch.float64)
    drawn = []
    for number, (size, u) in enumerate(zip(sizes, shared.tolist(), strict=True)):
        factors = torch.full(
            (size,), math.exp((2 * u - 1) * math.log(GROUP_SPREAD)), dtype=torch.float64
        )
        if units:
            stream = generator(seed, "neuron scaling", number)
            own = torch.rand(size, generator=stream, dtype=torch.float64)
            factors = factors * torch.exp2((2 * own - 1) * math.log2(UNIT_SPREAD))
        drawn.append(factors.tolist())
    return drawn


def random_rescaling(
    model: nn.Module, example_input: Tensor, seed: int, *, units: bool = True
) -> NeuronScaling:
    """Draw a function-preserving rescaling of every hidden unit of ``model``.

    Each group of units that scale together gets a factor log-uniform in [1/30, 30], and each
    unit of it one more in [1/10, 10]: :data:`UNITS_RESCALED`, in words. With ``units=False`` the
    groups' factors alone are drawn, the same ones: :data:`GROUPS_RESCALED`.

    Args:
        model: A network in eval mode.
        example_input: A few inputs, to trace it with.
        seed: Seed of the factors.
        units: Scale single units too.

    Returns:
        The transform; applying it raises ``TransformError`` if no unit can be scaled.

    >>> import invariance as inv
    >>> model = inv.models.mlp([4, 6, 3])
    >>> factors = random_rescaling(model, torch.rand(2, 4), seed=0, units=False).factors
    >>> len(factors), len(set(factors[0]))
    (1, 1)
    """
    groups = symmetries(model, example_input).of(
        SymmetryKind.SCALING, SymmetryKind.BATCHNORM_AFFINE
    )
    factors = rescaling_factors([group.size for group in groups], seed, units=units)
    return NeuronScaling(factors=factors)
