"""How many extensions a learned policy leaves open."""

from invariance.weakness.activations import ActivationLayer, activation_layers
from invariance.weakness.agreement import ensemble_agreement
from invariance.weakness.pairs import pair_proxy
from invariance.weakness.patterns import (
    Patterns,
    activation_patterns,
    activation_patterns_ensemble,
    hidden_patterns,
)
from invariance.weakness.regions import (
    RegionCounts,
    free_parameters,
    free_regions,
    region_class_weakness,
    region_counts,
)

__all__ = [
    "ActivationLayer",
    "Patterns",
    "RegionCounts",
    "activation_layers",
    "activation_patterns",
    "activation_patterns_ensemble",
    "ensemble_agreement",
    "free_parameters",
    "free_regions",
    "hidden_patterns",
    "pair_proxy",
    "region_class_weakness",
    "region_counts",
]
