"""The kinds of function-preserving map, as the names that declarations use.

A transform says which kind it belongs to; a measure declares what happens to it
under each kind. The two meet in :mod:`invariance.checking`.
"""

from __future__ import annotations

from enum import StrEnum


class Group(StrEnum):
    """A kind of function-preserving map of a network's parameters (or coordinates)."""

    LAYER_SCALING = "layer_scaling"
    NEURON_SCALING = "neuron_scaling"
    PERMUTATION = "permutation"
    SIGN_FLIP = "sign_flip"
    LINEAR_MIXING = "linear_mixing"
    LOGIT_SHIFT = "logit_shift"
    BATCHNORM_FOLD = "batchnorm_fold"
    BATCHNORM_SCALING = "batchnorm_scaling"
    UNIT_SPLIT = "unit_split"
    DORMANT_UNITS = "dormant_units"
    COORDINATES = "coordinates"


#: Groups that keep every logit. A logit shift keeps the softmax only, and a change
#: of coordinates keeps the function but moves to another parameterisation.
KEEP_LOGITS: frozenset[Group] = frozenset(set(Group) - {Group.LOGIT_SHIFT})
