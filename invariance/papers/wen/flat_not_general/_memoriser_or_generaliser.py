"""Memoriser against generaliser, through every measure of the registry.

Both networks interpolate, both attain the least trace; one is right on no unseen point, the
other on all. A measure that is to predict generalisation has to tell them apart, and in the
right order.

Measures with a loss are taken at the paper's own, the mean squared error of one output, where
both networks are minima. Measures that need classes (weakness, margins, the Fisher matrix of
class probabilities) are taken on the two logits ``(-f, f)``: the same decision, the same
features, no new parameter values.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invariance.core._errors import InvarianceError
from invariance.core._groups import Group
from invariance.measures._registry import Measure, all_measures, get_measure
from invariance.papers.wen.flat_not_general._constructions import construct, realise
from invariance.papers.wen.flat_not_general._problem import Problem

RankingVerdict = Literal["right way", "wrong way", "cannot tell", "depends", "does not apply"]

#: Measures of which more is said to be better; of the others, sharpness and norms, less is.
MORE_IS_BETTER = frozenset(
    {
        "activation_patterns",
        "extension_count",
        "free_parameters",
        "free_regions",
        "function_pair_proxy",
        "margin_pair_proxy",
        "pair_proxy",
        "path_norm_margin",
        "region_class_weakness",
        "repaired_activation_patterns",
        "repaired_free_regions",
        "repaired_pair_proxy",
        "volume_weakness",
        "volume_weakness_raw",
    }
)

#: Measures that climb the gradient, which is zero at both networks: round-off decides.
NEEDS_GRADIENT = frozenset(
    {
        "adaptive_sharpness",
        "adaptive_worst_case_sharpness",
        "sam_sharpness",
        "worst_case_sharpness",
    }
)

#: Unseen points of the exhaustive count; of all others the whole test set or its start.
EXTENSION_POINTS = 6

#: Relative difference below which two exact values are one.
SAME = 1e-6


@dataclass(frozen=True)
class RankingRow:
    """One measure of both networks.

    Attributes:
        measure: Its name.
        reading: ``"f"`` for the one output with squared loss, ``"(-f, f)"`` for two logits,
            ``"weights"`` for a function of the parameters.
        invariant: Whether it is declared invariant under neuron scaling, so that no rescaling
            of either network can change the comparison.
        memoriser: Its value there; ``None`` if it does not apply.
        generaliser: Its value there.
        verdict: Whether it tells them apart, and which way; ``"depends"`` if that is not the
            same for every memoriser of the family.
        note: Why it does not apply.
    """

    measure: str
    reading: str
    invariant: bool
    memoriser: float | None
    generaliser: float | None
    verdict: RankingVerdict
    note: str = ""
    least_slope: float | None = None


def contest(
    data: Problem,
    *,
    output_bias: bool,
    n_unseen: int = 100,
    names: Iterable[str] | None = None,
) -> list[RankingRow]:
    """Measure memoriser and generaliser, both of width n with a hidden bias.

    The memoriser is a family: each unit is 1 at its own point with any slope that is steep
    enough to be 0 at all others. Function and test accuracy differ along it, the trace does
    not. A verdict has to hold at slope 1, which the paper writes down, and at the least one.

    Args:
        data: The training set that both interpolate, and unseen points.
        output_bias: Whether the output layer has a bias (of value 0).
        n_unseen: Unseen points for the counts.
        names: Measures; all of the registry by default.

    Returns:
        A row for each measure.
    """
    pair = [network(kind, data, output_bias=output_bias) for kind in ("memoriser", "generaliser")]
    pair.append(least_slope(pair[0], data))
    rows = []
    for name in all_measures() if names is None else names:
        measure = get_measure(name)
        reading = reading_of(measure)
        invariant = Group.NEURON_SCALING in measure.invariant_under
        if name in NEEDS_GRADIENT:
            reason = "It climbs the gradient, which is zero at an interpolating network."
            rows.append(RankingRow(name, reading, invariant, None, None, "does not apply", reason))
            continue
        inputs = _inputs(measure, data, reading, n_unseen)
        try:
            found = [measure(two_logits(m) if reading == "(-f, f)" else m, **inputs) for m in pair]
        except InvarianceError as error:
            reason = str(error).splitlines()[0]
            rows.append(RankingRow(name, reading, invariant, None, None, "does not apply", reason))
            continue
        values = [float(one) for one in found]
        noise = math.hypot(*(one.stderr or 0.0 for one in found))
        memoriser, generaliser, least = values
        verdict, other = (judge(name, value, generaliser, noise) for value in (memoriser, least))
        if verdict != other:
            verdict = "depends"
        rows.append(
            RankingRow(name, reading, invariant, memoriser, generaliser, verdict, least_slope=least)
        )
    return rows


def least_slope(memoriser: nn.Module, data: Problem) -> nn.Module:
    """Return the memoriser whose units are as gentle as they can be.

    Unit i is ``s_i + k_i W_i (x - x_i)``: 1 (times its scale) at its own training point, and
    0 at every other as soon as ``k_i W_i (x_i - x_j) >= s_i``.
    """
    gentle = deepcopy(memoriser)
    hidden = next(layer for layer in gentle.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        levels = data.x_train @ hidden.weight.T + hidden.bias  # (n, h)
        own = levels.argmax(dim=0)
        height = levels.gather(0, own[None])[0]
        gaps = (height - levels).scatter(0, own[None], math.inf)
        slope = (1 + 1e-9) * height / gaps.min(dim=0).values
        at_own = (data.x_train @ hidden.weight.T).gather(0, own[None])[0]
        hidden.bias.copy_(height - slope * at_own)
        hidden.weight.mul_(slope[:, None])
    return gentle


def judge(name: str, memoriser: float, generaliser: float, noise: float = 0.0) -> RankingVerdict:
    """Say which way a measure orders the two networks."""
    scale = max(abs(memoriser), abs(generaliser))
    if not abs(memoriser - generaliser) > max(SAME * scale, 3 * noise, 1e-12):
        return "cannot tell"
    prefers_generaliser = (generaliser > memoriser) == (name in MORE_IS_BETTER)
    return "right way" if prefers_generaliser else "wrong way"


def network(
    kind: Literal["memoriser", "generaliser"], data: Problem, *, output_bias: bool
) -> nn.Module:
    """Build one of the two networks at width n, for one output."""
    made = construct(kind, data.x_train, data.y_train, architecture="plain", bias=True)
    model = realise(made, data.x_train, width=len(data.x_train))
    return _with_output_bias(model) if output_bias else model


def _with_output_bias(model: nn.Module) -> nn.Module:
    old = model.get_submodule("output")
    assert isinstance(old, nn.Linear)
    new = nn.Linear(old.in_features, old.out_features, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(old.weight)
        new.bias.zero_()
    changed = deepcopy(model)
    changed.register_module("output", new)
    return changed.eval()


def two_logits(model: nn.Module) -> nn.Module:
    """Return the network with the logits ``(-f, f)`` of the classes y = -1 and y = 1."""
    old = model.get_submodule("output")
    assert isinstance(old, nn.Linear)
    new = nn.Linear(old.in_features, 2, bias=old.bias is not None, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(torch.cat([-old.weight, old.weight]))
        if old.bias is not None:
            new.bias.copy_(torch.cat([-old.bias, old.bias]))
    changed = deepcopy(model)
    changed.register_module("output", new)
    return changed.eval()


def reading_of(measure: Measure) -> str:
    """Say on what a measure is taken; see :class:`RankingRow`."""
    if not measure.fields:
        return "weights"
    return "f" if "loss" in inspect.signature(measure.function).parameters else "(-f, f)"


def _inputs(measure: Measure, data: Problem, reading: str, n_unseen: int) -> dict[str, Any]:
    classes = (data.y_train > 0).long()
    unseen = EXTENSION_POINTS if measure.name == "extension_count" else n_unseen
    targets: Tensor = data.y_train[:, None] if reading == "f" else classes
    values = {
        "x_train": data.x_train,
        "y_train": targets,
        "x_test": data.x_test,
        "x_unseen": data.x_test[:unseen],
    }
    inputs: dict[str, Any] = {name: values[source] for name, source in measure.fields.items()}
    if reading == "f":
        inputs["loss"] = "mse"
    return inputs
