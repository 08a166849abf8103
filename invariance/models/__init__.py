"""Builders of networks: plain modules, seeded, readable by the symmetry engine."""

from invariance.models.activations import ACTIVATIONS
from invariance.models.convolutional import cnn, vgg
from invariance.models.mlp import mlp
from invariance.models.resnet import BasicBlock, resnet, resnet18
from invariance.models.vit import Attention, TransformerBlock, vit

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "BasicBlock",
    "TransformerBlock",
    "cnn",
    "mlp",
    "resnet",
    "resnet18",
    "vgg",
    "vit",
]
