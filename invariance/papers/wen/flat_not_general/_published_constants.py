"""The constants of Wen, Li and Ma (arXiv 2307.11007, version 2), each computed again.

Every entry recomputes what the printed constant should give, from the definitions: a trace by
the closed forms, an output, or a derivative. Nothing is compared by eye.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invariance.papers.wen.flat_not_general._constructions import construct, realise
from invariance.papers.wen.flat_not_general._problem import draw_problem, parity
from invariance.papers.wen.flat_not_general._sharpness import sharpness

#: Two numbers of the same quantity agree.
_CLOSE = 1e-6


@dataclass(frozen=True)
class PublishedConstant:
    """One printed constant and what it comes to.

    Attributes:
        where: Place in the paper.
        printed: The constant as printed.
        quantity: What is compared.
        claimed: What the paper's statement says it is.
        found: What it is, computed from the definitions.
        correct: The constant that does hold; empty if the printed one does.
    """

    where: str
    printed: str
    quantity: str
    claimed: float
    found: float
    correct: str = ""

    @property
    def survives(self) -> bool:
        """Whether the printed constant gives what it should."""
        return abs(self.found - self.claimed) <= _CLOSE * max(1.0, abs(self.claimed))


def published_constants(*, dimension: int = 30, n_train: int = 100) -> list[PublishedConstant]:
    """Check the constants at the paper's size.

    Args:
        dimension: Bits.
        n_train: Training points.

    Returns:
        Those that fail first, in the order of the paper.
    """
    d = dimension
    checked = [
        *_plain(d, n_train),
        *_batch(6),
        *_layer(d, n_train),
        *_logistic(0.2),
        *_deep(d, 4),
    ]
    return sorted(checked, key=lambda one: one.survives)


def _plain(d: int, n: int) -> list[PublishedConstant]:
    data = draw_problem(0, dimension=d, n_train=n, n_test=1)
    made = construct("generaliser", data.x_train, data.y_train, architecture="plain", bias=True)
    least = 4 * math.sqrt(d + 1)

    def trace(kind: str, r: float) -> float:
        chosen = made
        if kind == "memoriser":
            chosen = construct(
                "memoriser", data.x_train, data.y_train, architecture="plain", bias=True
            )
        model = realise(chosen, data.x_train, size=r)
        return sharpness(model, data.x_train, data.y_train).trace

    quantity = f"Tr H of the network (minimum 4 sqrt(d+1)), d = {d}"
    outputs = realise(made, data.x_train)(data.x_train)[:, 0]
    right = float((outputs * data.y_train > 0).double().mean())
    return [
        PublishedConstant(
            "Section 4.1, equation (5): generalising network with bias",
            "r = (d^2 + 1)^(1/4)", quantity, least, trace("generaliser", (d**2 + 1) ** 0.25),
            "r = (d + 1)^(1/4): points of the cube have |x|^2 = d",
        ),
        PublishedConstant(
            "Proposition A.1, equation (16): its generalisation",
            "r^2 = |y| (R^2 + 1)", quantity, least, trace("generaliser", math.sqrt(d + 1)),
            "r^2 = |y| sqrt(R^2 + 1)",
        ),
        PublishedConstant(
            "Theorem 4.1, depth 2: memorising network with bias",
            "hidden value sqrt(r), r = (|x|^2 + 1)^(1/2)", quantity, least,
            trace("memoriser", (d + 1) ** 0.25),
        ),
        PublishedConstant(
            "Appendix A.2.4: width-4 network without bias, eps = 1/4",
            "readout 1/(2 - 2 eps)", "largest |f(x) - y|", 0.0, _witness(data.x_train, 0.25),
        ),
        PublishedConstant(
            "Section 2: zero-one loss", "Pr(y f(x) > 0)",
            "loss of a network that is right everywhere", 0.0, right,
            "Pr(y f(x) <= 0): as printed it is the accuracy",
        ),
    ]  # fmt: skip


def _witness(x: Tensor, eps: float) -> float:
    first = torch.tensor([[1 + eps, 1 - eps], [1 + eps, eps - 1], [-1 - eps, 1 - eps],
                          [-1 - eps, eps - 1]], dtype=x.dtype)  # fmt: skip
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=x.dtype) / (2 - 2 * eps)
    outputs = (x[:, :2] @ first.T).relu() @ signs
    return float((outputs - parity(x)).abs().max())


def complete_training_set(dimension: int) -> tuple[Tensor, Tensor]:
    """Return a smallest training set that satisfies the paper's Condition 1.

    Shapes: returns ``(4 (d - 1), d)``.
    """
    rest = dimension - 2
    rests = torch.ones(rest + 1, rest, dtype=torch.float64)
    rests[1:] -= 2 * torch.eye(rest, dtype=torch.float64)
    quadrants = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x = torch.cat([quadrants.repeat(rest + 1, 1), rests.repeat_interleave(4, 0)], 1)
    return x, parity(x)


def _batch(d: int) -> list[PublishedConstant]:
    x, y = complete_training_set(d)
    made = construct("generaliser", x, y, architecture="batch", bias=True)
    model = realise(made, x, size=1e6)
    scale = torch.as_tensor(model.scale).detach()
    readout = torch.as_tensor(model.get_submodule("output").weight).detach()[0]
    norms = float(scale.square().sum() + readout.square().sum())
    flattest = sharpness(model, x, y)
    # The weights printed as attaining |gamma W_2|_1 = 2: gamma = 1, W_2 = 1/2 for all units.
    levels = made.levels(x).double()
    normalised = levels / levels.square().mean(0).sqrt()
    worst = float((normalised @ torch.full((4,), 0.5, dtype=x.dtype) - y).abs().max())
    return [
        PublishedConstant(
            "Lemma A.3: simplified BatchNorm", "inf Tr H = inf |W_2|^2 + |gamma|^2",
            "infimum of Tr H on a complete training set", norms, flattest.trace,
            "inf Tr H = 2 inf (|W_2|^2 + |gamma|^2): Lemma 4.1 has the factor 2/n, not 1/n",
        ),
        PublishedConstant(
            "Lemma A.1: weights that attain it", "W_2[2i + j] = 1/2 for all four units",
            "largest |f(x) - y|", 0.0, worst, "W_2[2i + j] = (-1)^(i + j) / 2",
        ),
        PublishedConstant(
            "Lemma A.1: least |gamma * W_2|_1", "2", "|gamma * W_2|_1 of the generaliser",
            2.0, float((scale * readout).abs().sum()),
        ),
    ]  # fmt: skip


def _layer(d: int, n: int) -> list[PublishedConstant]:
    data = draw_problem(0, dimension=d, n_train=n, n_test=1)
    made = construct("memoriser", data.x_train, data.y_train, architecture="layer", bias=True)

    def trace(floor: float, size: float, readout: float) -> float:
        model = realise(made, data.x_train, size=size, floor=floor)
        with torch.no_grad():
            torch.as_tensor(model.get_submodule("output").weight).mul_(readout)
        return sharpness(model, data.x_train, data.y_train).trace

    root = math.sqrt(d + 1)
    floor = 1.5 * root
    # Case 2 of the printed construction, which it prescribes for |x'| |y| <= floor.
    inside = trace(floor, floor * math.sqrt(root / floor), math.sqrt(floor / root))
    return [
        PublishedConstant(
            "Theorem 5.1: where the construction changes", "sqrt(|x|^2 + 1) |y| <= eps",
            "Tr H at eps = 1.5 sqrt(d + 1)", 2.0 * min(1.0, 2 * root / floor), inside,
            "2 sqrt(|x|^2 + 1) |y| <= eps, where the bound of Lemma A.12 changes",
        ),
        PublishedConstant(
            "Lemma A.12 and Proposition 5.1", "Tr H = 2 for small eps",
            "Tr H of the memoriser at eps = 0.001", 2.0, trace(1e-3, 2e-3, 1.0),
        ),
    ]  # fmt: skip


def _logistic(p: float) -> list[PublishedConstant]:
    def loss(a: Tensor) -> Tensor:
        # Definition A.2 with b = 1.
        return -p * torch.nn.functional.logsigmoid(a) - (1 - p) * torch.nn.functional.logsigmoid(-a)

    printed = math.log((1 - p) / p)
    a = torch.tensor(printed, dtype=torch.float64)
    slope = float(torch.func.grad(loss)(a))
    curvature = float(torch.func.grad(torch.func.grad(loss))(a))
    return [
        PublishedConstant(
            "Lemma A.13: logistic loss with smoothing", "Tr H = 1/(p (1 - p)) mean |grad f|^2",
            f"second derivative of the loss at its minimum, p = {p}", 1 / (p * (1 - p)),
            curvature, "Tr H = p (1 - p) mean |grad f|^2",
        ),
        PublishedConstant(
            "Definition A.2 and Theorem A.2", "minimum at a = (2b - 1) ln((1 - p)/p)",
            f"derivative of the printed loss there, p = {p}", 0.0, slope,
            "(2b - 1) ln(p/(1 - p)) for the printed loss; p and 1 - p are exchanged in it",
        ),
    ]  # fmt: skip


def _deep(d: int, depth: int) -> list[PublishedConstant]:
    """Check the depth-D memoriser: ``D (|x'|^2)^(1/D)`` is its squared gradient norm."""
    data = draw_problem(0, dimension=d, n_train=8, n_test=1)
    inputs = torch.cat([data.x_train, torch.ones_like(data.x_train[:, :1])], 1)
    r = (d + 1) ** (0.5 / depth)
    memoriser = construct("memoriser", data.x_train, data.y_train, architecture="plain", bias=True)
    first = memoriser.directions.double() * r ** (depth - 1)
    middle = torch.eye(len(inputs), dtype=torch.float64) / r
    last = data.y_train / r
    parameters = [first, *[middle.clone() for _ in range(depth - 2)], last]
    for parameter in parameters:
        parameter.requires_grad_()
    total = 0.0
    for x in inputs:
        hidden = (first @ x).relu()
        for matrix in parameters[1:-1]:
            hidden = (matrix @ hidden).relu()
        grads = torch.autograd.grad(hidden @ last, parameters)
        total += sum(float(g.square().sum()) for g in grads)
    return [
        PublishedConstant(
            f"Theorem 4.1, depth {depth}", "|grad f|^2 >= D |y|^(2(D-1)/D) |x'|^(2/D), attained",
            "Tr H of the memoriser", 2 * depth * (d + 1) ** (1 / depth), 2 * total / len(inputs),
        )
    ]  # fmt: skip
