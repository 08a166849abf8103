"""Weakness by volume of the version space: one declaration in each choice of coordinates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.measures._registry import measure
from invariance.weakness.volume._version_space import version_space

#: Whitened coordinates see the span of the features only, like the pair proxy.
FIXED_FEATURE_SPAN = frozenset(set(Group) - {Group.DORMANT_UNITS})

#: Solid angles in raw coordinates survive what leaves the last features as they are, and
#: orthogonal maps of them (permutations, sign flips). Scaling, splitting and mixing change
#: lengths or angles; a dormant unit adds a direction.
SAME_FEATURES_UP_TO_ROTATION = frozenset(
    {
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_FOLD,
        Group.COORDINATES,
    }
)


@measure(invariant_under=FIXED_FEATURE_SPAN, cost="sampling")
def volume_weakness(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Effective number of labels left open by the version space, whitened: affine-invariant.

    See :func:`invariance.weakness.version_space`.
    """
    options = {"coordinates": "whitened", **options}
    return version_space(model, x_train, y_train, x_unseen, **options).weakness()


@measure(invariant_under=SAME_FEATURES_UP_TO_ROTATION, cost="sampling")
def volume_weakness_raw(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Effective number of labels left open, by solid angle in the network's own coordinates.

    See :func:`invariance.weakness.version_space`.
    """
    options = {"coordinates": "raw", **options}
    return version_space(model, x_train, y_train, x_unseen, **options).weakness()
