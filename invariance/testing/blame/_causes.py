"""Which parameters are to blame: the same map on a network without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

import invariance.transforms as T
from invariance.cells import BrokenTransformError, Cell, CellEngine, MappedNetwork
from invariance.core._errors import InvarianceError
from invariance.core._modules import BATCH_NORMS, WEIGHT_LAYERS, clone
from invariance.transforms._base import Transform

#: A remover returns a copy of the network without some parameters, or None if it has none.
Remover = Callable[[nn.Module, torch.Tensor], nn.Module | None]


def without_biases(model: nn.Module, example: torch.Tensor) -> nn.Module | None:
    """Return a copy whose linear and convolutional layers have no bias."""
    copied = clone(model)
    found = False
    for module in copied.modules():
        if isinstance(module, WEIGHT_LAYERS) and module.bias is not None:
            module.bias = None
            found = True
    return copied if found else None


def without_batch_norm(model: nn.Module, example: torch.Tensor) -> nn.Module | None:
    """Return a copy whose BatchNorms are folded into the layers before them."""
    if not any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return None
    folded: nn.Module = T.FoldBatchNorm()(model, example)
    return folded


REMOVERS: tuple[tuple[str, str, Remover], ...] = (
    (
        "biases",
        "only the biases are to blame: on the same network without them the value does not move. "
        "A bias scales with its layer; weight it (or normalise it) like the weights",
        without_biases,
    ),
    (
        "BatchNorm parameters",
        "only BatchNorm parameters are to blame: with every BatchNorm folded into the layer "
        "before it the value does not move. Count gamma and beta like a weight and a bias, or "
        "fold first",
        without_batch_norm,
    ),
)


def blame(engine: CellEngine, candidates: list[Transform]) -> tuple[str, str] | None:
    """Find a kind of parameter without which the claim holds."""
    for kind, verdict, remove in REMOVERS:
        try:
            reduced = remove(engine.model, engine.example)
            if reduced is None:
                continue
            other = CellEngine(
                engine.measure,
                MappedNetwork(reduced, engine.example),
                engine.inputs,
                replace(engine.policy, zero=0.0, allow_constant=True),
            )
            cells = list(_applicable(other, candidates))
        except (InvarianceError, RuntimeError, ValueError, AttributeError, TypeError, KeyError):
            continue  # the measure cannot do without them, so they cannot be blamed alone
        if cells and not any(cell.moved for cell in cells):
            return kind, verdict
    return None


def _applicable(engine: CellEngine, candidates: list[Transform]) -> Iterator[Cell]:
    for transform in candidates:
        try:
            yield engine.cell(transform)
        except BrokenTransformError:
            raise
        except InvarianceError:
            continue
