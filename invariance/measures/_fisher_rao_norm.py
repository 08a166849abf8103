"""Fisher-Rao norm (Liang et al. 2019), by its definition and by its closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._groups import Group
from invariance.core._modules import require_deterministic, weight_layers
from invariance.curvature._batches import check_budget, collect_batches
from invariance.curvature.exact._directional import directional_chunks, frozen_state, move_like
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike, loss_on
from invariance.curvature.products._parameter_space import select_parameters
from invariance.measures._registry import measure


@measure(
    # Every map theta' = T theta, T linear, that keeps the function for all theta keeps
    # directional derivatives along theta: scalings, permutations, signs, mixing, splitting.
    # A logit shift changes them by multiples of 1, which the Fisher of the softmax ignores.
    # BatchNorm folding is bilinear in the parameters: its derivatives along theta differ.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LINEAR_MIXING,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_SCALING,
        Group.UNIT_SPLIT,
        Group.DORMANT_UNITS,
    ],
    streams=True,
)
def fisher_rao_norm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    parameters: Iterable[str] | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Fisher-Rao norm ``theta^T F theta``, by its definition.

    Liang, Poggio, Rakhlin & Stokes (2019), "Fisher-Rao metric, geometry, and complexity of
    neural networks" (who call the square root the norm). F is the Fisher
    information of the model's own predictive distribution, averaged over the rows, which
    for cross-entropy and the squared error is the Gauss-Newton matrix. With
    ``u = J theta``, the derivative of the logits along theta, it is ``mean u^T S u``: one
    forward-mode pass. Labels matter only through weights and ignored rows.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: Cross-entropy, mean squared error, or another of torch's likelihoods; others have
            no Fisher information.
        parameters: Names of parameters or modules to cover; all trainable ones by default.
        memory_budget: Bytes for temporaries.

    Returns:
        ``theta^T F theta`` (not its square root) over these parameters.

    Raises:
        MeasureError: A custom loss.

    Example:
        ``p = (3/4, 1/4)``; it is the variance of the logits under ``p``, ``3/16 ln(3)^2``:

        >>> import torch
        >>> import invariance as inv
        >>> import math
        >>> model = inv.models.from_weights([[[math.log(3)], [0.0]]])
        >>> x, y = torch.ones(1, 1).double(), torch.tensor([0])
        >>> abs(float(fisher_rao_norm(model, x, y)) - 3 / 16 * math.log(3) ** 2) < 1e-12
        True
    """
    batches = collect_batches(x, y)
    resolved = loss_on(loss, batches, model)
    require_deterministic(model)
    check_budget(memory_budget)
    state = frozen_state(model)
    theta = {name: state[name] for name in select_parameters(model, parameters).names}
    total, mass = 0.0, 0.0
    for f, u, labels in directional_chunks(model, batches, None, theta, resolved, memory_budget):
        root = resolved.fisher_root(f, labels)
        total += float((root.mT @ u.unsqueeze(-1)).square().sum().cpu().double())
        mass += float(resolved.masses(f, labels).sum())
    if mass <= 0:
        raise DataError("No row counts: every label is ignored or has class weight 0.")
    return Estimate(total / mass, method=f"exact, forward mode along theta ({resolved.name})")


@measure(
    invariant_under=set(Group), streams=True
)  # a function of the logits, blind to multiples of 1
def fisher_rao_closed_form(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    kind: str = "model",
) -> Estimate:
    """Closed form ``L^2 E <dl/df, f>^2`` of Liang et al. (2019).

    L is the number of WEIGHT layers. It is a function of the logits alone, so every
    function-preserving map keeps it. It equals :func:`fisher_rao_norm` only for
    networks without biases, BatchNorm and skip connections, where ``J theta = L f``;
    elsewhere it is another quantity.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: Cross-entropy or mean squared error.
        kind: ``"model"``: the expectation is over labels drawn from the model (the Fisher
            norm); ``"empirical"``: over the labels given.

    Returns:
        The closed form.

    Raises:
        MeasureError: A custom loss with ``kind="model"``, or an unknown kind.

    Example:
        With one layer and no bias it equals the definition, here ``3/16 ln(3)^2``:

        >>> import torch
        >>> import invariance as inv
        >>> import math
        >>> model = inv.models.from_weights([[[math.log(3)], [0.0]]])
        >>> x, y = torch.ones(1, 1).double(), torch.tensor([0])
        >>> abs(float(fisher_rao_closed_form(model, x, y)) - 3 / 16 * math.log(3) ** 2) < 1e-12
        True
    """
    if kind not in ("model", "empirical"):
        raise MeasureError(f"kind must be 'model' or 'empirical'. Got {kind!r}.")
    batches = collect_batches(x, y)
    resolved = loss_on(loss, batches, model)
    require_deterministic(model)
    layers = len(weight_layers(model))
    like = next(iter(model.parameters()))
    total, mass = 0.0, 0.0
    with torch.no_grad():
        for bx, by in batches:
            with reading(model, bx):
                f = run(model, move_like(bx, like))
            labels = by.to(f.device)
            resolved.check(f, labels)
            if kind == "model":
                root = resolved.fisher_root(f, labels)
                rows = (root.mT @ f.unsqueeze(-1)).square()
            else:
                rows = (resolved.gradients(f, labels) * f).sum(-1).square()
            total += float(rows.sum().cpu().double())
            mass += float(resolved.masses(f, labels).sum())
    if not math.isfinite(total) or mass <= 0:
        raise DataError("No row counts: every label is ignored or has class weight 0.")
    return Estimate(layers**2 * total / mass, method=f"closed form, {layers} weight layers, {kind}")
