"""Second derivatives: exact where exactness exists, certified where it does not."""

from invariance.curvature.eigen import eigenpairs, hessian_eigenvalues
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
from invariance.curvature.operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
)
from invariance.curvature.stacked import EnsembleCurvature, hessian_trace_ensemble

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
    "eigenpairs",
    "exact_curvature",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "hessian_trace",
    "hessian_trace_ensemble",
    "resolve_loss",
]
