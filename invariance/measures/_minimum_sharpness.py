"""Minimum sharpness: the least Hessian trace on the orbit of rescaled networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._modules import require_deterministic
from invariance.core._perceptron import (
    Dense,
    Norm,
    Slope,
    Step,
    fold_norms,
    qualified,
    read_perceptron,
)
from invariance.curvature._batches import collect_batches
from invariance.curvature._trace_diagonal import (
    DEFAULT_MAX_PRODUCTS,
    exact_parameters,
    hessian_diagonal,
)
from invariance.curvature.exact._mlp import sweep_perceptrons
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, Wants
from invariance.curvature.losses._resolve import Loss, LossLike, loss_on
from invariance.measures._registry import measure
from invariance.measures.shared._folded_weights import folded_model
from invariance.symmetry.balance._scalings import ScalingDesign, ScalingLeg, minimise_over_scalings

#: What holds for either group of scalings. BatchNorm is folded before anything else.
_ALWAYS = (
    Group.LAYER_SCALING,
    Group.PERMUTATION,
    Group.SIGN_FLIP,
    Group.LOGIT_SHIFT,
    Group.BATCHNORM_FOLD,
    Group.BATCHNORM_SCALING,
)


@measure(
    # Declared for group="neuron". The copies of a split unit share its optimum, and a dormant
    # unit's curvature can be scaled away: the infimum ignores it.
    invariant_under=[*_ALWAYS, Group.NEURON_SCALING, Group.UNIT_SPLIT, Group.DORMANT_UNITS],
)
def minimum_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    group: Literal["layer", "neuron"] = "neuron",
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Least Hessian trace over all positive rescalings that keep the function.

    Ibayashi, Hamaguchi & Imaizumi (2021), "Minimum sharpness: scale-invariant
    parameter-robustness of neural networks", with their layer scalings or with one scale
    for every hidden unit. Scaling by ``exp(D u)`` takes ``H_ii`` to
    ``H_ii exp(-2 (D u)_i)``, so the trace is convex in the log-scales u. For a network of L
    layers without biases and ``group="layer"`` the value is ``L (prod_l Tr H_l)^(1/L)``.
    Eval-mode BatchNorm is folded first.

    Args:
        model: A network with positively homogeneous activations, in eval mode.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        group: ``"neuron"``: one scale a hidden unit; ``"layer"``: one a hidden layer.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The infimum; ``detail`` has the log-scales and whether it is attained.

    Raises:
        MeasureError: An unknown group, or a network without such scalings.

    Example:
        ``2 sum_j sqrt(Tr_in,j Tr_out,j)``: both hidden units have 2 coming in and 1/2 going out:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0])
        >>> round(float(inv.measures.hessian_trace(model, x, y)), 9)
        5.0
        >>> round(float(minimum_sharpness(model, x, y)), 9)
        4.0
    """
    if group not in ("layer", "neuron"):
        raise MeasureError(f"group must be 'layer' or 'neuron'. Got {group!r}.")
    batches = collect_batches(x, y)
    require_deterministic(model)
    resolved = loss_on(loss, batches, model)
    parsed = read_perceptron(model)
    if parsed is not None and isinstance(x, Tensor) and x.ndim == 2:
        steps = homogeneous_steps(parsed)
        sums = sweep_perceptrons(
            steps, batches, batches.rows, resolved, Wants(diagonal=True), memory_budget
        )
        diagonal = dict(reversed(sums.mean_diagonals().items()))
        design = mlp_design(steps, group)
    else:
        diagonal, design = _general(model, x, y, resolved, group, memory_budget)
    return least_trace(diagonal, design, group, resolved.name)


def least_trace(
    diagonal: Mapping[str, Tensor], design: ScalingDesign, group: str, loss_name: str
) -> Estimate:
    """Minimise the trace of an exact diagonal over the scalings of ``design``."""
    result = minimise_over_scalings(diagonal, design)
    return Estimate(
        result.value,
        method=f"exact diagonal, convex minimum over {group} scalings ({loss_name})",
        residual=result.residual,
        iterations=result.iterations,
        converged=result.converged,
        detail={
            "attained": result.attained,
            "trace": sum(float(part.cpu().double().sum()) for part in diagonal.values()),
            "log_scales": result.log_scales,
        },
    )


