"""Data and networks from a seed, such that no mistake can hide in a default value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invariance.core._rng import generator

#: Rate of the short training of a "trained" network.
RATE = 0.2


def randomize(model: nn.Module, seed: int) -> None:
    """Give biases, BatchNorm parameters and statistics values that no test can overlook.

    A fresh BatchNorm (gamma 1, beta 0, mean 0, variance 1) hides most mistakes about it.
    """
    source = generator(seed, "norms")
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                continue
            for name in ("weight", "running_var"):
                tensor = getattr(module, name)
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
            for name in ("bias", "running_mean"):
                tensor = getattr(module, name)
                tensor.copy_(torch.randn(tensor.shape, generator=source))


def train_briefly(model: nn.Module, features: int, classes: int, seed: int, steps: int) -> None:
    """Take a few steps of gradient descent on random data, in eval mode."""
    x, y = random_data(16, features, classes, seed)
    model.eval()
    parameters = list(model.parameters())
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.sub_(RATE * grad)


def random_data(
    rows: int, features: int | tuple[int, ...], classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw normal inputs and uniform labels from a seed, in float64."""
    source = generator(seed, "data")
    shape = (features,) if isinstance(features, int) else features
    x = torch.randn((rows, *shape), generator=source, dtype=torch.float64)
    y = torch.randint(0, classes, (rows,), generator=source)
    return x, y
