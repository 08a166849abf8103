"""What the active-set method takes and gives; its loops are in ``kernels``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: Stop once every margin reaches this fraction of the margin that the program asks for.
EARLY_STOP = 1e-3
#: A row whose part outside the active rows is this small, relatively, depends on them.
DEPENDENT = 1e-11
#: Changes of the active set after which a run gives up.
MAX_STEPS = 20_000


class SolverOutcome(IntEnum):
    """How a run of the active-set method ended."""

    STUCK = 0
    SEPARATED = 1
    INSEPARABLE = -1


@dataclass(eq=False)
class Combination:
    """Rows ``(e_y - e_c) x_i^T`` and multipliers whose weighted sum is (nearly) zero.

    Attributes:
        points: ``(k,)`` indices i of the points.
        others: ``(k,)`` the classes c that the labels are compared with.
        weights: ``(k,)`` multipliers, non-negative for a Farkas certificate.
    """

    points: Indices
    others: Indices
    weights: Array
