"""The slow truth: dense float64 Hessians by autograd, written from the definitions."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call, grad, jacrev


def dense_blocks(model, x, y, loss):
    """The whole Hessian of ``loss(model(x), y)``, as ``{(name, name): block matrix}``."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def objective(flat):
        parts = {
            name: part.view_as(parameters[name])
            for name, part in zip(parameters, flat.split(sizes), strict=True)
        }
        return loss(functional_call(model, parts, (x,)), y)

    flat = torch.cat([p.flatten() for p in parameters.values()])
    full = jacrev(grad(objective))(flat)
    rows = dict(zip(parameters, full.split(sizes, 0), strict=True))
    return {
        (a, b): block
        for a, strip in rows.items()
        for b, block in zip(parameters, strip.split(sizes, 1), strict=True)
    }


def dense_matrix(model, x, y, loss):
    """The whole Hessian as one matrix in the order of ``named_parameters``."""
    blocks = dense_blocks(model, x, y, loss)
    names = [name for name, _ in model.named_parameters()]
    return torch.cat([torch.cat([blocks[a, b] for b in names], 1) for a in names])


def dense_relative_flatness(module: nn.Module, block: torch.Tensor) -> float:
    """Petzka et al. 2021 from the weight's Hessian block; filters as rows."""
    weight = module.weight.detach()
    groups = getattr(module, "groups", 1)
    out = weight.shape[0]
    rows = weight.reshape(out, -1)
    tensor = block.view(out, rows.shape[1], out, rows.shape[1])
    total = 0.0
    for s in range(out):
        for t in range(out):
            if s // (out // groups) == t // (out // groups):
                total += float(rows[s] @ rows[t]) * float(tensor[s, :, t, :].trace())
    return total
