"""Small architectures x losses, with the dense float64 Hessian written from the definition.

Every case is tiny (at most some 150 parameters), in eval mode, deterministic, and knows
whether its network is piecewise linear in each layer, where exact traces exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, CLASSES = 9, 3


class Residual(nn.Module):
    """An MLP with a skip connection and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.outer = nn.Linear(5, 4)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x + self.outer(torch.relu(self.inner(x)))
        return self.head(torch.cat([hidden, torch.relu(hidden)], dim=1))


class ConvSkip(nn.Module):
    """A residual convolutional block with eval-mode BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.block = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.block(x))
        return self.head(self.pool(x).flatten(1))


class Tied(nn.Module):
    """One weight used twice: the Hessian has a term from their product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.relu(self.first(x)))))


class Unused(nn.Module):
    """A layer that forward() never calls: parameters without influence."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.spare = nn.Linear(4, 2)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


class Attention(nn.Module):
    """Self-attention over four tokens, by the fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 9)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.norm(x + mixed).mean(1))


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES))
    model[0].weight.requires_grad_(False)
    return model


def _dead() -> nn.Module:
    """A ReLU net in which one hidden unit is off for every input: exactly zero rows."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    with torch.no_grad():
        model[0].weight[2] = 0.0
        model[0].bias[2] = -1.0
    return model


VECTOR, IMAGE, SIGNAL, TOKENS = (4,), (1, 6, 6), (2, 7), (4, 3)

#: name: (builder, shape of one input, piecewise linear in each layer)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "linear": (lambda: nn.Linear(4, CLASSES), VECTOR, True),
    "deep-linear": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(4, CLASSES)),
        VECTOR,
        True,
    ),
    "relu": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)
        ),
        VECTOR,
        True,
    ),
    "relu-no-bias": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(4, 6, bias=False),
            nn.ReLU(),
            nn.Linear(6, CLASSES, bias=False),
        ),
        VECTOR,
        True,
    ),
    "leaky-dropout": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.LeakyReLU(0.2), nn.Dropout(0.5), nn.Linear(5, CLASSES)
        ),
        VECTOR,
        True,
    ),
    "tanh": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)
        ),
        VECTOR,
        False,
    ),
    "gelu-softplus": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, CLASSES)
        ),
        VECTOR,
        False,
    ),
    "output-sigmoid": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, CLASSES), nn.Sigmoid()),
        VECTOR,
        False,
    ),
    "batch-norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES)),
        VECTOR,
        True,
    ),
    "layer-norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, CLASSES)),
        VECTOR,
        False,
    ),
    "residual-concat": (Residual, VECTOR, True),
    "conv-max-pool": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=2, groups=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2, groups=2, dilation=1, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        ),
        IMAGE,
        True,
    ),
    "conv-1d-dilated": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, dilation=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(15, CLASSES),
        ),
        SIGNAL,
        True,
    ),
    "conv-skip-batch-norm": (ConvSkip, IMAGE, True),
    "prelu": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, CLASSES)),
        VECTOR,
        False,  # its slope is a parameter that multiplies the layer before it
    ),
    "attention": (Attention, TOKENS, False),
    "tied": (Tied, VECTOR, False),
    "unused-layer": (Unused, VECTOR, True),
    "frozen-weight": (_frozen, VECTOR, True),
    "dead-unit": (_dead, VECTOR, True),
}


def log_cosh(outputs: Tensor, y: Tensor) -> Tensor:
    """A user's own loss: the mean over rows of a smooth robust distance."""
    target = F.one_hot(y.long(), CLASSES).to(outputs)
    return torch.log(torch.cosh(outputs - target)).sum(1).mean()


def _labels(draws: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (ROWS,), generator=draws)


def _ignored(draws: torch.Generator) -> Tensor:
    labels = _labels(draws)
    labels[::4] = 1
    return labels


