"""Which transforms a check applies when none are named."""

from __future__ import annotations

from torch import nn

from invariance import transforms as T
from invariance.core._modules import weight_layers
from invariance.transforms._base import Transform

#: log2 of the factor that the first weight layer gets in the bitwise layer scaling.
FIRST_EXPONENT = 8


def power_of_two_factors(layers: int) -> list[float]:
    """Factors ``2^8, 2^-k, ...`` with product one that touch every hidden layer.

    Powers of two change no mantissa, so the outputs stay bitwise equal; touching the
    last hidden layer matters, because a last-layer measure cannot notice otherwise.

    Args:
        layers: Number of weight layers.

    Returns:
        One factor per weight layer.
    """
    if layers == 1:
        return [1.0]
    rest = layers - 1
    exponents = [-(FIRST_EXPONENT // rest)] * rest
    for i in range(FIRST_EXPONENT % rest):
        exponents[-1 - i] -= 1
    return [2.0**FIRST_EXPONENT, *(2.0**e for e in exponents)]


def general_factors(layers: int) -> list[float]:
    """Factors that are not powers of two, with product one up to rounding."""
    factors = [3.0 if i % 2 == 0 else 1 / 3.0 for i in range(layers)]
    if layers % 2:
        factors[-1] = 1.0
    return factors


def default_transforms(model: nn.Module, *, seed: int = 0) -> list[Transform]:
    """One or two members of every kind of map; those that do not apply get refused later.

    Args:
        model: The model to be checked.
        seed: Seed of the random members.

    Returns:
        The transforms, the best known first.
    """
    layers = len(weight_layers(model))
    return [
        T.LayerScaling(power_of_two_factors(layers)),
        T.LayerScaling(general_factors(layers)),
        T.NeuronScaling(seed=seed),
        T.Permutation(seed=seed),
        T.SignFlip(seed=seed),
        T.LinearMixing(seed=seed),
        T.LogitShift(seed=seed),
        T.FoldBatchNorm(),
        T.BatchNormScaling(4.0),
        T.SplitUnits(2, seed=seed),
        T.DormantUnits(2, seed=seed),
        T.Compose([T.NeuronScaling(seed=seed + 1), T.Permutation(seed=seed + 1)]),
    ]
