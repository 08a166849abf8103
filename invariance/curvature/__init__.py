"""Second derivatives: exact where exactness exists, certified where it does not."""

from invariance.curvature._trace_diagonal import exact_curvature, hessian_diagonal, hessian_trace
from invariance.curvature.estimates._trace import hessian_trace_estimate
from invariance.curvature.exact._ensemble import EnsembleCurvature, hessian_trace_ensemble
from invariance.curvature.exact._result import DiagonalResult, ExactCurvature
from invariance.curvature.losses._custom import CustomLoss
from invariance.curvature.losses._resolve import CrossEntropy, Loss, MeanSquaredError, resolve_loss
from invariance.curvature.products._matrix import MatrixOperator, SymmetricOperator
from invariance.curvature.products._operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
)
from invariance.curvature.products._vectors import (
    fisher_vector_product,
    ggn_vector_product,
    hessian_vector_product,
)
from invariance.curvature.spectrum._density import SpectralDensity, spectral_density
from invariance.curvature.spectrum._eigenvalues import eigenpairs, hessian_eigenvalues
from invariance.curvature.spectrum._ensemble import hessian_eigenvalues_ensemble
from invariance.curvature.spectrum._norm import hessian_norm

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
    "MatrixOperator",
    "MeanSquaredError",
    "SpectralDensity",
    "SymmetricOperator",
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
