"""Builders of networks: plain modules, seeded, readable by the symmetry engine."""

from invariance.models.activations import ACTIVATIONS
from invariance.models.mlp import mlp

__all__ = ["ACTIVATIONS", "mlp"]
