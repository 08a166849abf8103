"""Second derivatives: exact where exactness exists, certified where it does not."""

from invariance.curvature.density import SpectralDensity, spectral_density
from invariance.curvature.eigen import eigenpairs, hessian_eigenvalues
from invariance.curvature.ensemble import hessian_eigenvalues_ensemble
from invariance.curvature.estimators import hessian_trace_estimate
from invariance.curvature.exact import exact_curvature
from invariance.curvature.exact_result import DiagonalResult, ExactCurvature
from invariance.curvature.exact_route import hessian_diagonal, hessian_trace
from invariance.curvature.losses import (
    CrossEntropy,
    CustomLoss,
    Loss,
    MeanSquaredError,
    resolve_loss,
)
from invariance.curvature.norm import hessian_norm
from invariance.curvature.operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
)
from invariance.curvature.stacked import EnsembleCurvature, hessian_trace_ensemble
from invariance.curvature.vectors import (
    fisher_vector_product,
    ggn_vector_product,
    hessian_vector_product,
)

__all__ = [
    "CrossEntropy",
    "CurvatureOperator",
    "CustomLoss",
    "DiagonalResult",
    "EmpiricalFisherOperator",
    "EnsembleCurvature",
    "ExactCurvature",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "Loss",
    "MeanSquaredError",
    "SpectralDensity",
    "eigenpairs",
    "exact_curvature",
    "fisher_vector_product",
    "ggn_vector_product",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "hessian_eigenvalues_ensemble",
    "hessian_norm",
    "hessian_trace",
    "hessian_trace_ensemble",
    "hessian_trace_estimate",
    "hessian_vector_product",
    "resolve_loss",
    "spectral_density",
]
