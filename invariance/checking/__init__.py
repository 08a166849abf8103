"""Measures x transforms: before, after, what theory says, and the verdict."""

from invariance.checking._alpha_sweep import Sweep, alpha_sweep
from invariance.checking._check import check
from invariance.checking._correlate import CorrelationRow, CorrelationStudy, correlate
from invariance.checking._report import Report
from invariance.checking._rows import FunctionRow, Refusal, Row

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
