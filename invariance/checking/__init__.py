"""Measures x transforms: before, after, what theory says, and the verdict."""

from invariance.cells import FunctionRow, Refusal, Row
from invariance.checking._alpha_sweep import Sweep, alpha_sweep
from invariance.checking._check import check
from invariance.checking._correlate import CorrelationRow, CorrelationStudy, correlate
from invariance.checking._report import Report

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
