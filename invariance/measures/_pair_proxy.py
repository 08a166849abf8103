"""Feasible (unseen point, class) pairs: declaration."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.measures._registry import measure
from invariance.weakness.separability import _pair_proxy as pairs

#: Every map in these groups acts on the last linear layer's features by an invertible
#: affine map (scalings, permutations, flips, mixings, splits: the span of the features is
#: kept) or not at all (logit shifts, foldings, coordinates). A dormant unit adds or
#: changes a feature that the function does not use, so the count varies.
FIXED_FEATURE_SPAN = frozenset(set(Group) - {Group.DORMANT_UNITS})


@measure(
    invariant_under=FIXED_FEATURE_SPAN,
    discrete=True,
    cost="solver",
    ensemble=pairs.pair_proxy_ensemble,
)
def pair_proxy(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Feasible (unseen point, class) pairs of the frozen features, certified.

    See :func:`invariance.weakness.separability._pair_proxy.pair_proxy`.
    """
    return pairs.pair_proxy(model, x_train, y_train, x_unseen, **options)
