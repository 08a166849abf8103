"""Strategies for maps that a given network admits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

from invariance import transforms as T
from invariance.core._errors import TransformError, unknown_name
from invariance.core._groups import Group
from invariance.core._modules import weight_layers
from invariance.testing.blame._at_site import AtSite, analyse
from invariance.testing.blame._narrowing import KINDS_OF
from invariance.testing.strategies._networks import SEEDS
from invariance.transforms._base import Transform

#: Kinds of map that a drawn perceptron may admit.
DRAWABLE = (
    Group.LAYER_SCALING,
    Group.NEURON_SCALING,
    Group.PERMUTATION,
    Group.SIGN_FLIP,
    Group.LOGIT_SHIFT,
    Group.BATCHNORM_FOLD,
    Group.BATCHNORM_SCALING,
    Group.UNIT_SPLIT,
    Group.DORMANT_UNITS,
)


#: Largest power of two in a factor.
MAX_EXPONENT = 5


@st.composite
def transforms(
    draw: st.DrawFn,
    model: nn.Module,
    example: Tensor,
    *,
    groups: Iterable[Group | str] | None = None,
) -> Transform:
    """Draw a map that ``model`` admits.

    Factors are powers of two whose exponents shrink to zero, so that a shrunken failure
    moves as few units by as little as will do.

    Args:
        draw: Given by Hypothesis.
        model: The network.
        example: Input rows.
        groups: Kinds to draw from; by default those that the network admits.

    Returns:
        The map.
    """
    wanted = checked_groups(groups)
    found = analyse(model, example)
    possible = [g for g in wanted if g not in KINDS_OF or found.of(*KINDS_OF[g])]
    if Group.BATCHNORM_FOLD in possible and not found.norms:
        possible.remove(Group.BATCHNORM_FOLD)
    if not possible:
        reject()
    group = draw(st.sampled_from(possible))
    drawn: Transform = _DRAWERS[group](draw, model, example)
    try:
        drawn.apply(model, example)
    except TransformError:
        reject()  # a residual stream that ties layers, a norm that cannot be folded, ...
    return drawn


def checked_groups(groups: Iterable[Group | str] | None) -> list[Group]:
    """Return the groups to draw from.

    Raises:
        UsageError: For one that no strategy draws; lists the known ones.
    """
    if groups is None:
        return list(DRAWABLE)
    known = [group.value for group in DRAWABLE]
    for entry in groups:
        if str(entry) not in known:
            raise unknown_name("group", entry, known)
    return [Group(entry) for entry in groups]


def _exponents(draw: st.DrawFn, count: int) -> list[int]:
    """Exponents that are not all zero; each shrinks to zero, the last one left to one."""
    lists = st.lists(st.integers(-MAX_EXPONENT, MAX_EXPONENT), min_size=count, max_size=count)
    return draw(lists.filter(any))


def _layer_scaling(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    layers = len(weight_layers(model))
    logs = _exponents(draw, layers - 1)
    factors = [2.0 ** (a - b) for a, b in zip([*logs, 0], [0, *logs], strict=True)]
    return T.LayerScaling(factors)


def _neuron_scaling(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    groups = analyse(model, example).of("scaling", "batchnorm_affine")
    logs = iter(_exponents(draw, sum(group.size for group in groups)))
    factors = [[2.0 ** next(logs) for _ in range(group.size)] for group in groups]
    return T.NeuronScaling(factors=factors)


def _at_site(draw: st.DrawFn, model: nn.Module, example: Tensor, kind: str) -> AtSite:
    group = draw(st.sampled_from(list(analyse(model, example).of(kind))))
    if kind == "permutation":
        if group.size == 1:
            return AtSite(kind, group.site, units=(0, 0))
        first = draw(st.integers(0, group.size - 2))
        second = draw(st.integers(first + 1, group.size - 1))
        return AtSite(kind, group.site, units=(first, second))
    unit = draw(st.integers(0, group.size - 1))
    if kind == "sign_flip":
        return AtSite(kind, group.site, units=(unit,))
    # Upwards only: a compensated running variance has to stay positive.
    factor = 2.0 ** draw(st.integers(1, MAX_EXPONENT))
    return AtSite(kind, group.site, factor, units=(unit,))


def _permutation(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return _at_site(draw, model, example, "permutation")


def _sign_flip(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return _at_site(draw, model, example, "sign_flip")


def _norm_scaling(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return _at_site(draw, model, example, "batchnorm_weight_scale")


def _logit_shift(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.LogitShift(seed=draw(SEEDS))


def _fold(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.FoldBatchNorm()


def _split(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.SplitUnits(draw(st.integers(1, 3)), seed=draw(SEEDS))


def _dormant(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.DormantUnits(draw(st.integers(1, 3)), seed=draw(SEEDS))


_DRAWERS: Mapping[Group, Any] = {
    Group.LAYER_SCALING: _layer_scaling,
    Group.NEURON_SCALING: _neuron_scaling,
    Group.PERMUTATION: _permutation,
    Group.SIGN_FLIP: _sign_flip,
    Group.LOGIT_SHIFT: _logit_shift,
    Group.BATCHNORM_FOLD: _fold,
    Group.BATCHNORM_SCALING: _norm_scaling,
    Group.UNIT_SPLIT: _split,
    Group.DORMANT_UNITS: _dormant,
}
