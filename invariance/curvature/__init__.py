"""Second derivatives: exact where exactness exists, certified where it does not."""

from invariance.curvature.eigen import eigenpairs, hessian_eigenvalues
from invariance.curvature.operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
)

__all__ = [
    "CurvatureOperator",
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "eigenpairs",
    "hessian_eigenvalues",
]
