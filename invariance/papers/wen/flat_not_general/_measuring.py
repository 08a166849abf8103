"""What is measured on a trained network: sharpness, its least value, and what rescaling does."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from invariance.measures import minimum_sharpness, path_norm
from invariance.papers.wen.flat_not_general._networks import BatchNormalised
from invariance.papers.wen.flat_not_general._problem import Problem
from invariance.papers.wen.flat_not_general._sharpness import sharpness, stacked, with_bias
from invariance.papers.wen.flat_not_general._training import Recipe, summary
from invariance.transforms._random_rescaling import UNITS_RESCALED, rescaling_factors

#: How networks are rescaled at random, in words.
RESCALING = (
    f"{UNITS_RESCALED}; with the LayerNorm, whose floor bounds it from below, one factor or its "
    "reciprocal, the larger, for all"
)


def measured(model: nn.Module, data: Problem, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Measure one trained network."""
    found = summary(model, data)
    targets = {
        "test_accuracy": found["test_accuracy"],
        "generalization_gap": found["train_accuracy"] - found["test_accuracy"],
        "train_loss": found["train_loss"],
        "silent_share": found["silent"],
    }
    moved = rescaled(model, seed)
    with torch.no_grad():
        change = float((model(data.x_test) - moved(data.x_test)).abs().max())
    return {
        "targets": targets,
        "measures": _measures(model, data, recipe),
        "rescaled": _measures(moved, data, recipe),
        "output_change": change,
    }


def _measures(model: nn.Module, data: Problem, recipe: Recipe) -> dict[str, float | None]:
    found = sharpness(model, data.x_train, data.y_train)
    least = least_sharpness(model, data.x_train, found.outputs, recipe)
    hidden = model.get_submodule("hidden")
    assert isinstance(hidden, nn.Linear)
    plain = recipe.architecture == "plain"
    square = sum(float(p.detach().square().sum()) for p in model.parameters())
    return {
        "hessian_trace": found.trace,
        "gauss_newton_trace": found.gauss_newton,
        "excess_sharpness": found.gauss_newton / least if least > 0 else None,
        "minimum_sharpness": float(
            minimum_sharpness(model, data.x_train, data.y_train[:, None], loss="mse")
        )
        if plain
        else None,
        "path_norm": float(path_norm(model)) if plain else None,
        "parameter_norm": math.sqrt(square),
    }


def least_sharpness(model: nn.Module, x: Tensor, outputs: Tensor, recipe: Recipe) -> float:
    """Return what ``(2/n) sum |grad f|^2`` cannot fall below, given the network's outputs.

    The inequalities of `constructions` hold for the outputs that a network has, whether they
    are the labels or not: ``4 sqrt(F) mean |f|`` without normalisation, ``2 mean min(1, 2 sqrt(F)
    |f| / floor)`` with the simplified LayerNorm (2 unless an output is nearly 0), ``4 sum |a_j
    g_j|`` of the same network with BatchNorm.

    Shapes: ``x (n, d)``, ``outputs (n,)``.
    """
    hidden, output = model.get_submodule("hidden"), model.get_submodule("output")
    assert isinstance(hidden, nn.Linear)
    features = hidden.in_features + (hidden.bias is not None)
    if recipe.architecture == "plain":
        return 4 * math.sqrt(features) * float(outputs.abs().mean())
    if recipe.architecture == "layer":
        share = 2 * math.sqrt(features) * outputs.abs() / recipe.floor
        return 2 * float(share.clamp(max=1.0).mean())
    live = (with_bias(x, hidden) @ stacked(hidden).T > 0).any(0)
    readout = torch.as_tensor(output.weight).detach()[0]
    product = torch.as_tensor(model.scale).detach() * readout
    return 4 * float(product[live].abs().sum())


def rescaled(model: nn.Module, seed: int) -> nn.Module:
    """Return a network with the same function and other weights.

    Without normalisation unit j's incoming weights are multiplied by ``c_j`` and its outgoing one
    divided; with BatchNorm the incoming ones are multiplied, and nothing need be divided; with
    the LayerNorm the whole first layer is multiplied by one factor of at least 1, which leaves the
    function alone above the floor.
    """
    moved = deepcopy(model)
    hidden, output = moved.get_submodule("hidden"), moved.get_submodule("output")
    assert isinstance(hidden, nn.Linear)
    (drawn,) = rescaling_factors([hidden.out_features], seed)
    factors = torch.tensor(drawn, dtype=torch.float64)
    plain = not isinstance(moved, BatchNormalised) and "norm" not in dict(moved.named_children())
    if not plain and not isinstance(moved, BatchNormalised):
        ((shared, *_),) = rescaling_factors([hidden.out_features], seed, units=False)
        factors = torch.full_like(factors, max(shared, 1 / shared))
    with torch.no_grad():
        hidden.weight.mul_(factors[:, None])
        if hidden.bias is not None:
            hidden.bias.mul_(factors)
        if plain:
            torch.as_tensor(output.weight).div_(factors)
    return moved
