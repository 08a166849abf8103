"""Function-preserving maps of modules."""

from __future__ import annotations

from invariance.core._applied import Action, Applied, ParameterAction, Verification
from invariance.transforms._base import Transform
from invariance.transforms._batchnorm import BatchNormScaling, FoldBatchNorm
from invariance.transforms._compose import Compose
from invariance.transforms._dormant_units import DormantUnits
from invariance.transforms._layer_scaling import LayerScaling
from invariance.transforms._linear_mixing import LinearMixing
from invariance.transforms._logit_shift import LogitShift
from invariance.transforms._neuron_scaling import NeuronScaling
from invariance.transforms._permutation import Permutation
from invariance.transforms._random_rescaling import (
    GROUPS_RESCALED,
    UNITS_RESCALED,
    random_rescaling,
)
from invariance.transforms._reparametrize import Reparametrize, Unparametrize
from invariance.transforms._reparametrize_law import (
    CoordinateLaw,
    coordinate_law,
    covariant_trace,
)
from invariance.transforms._reparametrize_maps import (
    Coordinates,
    Diffeomorphism,
    Dinh,
    ExpLog,
    WeightNorm,
)
from invariance.transforms._sign_flip import SignFlip
from invariance.transforms._split_units import SplitUnits
from invariance.transforms._translation import Translation

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
    "GROUPS_RESCALED",
    "UNITS_RESCALED",
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
    "Translation",
    "Unparametrize",
    "Verification",
    "WeightNorm",
    "coordinate_law",
    "covariant_trace",
    "random_rescaling",
]
