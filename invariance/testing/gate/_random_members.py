"""Random members of each kind of map, decided once a model is at hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from invariance import transforms as T
from invariance.core._arguments import as_seed
from invariance.core._errors import UsageError
from invariance.core._groups import Group
from invariance.core._modules import weight_layers
from invariance.core._rng import generator
from invariance.transforms._base import Applied, Transform

#: Largest log2 of a random layer's factor.
MAX_EXPONENT = 5

#: Largest factor of a random BatchNorm scaling; small, because a compensated running
#: variance a^2 (v + eps) - eps must stay positive.
MAX_BATCHNORM_FACTOR = 16.0


def draw_member(group: Group | str, model: nn.Module, seed: int) -> Transform:
    """Draw a member of one kind of map for ``model``.

    Args:
        group: The kind.
        model: What it will be applied to, for its number of layers.
        seed: Decides the member.

    Returns:
        A transform; whether the model admits it shows when it is applied.

    Raises:
        UsageError: If there is no member of this kind to draw.
    """
    kind = Group(group)
    source = generator(seed, "member", kind.value)
    uniform = float(torch.rand((), generator=source, dtype=torch.float64))
    if kind is Group.LAYER_SCALING:
        return T.LayerScaling(layer_factors(len(weight_layers(model)), seed))
    if kind is Group.NEURON_SCALING:
        return T.NeuronScaling(seed=seed)
    if kind is Group.BATCHNORM_SCALING:
        return T.BatchNormScaling(math.exp(uniform * math.log(MAX_BATCHNORM_FACTOR)) + 0.5)
    if kind is Group.UNIT_SPLIT:
        return T.SplitUnits(1 + int(3 * uniform), seed=seed)
    if kind is Group.DORMANT_UNITS:
        return T.DormantUnits(1 + int(3 * uniform), seed=seed)
    simple = {
        Group.PERMUTATION: T.Permutation,
        Group.SIGN_FLIP: T.SignFlip,
        Group.LINEAR_MIXING: T.LinearMixing,
        Group.LOGIT_SHIFT: T.LogitShift,
    }
    if kind in simple:
        made: Transform = simple[kind](seed=seed)
        return made
    if kind is Group.BATCHNORM_FOLD:
        return T.FoldBatchNorm()
    raise UsageError(f"No random member of the kind {kind.value!r} can be drawn.")


def layer_factors(layers: int, seed: int) -> list[float]:
    """Draw one factor a weight layer with product one: powers of two under even seeds.

    Args:
        layers: Number of weight layers.
        seed: Decides the factors.

    Returns:
        The factors; the outputs stay bitwise equal if they are powers of two.
    """
    source = generator(seed, "layer factors")
    span = 2 * MAX_EXPONENT * torch.rand(layers - 1, generator=source, dtype=torch.float64)
    logs = (span - MAX_EXPONENT).tolist()
    if seed % 2 == 0:
        logs = [float(round(log)) for log in logs]
    before = [0.0, *logs]
    after = [*logs, 0.0]
    return [2.0 ** (now - then) for now, then in zip(after, before, strict=True)]


class MemberOf(Transform):
    """A member of one kind of map that is drawn when it meets its model.

    Args:
        group: The kind.
        seed: Decides the member.
    """

    def __init__(self, group: Group | str, seed: int = 0) -> None:
        self.kind, self.seed = Group(group), as_seed(seed)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The one kind of map that this is."""
        return (self.kind,)

    def __repr__(self) -> str:
        return f"MemberOf({self.kind.value!r}, seed={self.seed})"

    def resolve(self, model: nn.Module) -> Transform:
        """Return the drawn member."""
        return draw_member(self.kind, model, self.seed)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Draw the member and apply it; see the base class."""
        return self.resolve(model).apply(model, example_input)


def resolve_all(transforms: Iterable[Transform], model: nn.Module) -> list[Transform]:
    """Replace every :class:`MemberOf` by the member drawn for ``model``."""
    return [entry.resolve(model) if isinstance(entry, MemberOf) else entry for entry in transforms]
