"""Measures of generalization, each with its declared behaviour under every group."""

from invariance.measures._adaptive_eigenvalue import adaptive_eigenvalue
from invariance.measures._adaptive_trace import adaptive_trace
from invariance.measures._average_sharpness import adaptive_gaussian_sharpness, gaussian_sharpness
from invariance.measures._curvature_profile import CurvatureProfile, curvature_profile
from invariance.measures._diagonal_relative_flatness import diagonal_relative_flatness
from invariance.measures._fisher_rao_norm import fisher_rao_closed_form, fisher_rao_norm
from invariance.measures._frobenius_trace import frobenius_trace
from invariance.measures._hessian_eigenvalues import hessian_eigenvalues
from invariance.measures._hessian_norm import hessian_norm
from invariance.measures._hessian_quadratic_form import hessian_quadratic_form
from invariance.measures._hessian_trace import hessian_trace
from invariance.measures._information_geometric_sharpness import information_geometric_sharpness
from invariance.measures._minimum_sharpness import layer_minimum_sharpness, minimum_sharpness
from invariance.measures._norm_products import frobenius_norm_product, spectral_norm_product
from invariance.measures._normalized_eigenvalue import normalized_eigenvalue
from invariance.measures._parameter_norm import parameter_norm
from invariance.measures._path_norm import path_norm
from invariance.measures._path_norm_margin import path_norm_margin
from invariance.measures._relative_flatness import relative_flatness
from invariance.measures._sam_sharpness import adaptive_sharpness, sam_sharpness
from invariance.measures._standardized_relative_flatness import standardized_relative_flatness
from invariance.measures._weakness import (
    activation_patterns,
    extension_count,
    free_parameters,
    free_regions,
    function_pair_proxy,
    margin_pair_proxy,
    pair_proxy,
    region_class_weakness,
    repaired_activation_patterns,
    repaired_free_regions,
    repaired_pair_proxy,
    volume_weakness,
    volume_weakness_raw,
)
from invariance.measures._worst_case_sharpness import (
    adaptive_worst_case_sharpness,
    worst_case_sharpness,
)

__all__ = [
    "CurvatureProfile",
    "activation_patterns",
    "adaptive_eigenvalue",
    "adaptive_gaussian_sharpness",
    "adaptive_sharpness",
    "adaptive_trace",
    "adaptive_worst_case_sharpness",
    "curvature_profile",
    "diagonal_relative_flatness",
    "extension_count",
    "fisher_rao_closed_form",
    "fisher_rao_norm",
    "free_parameters",
    "free_regions",
    "frobenius_norm_product",
    "frobenius_trace",
    "function_pair_proxy",
    "gaussian_sharpness",
    "hessian_eigenvalues",
    "hessian_norm",
    "hessian_quadratic_form",
    "hessian_trace",
    "information_geometric_sharpness",
    "layer_minimum_sharpness",
    "margin_pair_proxy",
    "minimum_sharpness",
    "normalized_eigenvalue",
    "pair_proxy",
    "parameter_norm",
    "path_norm",
    "path_norm_margin",
    "region_class_weakness",
    "relative_flatness",
    "repaired_activation_patterns",
    "repaired_free_regions",
    "repaired_pair_proxy",
    "sam_sharpness",
    "spectral_norm_product",
    "standardized_relative_flatness",
    "volume_weakness",
    "volume_weakness_raw",
    "worst_case_sharpness",
]
