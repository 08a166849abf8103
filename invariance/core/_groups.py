"""The kinds of function-preserving map, as the names that declarations use.

A transform says which kind it belongs to; a measure declares what happens to it
under each kind. The two meet in :mod:`invariance.cells`.

A new kind of map is a file of :mod:`invariance.transforms` (with its line in ``KINDS`` there)
and an entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal


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


@dataclass(frozen=True)
class AboutGroup:
    """What there is to know about one kind of map, beside the transform itself.

    Attributes:
        sites: The symmetry groups that it acts on, as ``inv.symmetries`` prints them; empty
            where it acts on no single site.
        members: How many maps of this kind can be drawn for one network.
        relu_mlp: Which multilayer perceptrons with ReLU admit it.
        keeps_logits: False if it keeps the softmax only.
        meaning: What it usually means that a measure moves under it.
    """

    sites: tuple[str, ...] = ()
    members: Literal["many", "one", "none"] = "many"
    relu_mlp: Literal["all", "with BatchNorm", "none"] = "all"
    keeps_logits: bool = True
    meaning: str = ""


#: Everything that depends on the kind of a map and not on the map.
ABOUT: Mapping[Group, AboutGroup] = MappingProxyType(
    {
        Group.LAYER_SCALING: AboutGroup(sites=("scaling",)),
        Group.NEURON_SCALING: AboutGroup(sites=("scaling", "batchnorm_affine")),
        Group.PERMUTATION: AboutGroup(
            sites=("permutation",),
            meaning="it depends on the order of hidden units; reduce over them symmetrically",
        ),
        Group.SIGN_FLIP: AboutGroup(
            sites=("sign_flip",),
            relu_mlp="with BatchNorm",
            meaning="it reads signs of parameters; use squares or absolute values",
        ),
        Group.LINEAR_MIXING: AboutGroup(
            relu_mlp="none",
            meaning=(
                "it reads two adjacent linear maps apart; only their product is part of the "
                "function"
            ),
        ),
        Group.LOGIT_SHIFT: AboutGroup(
            keeps_logits=False,
            meaning=(
                "it reads the last layer or the logits themselves; softmax keeps only their "
                "differences"
            ),
        ),
        Group.BATCHNORM_FOLD: AboutGroup(
            members="one",
            relu_mlp="with BatchNorm",
            meaning=(
                "it reads weights before their BatchNorm; the layer's weight is diag(s) W, "
                "s = gamma / sqrt(var + eps)"
            ),
        ),
        Group.BATCHNORM_SCALING: AboutGroup(
            sites=("batchnorm_weight_scale",),
            relu_mlp="with BatchNorm",
            meaning=(
                "it reads weights whose scale the BatchNorm behind them removes; normalise them, "
                "or fold"
            ),
        ),
        Group.UNIT_SPLIT: AboutGroup(
            meaning="it counts units or parameters, or sums over units without their shares"
        ),
        Group.DORMANT_UNITS: AboutGroup(meaning="it counts units that the output never reads"),
        Group.COORDINATES: AboutGroup(members="none", relu_mlp="none"),
    }
)

#: Groups that rescale weights and nothing else: what a claim of invariance is about.
RESCALINGS: frozenset[Group] = frozenset(
    {Group.LAYER_SCALING, Group.NEURON_SCALING, Group.BATCHNORM_SCALING}
)

#: Groups that keep every logit. A logit shift keeps the softmax only, and a change
#: of coordinates keeps the function but moves to another parameterisation.
KEEP_LOGITS: frozenset[Group] = frozenset(g for g in Group if ABOUT[g].keeps_logits)
