"""Strategies for maps that a given network admits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

import invariance.transforms as T
from invariance.core._errors import TransformError, unknown_name
from invariance.core._groups import ABOUT, Group
from invariance.core._modules import weight_layers
from invariance.testing.blame._at_site import AtSite, analyse
from invariance.testing.strategies._networks import SEEDS
from invariance.transforms._base import Transform
from invariance.transforms._members import draw_member

#: Kinds of map that a drawn perceptron may admit.
DRAWABLE = tuple(group for group in Group if ABOUT[group].relu_mlp != "none")


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
    possible = [g for g in wanted if not ABOUT[g].sites or found.of(*ABOUT[g].sites)]
    if not found.norms:
        possible = [g for g in possible if ABOUT[g].sites or ABOUT[g].relu_mlp == "all"]
    if not possible:
        reject()
    group = draw(st.sampled_from(possible))
    drawer = _DRAWERS.get(group)
    drawn: Transform = (
        drawer(draw, model, example) if drawer else draw_member(group, model, draw(SEEDS))
    )
    try:
        drawn.apply(model, example)
    except TransformError:
        reject()  # a residual stream that ties layers, a norm that cannot be folded, ...
    return drawn


def checked_groups(groups: Iterable[Group | str] | None) -> list[Group]:
    """Return the groups to draw from."""
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


def _split(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.SplitUnits(draw(st.integers(1, 3)), seed=draw(SEEDS))


def _dormant(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.DormantUnits(draw(st.integers(1, 3)), seed=draw(SEEDS))


#: How members of a kind are drawn so that they shrink; others are drawn from a seed.
_DRAWERS: Mapping[Group, Any] = {
    Group.LAYER_SCALING: _layer_scaling,
    Group.NEURON_SCALING: _neuron_scaling,
    Group.PERMUTATION: _permutation,
    Group.SIGN_FLIP: _sign_flip,
    Group.BATCHNORM_SCALING: _norm_scaling,
    Group.UNIT_SPLIT: _split,
    Group.DORMANT_UNITS: _dormant,
}
