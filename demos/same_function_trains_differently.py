"""The same function, rescaled, trains to another one: SGD reads how a network is written.

    python demos/same_function_trains_differently.py

A network and its rescaled copy agree at every input before training. After the same twenty steps
of gradient descent they are two functions; after twenty steps along ``theta^2 * gradient``, which
moves with the parameters, they are still one.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

import invariance as inv

STEPS = 20


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, relative: bool) -> nn.Module:
    """Take steps along the gradient, or along ``theta^2 * gradient``, in place."""
    for _ in range(STEPS):
        values = list(model.parameters())
        slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), values)
        with torch.no_grad():
            for value, slope in zip(values, slopes, strict=True):
                value.sub_(0.1 * (value**2 if relative else 1.0) * slope)
    return model


def apart(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    """Return the largest difference of a logit."""
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max())


def main() -> dict[str, float]:
    """Train the network and its rescaled copy both ways."""
    task = inv.load_task("digits", n_train=200, n_unseen=20)
    x, y = task.x_train.double(), task.y_train
    network = inv.models.mlp([x.shape[1], 16, 10], dtype=torch.float64).eval()
    rescaled = inv.transforms.NeuronScaling(spread=4.0, seed=1)
    found = {"before training": apart(network, rescaled(network, x), x)}
    for name, relative in (("gradient descent", False), ("relative descent", True)):
        plain = train(copy.deepcopy(network), x, y, relative=relative)
        moved = train(rescaled(network, x), x, y, relative=relative)
        found[f"after {name}"] = apart(plain, moved, x)
    for name, size in found.items():
        print(f"{name:26} largest difference of a logit {size:.2e}")
    return found


if __name__ == "__main__":
    main()
