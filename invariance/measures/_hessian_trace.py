"""Trace of the Hessian: the plainest sharpness, and the one that scalings inflate at will."""

from __future__ import annotations

from invariance import curvature
from invariance.core._groups import Group
from invariance.measures._registry import measure
from invariance.measures.shared._laws import DIAGONAL_GROUPS, trace_law

hessian_trace = measure(
    # A sign flip and a permutation conjugate H by a signed permutation; a logit shift is a
    # translation in parameters that leaves L(theta + s) = L(theta) for all theta.
    invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP, Group.LOGIT_SHIFT],
    # H -> D^-1 H D^-1. A folded BatchNorm's own parameters leave the sum.
    law=dict.fromkeys(DIAGONAL_GROUPS, trace_law),
    fields={"x": "x_train", "y": "y_train"},
    streams=True,
)(curvature.hessian_trace)
