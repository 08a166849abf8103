"""Function-preserving maps of modules."""

from __future__ import annotations

from invariance.transforms.base import Action, Applied, ParameterAction, Transform, Verification
from invariance.transforms.batchnorm import BatchNormScaling, FoldBatchNorm
from invariance.transforms.compose import Compose
from invariance.transforms.dormant_units import DormantUnits
from invariance.transforms.layer_scaling import LayerScaling
from invariance.transforms.linear_mixing import LinearMixing
from invariance.transforms.logit_shift import LogitShift
from invariance.transforms.neuron_scaling import NeuronScaling
from invariance.transforms.permutation import Permutation
from invariance.transforms.reparametrize import Reparametrize, Unparametrize
from invariance.transforms.reparametrize_law import (
    CoordinateLaw,
    coordinate_law,
    covariant_trace,
)
from invariance.transforms.reparametrize_maps import (
    Coordinates,
    Diffeomorphism,
    Dinh,
    ExpLog,
    WeightNorm,
)
from invariance.transforms.sign_flip import SignFlip
from invariance.transforms.split_units import SplitUnits

#: One transform for every kind of map of which members are drawn, in the order of a check.
KINDS: tuple[type[Transform], ...] = (
    LayerScaling,
    NeuronScaling,
    Permutation,
    SignFlip,
    LinearMixing,
    LogitShift,
    FoldBatchNorm,
    BatchNormScaling,
    SplitUnits,
    DormantUnits,
)

__all__ = [
    "Action",
    "Applied",
    "BatchNormScaling",
    "Compose",
    "CoordinateLaw",
    "Coordinates",
    "Diffeomorphism",
    "Dinh",
    "DormantUnits",
    "ExpLog",
    "FoldBatchNorm",
    "LayerScaling",
    "LinearMixing",
    "LogitShift",
    "NeuronScaling",
    "ParameterAction",
    "Permutation",
    "Reparametrize",
    "SignFlip",
    "SplitUnits",
    "Transform",
    "Unparametrize",
    "Verification",
    "WeightNorm",
    "coordinate_law",
    "covariant_trace",
]
