"""One epoch of 1-SAM on two-bit parity: the compiled loop beside plain PyTorch.

Both sides train the same network (width 500, 100 points of 30 bits, float32, one thread) with
one sample a step, in turns; printed are minima of CPU time over the rounds, and what they come
to for the 100,000 epochs of the published runs.

    python benchmarks/parity_sam.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from invariance.papers.wen.flat_not_general import _kernels as kernels
from invariance.papers.wen.flat_not_general import build, draw_problem
from invariance.papers.wen.flat_not_general._sharpness import stacked, with_bias

LR, RHO, WIDTH = 0.01, 0.05, 500


def plain_epoch(model, x, y, order):
    """One epoch by automatic differentiation."""
    parameters = list(model.parameters())
    for i in order:
        row, target = x[i : i + 1], y[i]
        up = torch.autograd.grad((model(row)[0, 0] - target) ** 2, parameters)
        step = RHO / torch.sqrt(sum(part.square().sum() for part in up))
        with torch.no_grad():
            for parameter, part in zip(parameters, up, strict=True):
                parameter.add_(part * step)
        down = torch.autograd.grad((model(row)[0, 0] - target) ** 2, parameters)
        with torch.no_grad():
            for parameter, a, b in zip(parameters, up, down, strict=True):
                parameter.sub_(a * step + LR * b)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    data = draw_problem(0, dimension=30, n_train=100, n_test=1)
    model = build("plain", dimension=30, width=WIDTH, dtype=torch.float32)
    x, y = data.x_train.float(), data.y_train.float()
    rows = with_bias(x, model.hidden).numpy()
    weights = np.ascontiguousarray(stacked(model.hidden).float().numpy().T)
    readout = model.output.weight.detach()[0].numpy().copy()
    state = np.array([1], dtype=np.uint64)

    def compiled_epoch():
        kernels.stochastic_epochs(
            1, rows, y.numpy(), weights, readout, LR, RHO, 0.0, -1.0, 0.0, state
        )

    compiled_epoch()
    times = {"compiled": [], "PyTorch": []}
    for _ in range(rounds):
        for name, run in (
            ("compiled", compiled_epoch),
            ("PyTorch", lambda: plain_epoch(model, x, y, range(100))),
        ):
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    best = {name: min(values) for name, values in times.items()}
    for name, seconds in best.items():
        print(
            f"{name:9} {seconds * 1e4:8.2f} us a step, {seconds * 1e5 / 60:8.1f} min for 1e5 epochs"
        )
    print(f"ratio     {best['PyTorch'] / best['compiled']:8.1f}")


if __name__ == "__main__":
    main()