@measure(invariant_under=_ALWAYS)
def layer_minimum_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Least Hessian trace over layer scalings: ``minimum_sharpness(group="layer")``.

    Args:
        model: A network with positively homogeneous activations, in eval mode.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The infimum.

    Example:
        ``L (prod_l Tr H_l)^(1/L)`` without biases; the layers' traces are 4 and 1:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0])
        >>> round(float(layer_minimum_sharpness(model, x, y)), 9)
        4.0
    """
    return minimum_sharpness(model, x, y, group="layer", loss=loss, memory_budget=memory_budget)


def homogeneous_steps(parsed: Sequence[Step]) -> tuple[Step, ...]:
    """Fold BatchNorm, and refuse activations that no positive factor passes through."""
    for step in parsed:
        if isinstance(step, Slope) and not step.activation.homogeneous:
            raise MeasureError(
                f"Activation {step.name!r} ({type(step.module).__name__}) is not positively "
                "homogeneous, so no rescaling passes through it. Minimum sharpness needs ReLU, "
                "LeakyReLU or linear layers."
            )
    return fold_norms(parsed)


def _general(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, group: str, memory_budget: int
) -> tuple[dict[str, Tensor], ScalingDesign]:
    """Read the scalings off the network's graph: convolutions, skips, any module."""
    folded = folded_model(model, x[:2])
    (design,) = graph_designs(folded, x[:2], [group])
    names = [name for name, _ in folded.named_parameters()]
    _, estimated = exact_parameters(folded, x, y, loss=loss, parameters=names)
    if estimated:  # told before any curvature is computed
        raise MeasureError(
            "Minimum sharpness needs an exact diagonal of the Hessian, and here that of "
            f"{', '.join(map(repr, estimated[:3]))}{' and others' if len(estimated) > 3 else ''} "
            "can only be estimated: behind these the network is not piecewise linear. Use ReLU, "
            "LeakyReLU or linear layers behind every weight, or a network in which such weights "
            f"have at most {DEFAULT_MAX_PRODUCTS:,} entries together."
        )
    found = hessian_diagonal(folded, x, y, loss=loss, parameters=names, memory_budget=memory_budget)
    return dict(found.values), design


def graph_designs(folded: nn.Module, example: Tensor, groups: Sequence[str]) -> list[ScalingDesign]:
    """Read the scalings of each group off a network's graph, which is analysed once.

    Shapes: ``example (n, ...)``.
    """
    from invariance.symmetry.analysis._symmetries import symmetries
    from invariance.symmetry.balance._canonical import scaling_design

    found = symmetries(folded, example)
    designs = [scaling_design(found, per_unit=group == "neuron")[0] for group in groups]
    if not all(design.units for design in designs):
        raise MeasureError(
            "This network admits no positive rescaling: its activations are not positively "
            "homogeneous, or no unit lies between two weights."
        )
    return designs


def mlp_design(steps: Sequence[Step], group: str) -> ScalingDesign:
    """Describe which log-scale moves which parameter of an MLP, and in which direction."""
    legs: list[ScalingLeg] = []
    units = 0
    before: Dense | None = None
    passes = True
    for step in steps:
        if isinstance(step, Norm):  # one that could not be folded pins its input's scale
            passes = False
        elif isinstance(step, Dense):
            if before is not None and passes:
                width = before.weight.shape[0]
                index = (
                    torch.arange(units, units + width)
                    if group == "neuron"
                    else torch.full((1,), units)
                )
                units += len(index)
                legs.append(ScalingLeg(qualified(before.name, "weight"), index[:, None], 1))
                if before.bias is not None:
                    legs.append(ScalingLeg(qualified(before.name, "bias"), index, 1))
                legs.append(ScalingLeg(qualified(step.name, "weight"), index[None, :], -1))
            before, passes = step, True
    return ScalingDesign(units, tuple(legs))
