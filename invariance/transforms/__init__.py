"""Function-preserving maps of modules."""

from __future__ import annotations

from invariance.transforms.base import Action, Applied, ParameterAction, Transform, Verification
from invariance.transforms.batchnorm import BatchNormScaling, FoldBatchNorm
from invariance.transforms.compose import Compose
from invariance.transforms.layer_scaling import LayerScaling
from invariance.transforms.neuron_scaling import NeuronScaling
from invariance.transforms.permutation import Permutation
from invariance.transforms.sign_flip import SignFlip

__all__ = [
    "Action",
    "Applied",
    "BatchNormScaling",
    "Compose",
    "FoldBatchNorm",
    "LayerScaling",
    "NeuronScaling",
    "ParameterAction",
    "Permutation",
    "SignFlip",
    "Transform",
    "Verification",
]
