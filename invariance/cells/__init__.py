"""Does a value stay when a map is applied? The one engine behind check, gate and soak.

A network and its copies under maps (:class:`MappedNetwork`), one measure on it
(:class:`CellEngine`), what counts as the same value (:class:`ComparisonPolicy`), and what comes out
(:class:`CellRow`, :class:`FunctionRow`, :class:`Refusal`).
"""

from invariance.cells._engine import Cell, CellEngine, ComparisonPolicy
from invariance.cells._faults import FaultyMeasureError
from invariance.cells._mapped_network import BrokenTransformError, MappedNetwork
from invariance.cells._rows import CellRow, FunctionRow, Refusal

__all__ = [
    "BrokenTransformError",
    "Cell",
    "CellEngine",
    "CellRow",
    "ComparisonPolicy",
    "FaultyMeasureError",
    "FunctionRow",
    "MappedNetwork",
    "Refusal",
]
