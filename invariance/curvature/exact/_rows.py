"""Blocks without a tap: the gradient of every row, formed and squared.

For any parameter in which the network is piecewise linear, its Hessian block is
``mean_n sum_r g_nr g_nr^T`` with ``g_nr`` the gradient of ``<root column r, f(x_n)>``. A
parameter that is used several times in parallel has its uses summed inside the square here,
because the gradient is taken in the parameter itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from invariance.core._forward import run
from invariance.curvature.exact._collector import Collector
from invariance.curvature.exact._result import Wants
from invariance.curvature.losses._resolve import HessianFactor


def sweep_rows(
    model: nn.Module,
    state: Mapping[str, Tensor],
    names: Iterable[str],
    x: Tensor,
    factor: HessianFactor,
    wants: Wants,
) -> Collector:
    """Form the rows' gradients in the parameters ``names`` for every cotangent.

    Shapes: ``x (n, ...)``.
    """
    chosen = {name: state[name].detach() for name in names}
    rest = {name: value.detach() for name, value in state.items() if name not in chosen}

    def projected(moved: dict[str, Tensor], row: Tensor, cotangent: Tensor) -> Tensor:
        outputs = run(model, row.unsqueeze(0), {**rest, **moved})
        return (outputs[0] * cotangent).sum()

    gradients = vmap(grad(projected), in_dims=(None, 0, 0), randomness="error")
    found = Collector(wants, factor.root.shape[-1], factor.samples)
    for r in range(factor.root.shape[-1]):
        found.next_column()
        signs = None if factor.signs is None else factor.signs[:, r]
        for name, value in gradients(chosen, x, factor.root[..., r]).items():
            squares = value.square()
            found.add("trace", name, squares.flatten(1).sum(1), signs)
            found.add_entries(name, squares, signs)
            layer, _, leaf = name.rpartition(".")
            if wants.relative_flatness and leaf == "weight" and chosen[name].ndim > 1:
                energy = _flatness(model.get_submodule(layer), chosen[name], value)
                found.add("kappa", layer, energy, signs)
    return found


def _flatness(module: nn.Module, weight: Tensor, gradient: Tensor) -> Tensor:
    """Return ``|W^T G|^2`` of each row, group by group."""
    groups = int(getattr(module, "groups", 1))
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    carried = rows.mT @ gradient.reshape(gradient.shape[0], *rows.shape)
    return carried.flatten(1).square().sum(1)


def rows_bytes(state: Mapping[str, Tensor], names: Iterable[str]) -> int:
    """Return the bytes that :func:`sweep_rows` needs a row for the gradients themselves."""
    return 3 * sum(state[name].nbytes for name in names)


def check_rows_independent(one: Tensor, many: Tensor) -> bool:
    """Whether a row's outputs are the same alone and among others, up to round-off."""
    scale = float(many.abs().max())
    slack = torch.finfo(many.dtype).eps ** 0.5 * max(scale, torch.finfo(many.dtype).tiny)
    return bool((one - many).abs().max() <= slack)
