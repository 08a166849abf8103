"""What shares a sweep, in one call: trace, diagonal, flatness of every layer, least sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._intake import takes_any
from invariance.core._modules import BATCH_NORMS, weight_layers
from invariance.curvature._batches import check_budget, collect_batches
from invariance.curvature._trace_diagonal import (
    DEFAULT_MAX_PRODUCTS,
    Prepared,
    assembled,
    entries,
    prepare,
)
from invariance.curvature.estimates._diagonal import basis_diagonal
from invariance.curvature.exact._flatness import layer_relative_flatness
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET, DiagonalResult, Wants
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._minimum_sharpness import (
    graph_designs,
    homogeneous_steps,
    least_trace,
    minimum_sharpness,
    mlp_design,
)
from invariance.measures.shared._layer_choice import executed_layers


@dataclass(frozen=True)
class CurvatureProfile:
    """Exact curvature of one network, everything from one sweep.

    Attributes:
        trace: As :func:`~invariance.measures.hessian_trace` gives it.
        diagonal: As :func:`invariance.curvature.hessian_diagonal` gives it.
        relative_flatness: Of every weight layer, in the order of execution; ``parts`` by name.
        adaptive_trace: As :func:`~invariance.measures.adaptive_trace` gives it.
        layer_minimum_sharpness: Least trace over layer scalings; ``None`` where the network
            admits none.
        minimum_sharpness: Least trace over neuron scalings; ``None`` where it admits none.
        refused: Why there is no minimum sharpness, else empty.
    """

    trace: Estimate
    diagonal: DiagonalResult
    relative_flatness: Estimate
    adaptive_trace: Estimate
    layer_minimum_sharpness: Estimate | None
    minimum_sharpness: Estimate | None
    refused: str = ""

    def __repr__(self) -> str:
        flatness = ", ".join(
            f"{name} {value:.6g}" for name, value in self.relative_flatness.parts.items()
        )
        lines = [
            f"CurvatureProfile, {self.trace.method}",
            f"  trace              {float(self.trace):.6g}",
            f"  adaptive trace     {float(self.adaptive_trace):.6g}",
            f"  relative flatness  {flatness}",
        ]
        if self.layer_minimum_sharpness is None or self.minimum_sharpness is None:
            return "\n".join([*lines, f"  minimum sharpness  none: {self.refused}"])
        layer, neuron = float(self.layer_minimum_sharpness), float(self.minimum_sharpness)
        return "\n".join([*lines, f"  minimum sharpness  layer {layer:.6g}, neuron {neuron:.6g}"])


@takes_any(streams=False)
def curvature_profile(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    max_products: int = DEFAULT_MAX_PRODUCTS,
) -> CurvatureProfile:
    """Measure what shares a sweep of the exact diagonal blocks, at the price of that sweep.

    The values are those of the separate measures. A network with BatchNorm takes a second
    sweep, because minimum sharpness folds BatchNorm first.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs, or batches.
        y: Targets.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.
        max_products: Most Hessian-vector products to spend on parameters that no sweep covers.

    Returns:
        The profile; its ``repr`` has a few lines.

    Raises:
        MeasureError: The diagonal is not known exactly.

    Example:
        The layers' traces are 4 and 1, so the least is ``2 (4 1)^(1/2)``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0])
        >>> found = curvature_profile(model, x, y)
        >>> round(float(found.trace), 9), round(float(found.layer_minimum_sharpness), 9)
        (5.0, 4.0)
    """
    check_budget(memory_budget)
    batches = collect_batches(x, y)
    everything = [name for name, _ in model.named_parameters()]
    prepared = prepare(model, batches, None, loss, everything)
    swept, rest, why = prepared.split("auto")
    if entries(model, rest) > max_products:
        raise MeasureError(
            f"The exact diagonal needs {entries(model, rest)} Hessian-vector products{why}. Raise "
            f"max_products (now {max_products}), or call the measures one by one: hessian_trace "
            "and adaptive_trace estimate what is not exact."
        )
    values: dict[str, Tensor] = {}
    traces: dict[str, float] = {}
    kappas: dict[str, float] = {}
    words: list[str] = []
    gauss_newton = not rest
    if swept:
        wants = Wants(relative_flatness=True, diagonal=True)
        result = prepared.sweep(swept, wants, memory_budget)
        diagonals = result.sums.mean_diagonals()
        values |= {name: diagonals[name] for name in swept}
        traces |= {name: float(value) for name, value in result.sums.of("trace").items()}
        kappas |= {name: float(value) for name, value in result.sums.of("kappa").items()}
        gauss_newton = gauss_newton and result.gauss_newton
        words.append(result.method)
    if rest:
        values |= basis_diagonal(prepared.operator(rest))
        traces |= {name: float(values[name].cpu().double().sum()) for name in rest}
        words.append(f"{entries(model, rest)} exact Hessian-vector products{why}")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    state = {name: p.detach().cpu().double() for name, p in model.named_parameters()}
    adaptive = {n: float((state[n].square() * values[n].cpu().double()).sum()) for n in trained}
    least, refused = _least(prepared, {name: values[name] for name in everything}, memory_budget)
    return CurvatureProfile(
        trace=assembled(model, {name: traces[name] for name in trained}, 0.0, words),
        diagonal=DiagonalResult(
            {name: values[name] for name in trained},
            gauss_newton=gauss_newton,
            method=" + ".join(words),
        ),
        relative_flatness=_flatness(prepared, kappas, words, memory_budget, max_products),
        adaptive_trace=assembled(model, adaptive, 0.0, words),
        layer_minimum_sharpness=least.get("layer"),
        minimum_sharpness=least.get("neuron"),
        refused=refused,
    )


def _flatness(
    prepared: Prepared,
    kappas: dict[str, float],
    words: list[str],
    memory_budget: int,
    max_products: int,
) -> Estimate:
    """Every weight layer's relative flatness; layers that no sweep covers by products."""
    called = executed_layers(prepared.model, prepared.batches)
    layers = called + [name for name, _ in weight_layers(prepared.model) if name not in called]
    if missing := [layer for layer in layers if layer not in kappas]:
        kappas |= layer_relative_flatness(
            prepared.model,
            prepared.batches,
            layers=missing,
            loss=prepared.loss,
            memory_budget=memory_budget,
            max_products=max_products,
        ).parts
    return Estimate(
        [kappas[layer] for layer in layers],  # type: ignore[arg-type]
        method=" + ".join(words),
        parts={layer: kappas[layer] for layer in layers},
    )


def _least(
    prepared: Prepared, diagonal: dict[str, Tensor], memory_budget: int
) -> tuple[dict[str, Estimate], str]:
    """Minimum sharpness by group, or why there is none."""
    model, batches, loss = prepared.model, prepared.batches, prepared.loss
    groups: tuple[Literal["layer"], Literal["neuron"]] = ("layer", "neuron")
    try:
        if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
            x, y = batches.first()
            return {
                group: minimum_sharpness(
                    model, x, y, group=group, loss=loss, memory_budget=memory_budget
                )
                for group in groups
            }, ""
        if prepared.steps is not None:
            steps = homogeneous_steps(prepared.steps)
            designs = [mlp_design(steps, group) for group in groups]
        else:
            designs = graph_designs(model, batches.first()[0][:2], groups)
        return {
            group: least_trace(diagonal, design, group, loss.name)
            for group, design in zip(groups, designs, strict=True)
        }, ""
    except MeasureError as error:
        return {}, str(error)
