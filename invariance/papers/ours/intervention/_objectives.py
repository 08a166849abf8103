"""What is pushed at a fixed train loss: trace, minimum sharpness, openness, or nothing.

A network is a list of ``(weight, bias)`` pairs with ReLU between them. Its Hessian's diagonal
has a closed form wherever it is smooth (the Gauss-Newton one), so that it can be
differentiated in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = Sequence[tuple[Tensor, Tensor]]

#: Takes layers, training inputs, unseen inputs and a random vector of the parameters' length.
Objective = Callable[[Layers, Tensor, Tensor, Tensor], Tensor]

#: Rounds of coordinate descent over the units' scales: each solves its own unit exactly.
ROUNDS = 30


def logits_of(layers: Layers, x: Tensor) -> Tensor:
    """Return ``(n, K)`` logits."""
    for weight, bias in layers[:-1]:
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, *layers[-1])


def diagonals(layers: Layers, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the Hessian's diagonal of the mean cross-entropy, shaped as the layers.

    Per point, a layer ``z = W a + b`` has ``a_i^2 (J^T S J)_jj`` for ``W_ji`` and
    ``(J^T S J)_jj`` for ``b_j``, with ``J = df/dz`` and ``S = diag(p) - p p^T``.
    """
    inputs, signs = [x], []
    for weight, bias in layers[:-1]:
        z = F.linear(inputs[-1], weight, bias)
        signs.append((z > 0).to(z))
        inputs.append(F.relu(z))
    p = F.linear(inputs[-1], *layers[-1]).softmax(dim=1)
    jacobian = torch.eye(p.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    found = []
    for place in reversed(range(len(layers))):
        mean = torch.einsum("nk,nkj->nj", p, jacobian)
        h = torch.einsum("nk,nkj->nj", p, jacobian**2) - mean**2  # (n, h)
        found.append((h.T @ inputs[place] ** 2 / len(x), h.mean(dim=0)))
        if place:
            jacobian = (jacobian @ layers[place][0]) * signs[place - 1][:, None, :]
    return found[::-1]


def trace(layers: Layers, x: Tensor, unseen: Tensor, v: Tensor) -> Tensor:
    """Return log Tr H."""
    return torch.stack([a.sum() + b.sum() for a, b in diagonals(layers, x)]).sum().log()


def minimum(layers: Layers, x: Tensor, unseen: Tensor, v: Tensor) -> Tensor:
    """Return the log of the least trace over rescalings of single units.

    At the best scales their own derivative is zero, so they are held fixed in ours.
    """
    found = diagonals(layers, x)
    scales = best_scales([(a.detach(), b.detach()) for a, b in found])
    total = torch.zeros((), dtype=x.dtype)
    for place, (weight, bias) in enumerate(found):
        # Unit j of this layer is multiplied by exp(u_j), its curvature by exp(-2 u_j).
        rows = torch.exp(-2 * scales[place + 1])
        columns = torch.exp(2 * scales[place])
        total = total + (rows[:, None] * weight * columns).sum() + (rows * bias).sum()
    return total.log()


def best_scales(found: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return log-scales of inputs, of each hidden layer's units, and of outputs (0 at the ends)."""
    scales = [torch.zeros(found[0][0].shape[1]).to(found[0][0])]
    scales += [torch.zeros_like(bias) for _, bias in found]
    tiny = torch.finfo(scales[0].dtype).tiny
    for _ in range(ROUNDS):
        for place in range(1, len(found)):
            weight, bias = found[place - 1]
            incoming = weight @ torch.exp(2 * scales[place - 1]) + bias
            outgoing = torch.exp(-2 * scales[place + 1]) @ found[place][0]
            alive = (incoming > tiny) & (outgoing > tiny)
            ratio = torch.where(alive, incoming / outgoing.clamp_min(tiny), 1.0)
            scales[place] = ratio.log() / 4
    return scales


def closed(layers: Layers, x: Tensor, unseen: Tensor, v: Tensor) -> Tensor:
    """Return how settled unseen points are: the mean gap of every class to the first one.

    In units of the training points' logits; its opposite stands in for the pair proxy, which
    counts the classes that an unseen point could still be given with a margin.
    """
    f = logits_of(layers, x)
    scale = (f - f.mean(dim=1, keepdim=True)).square().sum(dim=1).mean().sqrt()
    g = logits_of(layers, unseen)
    return (g.max(dim=1, keepdim=True).values - g).mean() / scale


def sham(layers: Layers, x: Tensor, unseen: Tensor, v: Tensor) -> Tensor:
    """Return a linear function of the weights: a push into a random direction."""
    return v @ torch.cat([part.flatten() for pair in layers for part in pair])


#: Treatment to what it lowers.
OBJECTIVES: Mapping[str, Objective] = {
    "sham": sham,
    "trace": trace,
    "minimum sharpness": minimum,
    "openness": closed,
}


def push(
    layers: Layers,
    x: Tensor,
    y: Tensor,
    unseen: Tensor,
    objective: Objective,
    *,
    steps: int,
    rate: float,
    direction: Tensor,
) -> tuple[list[tuple[Tensor, Tensor]], float, float]:
    """Lower an objective along the level set of the train loss.

    Every step has the length ``rate |theta|``, whatever the objective; the part of it along the
    loss's gradient is taken out, and a second, never longer one leads back to the level.

    Returns:
        The layers, and the train loss before and after.
    """
    parts = [part.detach().clone().requires_grad_() for pair in layers for part in pair]

    def paired() -> Layers:
        return list(zip(parts[::2], parts[1::2], strict=True))

    def gradient(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, parts, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for g, p in zip(found, parts, strict=True)
            ]
        )

    def move(by: Tensor) -> None:
        with torch.no_grad():
            for part, change in zip(
                parts, torch.split(by, [p.numel() for p in parts]), strict=True
            ):
                part.add_(change.view_as(part))

    def loss() -> Tensor:
        return F.cross_entropy(logits_of(paired(), x), y)

    level = loss().item()
    for _ in range(steps):
        length = rate * float(torch.cat([p.detach().flatten() for p in parts]).norm())
        pull = gradient(loss())
        unit = pull / pull.norm().clamp_min(1e-30)
        down = -gradient(objective(paired(), x, unseen, direction))
        down = down - (down @ unit) * unit
        move(length * down / down.norm().clamp_min(1e-30))
        for _ in range(3):
            value = loss()
            pull = gradient(value)
            norm = float(pull.norm())
            if norm > 0:
                back = (value.item() - level) / norm
                move(-max(-length, min(length, back)) * pull / norm)
    final = loss().item()
    return [(w.detach(), b.detach()) for w, b in paired()], level, final
