"""Peak memory of the exact sweep is bounded by the budget, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from invariance.core._perceptron import read_perceptron
from invariance.curvature import exact_curvature, hessian_trace_ensemble
from invariance.curvature.exact._mlp import bytes_per_row


def peak_bytes(function):
    """Largest amount of memory that PyTorch's allocator held beyond the start, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        top = max(top, live)
    return top


def perceptron():
    return nn.Sequential(
        nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)
    )


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 10, 10)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


def smooth():
    return nn.Sequential(
        nn.Linear(100, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )


@pytest.mark.parametrize("build", [perceptron, convolutional, smooth])
@pytest.mark.parametrize("extras", [False, True])
def test_peak_stays_within_the_budget(build, extras):
    model = build()
    fixed = 4 * sum(p.nbytes for p in model.parameters())  # diagonals, factors of weights
    budget = 2**19
    peaks = []
    for rows in (150, 450):
        x, y = torch.rand(rows, 100), torch.zeros(rows, dtype=torch.long)
        peaks.append(
            peak_bytes(
                lambda x=x, y=y: exact_curvature(
                    model, x, y, memory_budget=budget, diagonal=extras, relative_flatness=extras
                )
            )
        )
    assert max(peaks) <= budget + fixed
    assert peaks[1] <= 1.05 * peaks[0] + 1e4  # more rows, same peak
    unbounded = peak_bytes(lambda: exact_curvature(model, x, y, memory_budget=2**40))
    assert unbounded > 1.3 * (budget + fixed)  # so that the bound above is one


def test_stack_stays_within_the_budget():
    models = [perceptron() for _ in range(10)]
    stacked = 4 * 10 * sum(p.nbytes for p in models[0].parameters())
    x, y = torch.rand(300, 100), torch.zeros(300, dtype=torch.long)
    budget = 2**20
    peak = peak_bytes(lambda: hessian_trace_ensemble(models, x, y, memory_budget=budget))
    assert peak <= budget + stacked


@pytest.mark.slow
def test_sixty_thousand_rows():
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    x, y = torch.rand(60_000, 784), torch.zeros(60_000, dtype=torch.long)
    budget = 32 * 2**20
    peak = peak_bytes(lambda: exact_curvature(model, x, y, memory_budget=budget))
    assert peak <= budget


def test_the_estimate_of_a_row_counted_by_hand():
    # 7 -> 5 -> 4 -> 3, float64, 2 outputs' channels: inputs of each dense layer (7 + 5 + 4) and
    # value and slope of each activation (2 * 5 + 2 * 4) are kept, 34 numbers, twice; two blocks
    # of the widest layers (5 + 4) and a square of one (5) a channel; four K x 2.
    layers = [nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]
    steps = read_perceptron(nn.Sequential(*layers).double())
    assert bytes_per_row(steps, channels=2) == 8 * (2 * 34 + 2 * (9 + 5) + 4 * 3 * 2)
