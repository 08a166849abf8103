"""The obvious way to train one network, to hold the batched trainer against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._rng import generator
from invariance.data import Task


def blobs(
    n: int = 26, d: int = 9, k: int = 4, *, seed: int = 0, n_test: int = 11, spread: float = 0.6
) -> Task:
    """A small task of overlapping clusters, with one feature that is always zero."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.rand((k, d), generator=draw)

    def points(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % k
        x = centres[y] + spread * torch.rand((count, d), generator=draw)
        x[:, 3] = 0.0
        return x / 2, y

    x, y = points(n)
    x_test, y_test = points(n_test)
    x_test[:, 3] = 0.5  # a feature that training never saw
    return Task("blobs", k, x, y, x_test, y_test, x_test[:0], y_test[:0])


def reference(
    model: nn.Module,
    task: Task,
    seed: int,
    *,
    epochs: int,
    lr: float = 0.1,
    batch_size: int | None = 8,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    drop_after: int | None = None,
) -> tuple[nn.Module, list[tuple[float, float]]]:
    """Train a float64 copy with torch.optim; return it with loss and accuracy by epoch."""
    model = copy.deepcopy(model).double().train()
    x, y = task.x_train.double(), task.y_train
    if optimizer == "sgd":
        optim = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )
    else:
        optim = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    size = len(y) if batch_size is None else batch_size
    order = generator(seed, "order")
    seen = []
    for epoch in range(1, epochs + 1):
        if drop_after is not None and epoch > drop_after:
            optim.param_groups[0]["lr"] = lr * 0.1
        permutation = torch.randperm(len(y), generator=order)
        if size >= len(y):
            permutation = torch.arange(len(y))
        for batch in permutation.split(size):
            optim.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optim.step()
        model.eval()
        with torch.no_grad():
            logits = model(x)
            loss = float(F.cross_entropy(logits, y))
            seen.append((loss, float((logits.argmax(1) == y).double().mean())))
        model.train()
    return model.eval(), seen


def assert_same_model(a: nn.Module, b: nn.Module, *, rtol: float = 1e-9, atol: float = 1e-10):
    """Compare every parameter and buffer."""
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(
            left[name].double(),
            right[name].double(),
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """Whether every parameter and buffer is bitwise equal."""
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)
