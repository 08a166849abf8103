"""Measures x transforms: before, after, what theory says, and the verdict."""

from invariance.cells import FunctionRow, Refusal, Row
from invariance.checking.correlate import CorrelationRow, CorrelationStudy, correlate
from invariance.checking.report import Report
from invariance.checking.run import check
from invariance.checking.sweep import Sweep, alpha_sweep

__all__ = [
    "CorrelationRow",
    "CorrelationStudy",
    "FunctionRow",
    "Refusal",
    "Report",
    "Row",
    "Sweep",
    "alpha_sweep",
    "check",
    "correlate",
]
