"""Traces of networks with many classes, exact and sampled, in gradients of the same run.

    OMP_NUM_THREADS=1 python benchmarks/sampled_trace.py [--nets mlp-1000 mlp-100 cnn vit resnet]

Processor time on one thread; the gradient is timed between the calls it is the unit of. The
error that is printed is the standard error that the call itself states.
"""

from __future__ import annotations

import argparse
import time

import torch
from curvature import cnn, verdict
from torch import nn

from invariance.curvature import hessian_trace
from invariance.models import mlp, resnet18, vit

#: Network: builder, shape of a row, classes, rows, tolerance, goal of a sampled trace and of an
#: exact one (``None``: not run here, or without a goal), in gradients.
NETWORKS = {
    "mlp-100": (lambda: mlp([256, 256, 128, 100]), (256,), 100, 128, 0.016, 3.9, 6.0),
    "mlp-1000": (lambda: mlp([256, 256, 128, 1000]), (256,), 1000, 128, 0.01, 6.0, 60.0),
    "cnn": (cnn, (1, 28, 28), 10, 512, 0.01, 2.0, None),
    "vit": (vit, (1, 28, 28), 10, 128, 0.01, 20.0, None),
    "resnet": (resnet18, (3, 32, 32), 10, 32, 0.01, 2.5, None),
}


def trained(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A briefly trained network and noisy prototypes of its classes."""
    build, shape, classes, rows, *_ = NETWORKS[name]
    model, draws = build(), torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (rows,), generator=draws)
    prototypes = torch.rand(classes, *shape, generator=draws)
    x = (prototypes[y] + 0.5 * torch.rand(rows, *shape, generator=draws) - 0.8).clamp_min(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(5 if name == "resnet" else 60):
        pick = torch.arange(step * 32, step * 32 + 32) % rows
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval(), x, y


def measure(name: str, rounds: int) -> None:
    """Print one network's rows."""
    tolerance, goal, exact_goal = NETWORKS[name][4:]
    model, x, y = trained(name)
    parameters = list(model.parameters())

    def gradient() -> object:
        return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)

    calls = {
        "gradient": gradient,
        "sampled": lambda: hessian_trace(model, x, y, method="sampled", rtol=tolerance),
    }
    if exact_goal is not None:
        calls["exact"] = lambda: hessian_trace(model, x, y)
    best, last = dict.fromkeys(calls, float("inf")), {}
    for _ in range(rounds):
        for call, run in calls.items():
            for _ in range(3 if call == "gradient" else 1):
                start = time.process_time()
                last[call] = run()
                best[call] = min(best[call], time.process_time() - start)
    unit, found = best["gradient"], last["sampled"]
    print(f"\n## {name}: {len(x)} rows, gradient {1e3 * unit:.3g} ms\n{found}")
    share = found.stderr / abs(found.value)
    verdict(f"{name}, sampled at {share:.2g} standard error", best["sampled"] / unit, goal)
    verdict(f"{name}, stated standard error over its tolerance", share / tolerance, 1)
    if exact_goal is not None:
        verdict(f"{name}, exact", best["exact"] / unit, exact_goal)
        print(f"off by {(found.value - last['exact'].value) / found.stderr:.2g} standard errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--nets", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, processor time")
    for name in args.nets:
        measure(name, args.rounds)


if __name__ == "__main__":
    main()
