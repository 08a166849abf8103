"""Trace of the Hessian in units of each parameter: ``sum_i theta_i^2 H_ii``."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_module
from invariance.curvature._trace_diagonal import DEFAULT_PROBES, DEFAULT_RTOL, as_sampling
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike
from invariance.curvature.products._scaled import scaled_trace
from invariance.measures._registry import measure
from invariance.measures.shared._laws import adaptive_trace_law


@measure(
    # theta -> D theta takes H_ii to H_ii / D_i^2. A dormant unit adds entries that are zero
    # (outgoing) or have no influence (incoming).
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
        Group.DORMANT_UNITS,
    ],
    # Here parameters and diagonal do not move inversely, but both are known.
    law=dict.fromkeys(
        (Group.LOGIT_SHIFT, Group.BATCHNORM_FOLD, Group.UNIT_SPLIT), adaptive_trace_law
    ),
    streams=True,
)
def adaptive_trace(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    method: Literal["auto", "sampled"] = "auto",
    rtol: float = DEFAULT_RTOL,
    budget: int = DEFAULT_PROBES,
    seed: int = 0,
) -> Estimate:
    """Sum over all parameters of ``theta_i^2 H_ii``, the scale-free trace of the Hessian.

    The average-case elementwise adaptive sharpness (Kwon et al. 2021, ASAM) to second order,
    without the usual ``eta > 0`` added to ``|theta|``, which would break its invariance. Where
    the diagonal is not exact (see :func:`~invariance.measures.hessian_trace`), it is estimated
    as the trace of ``D H D`` with D the parameters: no rescaling moves that matrix, so none
    moves the estimate.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.
        method: ``"auto"``, or ``"sampled"``: from a few random cotangents a row, with a standard
            error (see :func:`~invariance.measures.hessian_trace`).
        rtol: For ``"sampled"``: the relative standard error to reach.
        budget: For ``"sampled"``: most draws a row.
        seed: Seed of the draws.

    Returns:
        The sum; ``parts`` holds each parameter tensor's share.

    Example:
        All ``|theta_i|`` are 1, so it is the plain trace, ``|x|^2 / 2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(adaptive_trace(model, x, y)), 9)
        2.0
    """
    scales = {name: value.detach() for name, value in require_module(model).named_parameters()}
    return scaled_trace(
        model,
        x,
        y,
        scales=scales,
        loss=loss,
        memory_budget=memory_budget,
        sampling=as_sampling(method, rtol, budget, seed, memory_budget),
    )
