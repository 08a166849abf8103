"""Measures of generalization, each with its declared behaviour under every group."""

from invariance.measures.activation_patterns import activation_patterns
from invariance.measures.free_parameters import free_parameters
from invariance.measures.free_regions import free_regions
from invariance.measures.hessian_eigenvalues import hessian_eigenvalues
from invariance.measures.pair_proxy import pair_proxy
from invariance.measures.region_class_weakness import region_class_weakness

__all__ = [
    "activation_patterns",
    "free_parameters",
    "free_regions",
    "hessian_eigenvalues",
    "pair_proxy",
    "region_class_weakness",
]
