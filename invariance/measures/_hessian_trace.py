"""Trace of the Hessian: the plainest sharpness, and the one that scalings inflate at will."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.curvature import _trace_diagonal
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._laws import DIAGONAL_GROUPS, trace_law


@measure(
    # A sign flip and a permutation conjugate H by a signed permutation; a logit shift is a
    # translation in parameters that leaves L(theta + s) = L(theta) for all theta.
    invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP, Group.LOGIT_SHIFT],
    # H -> D^-1 H D^-1. A folded BatchNorm's own parameters leave the sum.
    law=dict.fromkeys(DIAGONAL_GROUPS, trace_law),
    streams=True,
)
def hessian_trace(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Trace of the Hessian of the mean loss.

    Exact for piecewise-linear networks and for perceptrons with smooth activations. It depends
    on how the function is parameterised: along one layer-scaling axis it is
    ``A / a^2 + C + B a^2``.

    A convolutional network or a transformer with smooth activations (GELU, SiLU, tanh) is exact
    in the parameter tensors behind its last curved operation, and in all others if they have at
    most 1,024 entries together (one Hessian-vector product an entry). Larger ones are estimated,
    and ``exact``, ``stderr`` and ``method`` say so: the recursion for second derivatives would
    carry, for every row, a matrix over all entries of a feature map.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The trace; ``parts`` holds the trace of every parameter's diagonal block.

    Example:
        Equal logits, so ``p = (1/2, 1/2)``, and ``S = diag(p) - p p^T`` has trace and top
        eigenvalue 1/2; ``Tr H = |x|^2 Tr S``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(hessian_trace(model, x, y)), 9)
        2.0
    """
    return _trace_diagonal.hessian_trace(model, x, y, loss=loss, memory_budget=memory_budget)
