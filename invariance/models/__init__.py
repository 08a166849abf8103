"""Builders of networks: plain modules, seeded, readable by the symmetry engine."""

from invariance.models._activations import ACTIVATIONS
from invariance.models._convolutional import cnn, vgg
from invariance.models._from_weights import from_weights
from invariance.models._mlp import mlp
from invariance.models._resnet import BasicBlock, resnet, resnet18
from invariance.models._vit import Attention, TransformerBlock, vit

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "BasicBlock",
    "TransformerBlock",
    "cnn",
    "from_weights",
    "mlp",
    "resnet",
    "resnet18",
    "vgg",
    "vit",
]