def _regression(draws: torch.Generator) -> Tensor:
    return torch.randn(ROWS, CLASSES, generator=draws, dtype=torch.float64)


def _soft(draws: torch.Generator) -> Tensor:
    return torch.rand(ROWS, CLASSES, generator=draws, dtype=torch.float64).softmax(1)


#: name: (what a user passes as loss=, the torch function of it, targets)
LOSSES: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor], Callable[..., Tensor]]] = {
    "cross-entropy": ("cross_entropy", F.cross_entropy, _labels),
    "weighted": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)),
        _labels,
    ),
    "smoothed-ignoring": (
        nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=1),
        nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=1),
        _ignored,
    ),
    "soft-labels": ("cross_entropy", F.cross_entropy, _soft),
    "mse": ("mse", F.mse_loss, _regression),
    "log-cosh": (log_cosh, log_cosh, _labels),
}


@dataclass(frozen=True)
class Case:
    """One architecture with one loss.

    Attributes:
        architecture: Key of :data:`ARCHITECTURES`.
        loss_name: Key of :data:`LOSSES`.
    """

    architecture: str
    loss_name: str

    @property
    def id(self) -> str:
        """Name for pytest."""
        return f"{self.architecture}-{self.loss_name}"

    @property
    def piecewise_linear(self) -> bool:
        """True if exact traces by one sweep exist."""
        return ARCHITECTURES[self.architecture][2]

    @property
    def loss(self) -> Any:
        """What a user passes as ``loss``."""
        return LOSSES[self.loss_name][0]

    def reference_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean loss by PyTorch."""
        return LOSSES[self.loss_name][1](outputs, y)

    def build(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Return the float64 model in eval mode, its inputs and its targets."""
        builder, shape, _ = ARCHITECTURES[self.architecture]
        draws = torch.Generator().manual_seed(5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            model = builder().double()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                size = module.num_features
                module.running_mean.copy_(torch.randn(size, generator=draws) / 3)
                module.running_var.copy_(torch.rand(size, generator=draws) + 0.5)
                with torch.no_grad():
                    module.weight.copy_(torch.rand(size, generator=draws) + 0.5)
        x = torch.randn(ROWS, *shape, generator=draws, dtype=torch.float64)
        return model.eval(), x, LOSSES[self.loss_name][2](draws)


def _table() -> list[Case]:
    """Every architecture with cross-entropy and mean squared error; every loss with some."""
    everywhere = ("cross-entropy", "mse")
    richer = ("linear", "relu", "tanh", "conv-max-pool", "residual-concat", "batch-norm", "tied")
    return [
        Case(architecture, loss)
        for architecture in ARCHITECTURES
        for loss in LOSSES
        if loss in everywhere or architecture in richer
    ]


CASES = _table()


def flat_parameters(model: nn.Module) -> tuple[list[str], Tensor]:
    """Return the names of the parameters that require gradients, and their flat vector."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, _ in named], torch.cat([p.detach().flatten() for _, p in named])


def rebuild(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """Read a flat vector as the parameters that require gradients."""
    parts, start = {}, 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            parts[name] = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
    return parts


def dense_hessian(case: Case) -> Tensor:
    """Return the dense Hessian in float64: autograd applied to the definition, nothing else."""
    model, x, y = case.build()
    _, flat = flat_parameters(model)

    def value(theta: Tensor) -> Tensor:
        # The plain attention formula: the fused one has no second derivative.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            outputs = torch.func.functional_call(model, rebuild(model, theta), (x,))
        return case.reference_loss(outputs, y)

    return torch.autograd.functional.hessian(value, flat)


def dense_jacobian(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``(n, K, d)`` Jacobian of the outputs, the outputs, and the targets."""
    model, x, y = case.build()
    _, flat = flat_parameters(model)

    def outputs(theta: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.func.functional_call(model, rebuild(model, theta), (x,))

    return torch.autograd.functional.jacobian(outputs, flat), outputs(flat).detach(), y
