"""How many extensions a learned policy leaves open."""

from invariance.weakness._agreement import ensemble_agreement
from invariance.weakness.extensions._extension_count import extension_count
from invariance.weakness.patterns._activation_layers import ActivationLayer, activation_layers
from invariance.weakness.patterns._patterns import (
    Patterns,
    activation_patterns,
    activation_patterns_ensemble,
    hidden_patterns,
)
from invariance.weakness.patterns._regions import (
    RegionCounts,
    free_parameters,
    free_regions,
    region_class_weakness,
    region_counts,
)
from invariance.weakness.patterns._repaired import (
    reduced_network,
    repaired_activation_patterns,
    repaired_free_regions,
)
from invariance.weakness.separability._margin_pair_proxy import margin_pair_proxy
from invariance.weakness.separability._pair_proxy import pair_proxy, pair_proxy_ensemble
from invariance.weakness.separability._repaired_pair_proxy import (
    function_pair_proxy,
    repaired_pair_proxy,
)
from invariance.weakness.volume._version_space import (
    VersionSpace,
    version_space,
    volume_weakness,
    volume_weakness_raw,
)

__all__ = [
    "ActivationLayer",
    "Patterns",
    "RegionCounts",
    "VersionSpace",
    "activation_layers",
    "activation_patterns",
    "activation_patterns_ensemble",
    "ensemble_agreement",
    "extension_count",
    "free_parameters",
    "free_regions",
    "function_pair_proxy",
    "hidden_patterns",
    "margin_pair_proxy",
    "pair_proxy",
    "pair_proxy_ensemble",
    "reduced_network",
    "region_class_weakness",
    "region_counts",
    "repaired_activation_patterns",
    "repaired_free_regions",
    "repaired_pair_proxy",
    "version_space",
    "volume_weakness",
    "volume_weakness_raw",
]
