"""Measures x transforms: before, after, what theory says, and the verdict."""

from invariance.cells import CellRow, FunctionRow, Refusal
from invariance.checking._alpha_sweep import alpha_sweep
from invariance.checking._check import check
from invariance.checking._correlate import correlate
from invariance.reporting import AxisSweep, CorrelationRow, CorrelationStudy, Report

__all__ = [
    "AxisSweep",
    "CellRow",
    "CorrelationRow",
    "CorrelationStudy",
    "FunctionRow",
    "Refusal",
    "Report",
    "alpha_sweep",
    "check",
    "correlate",
]
