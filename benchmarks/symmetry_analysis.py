"""How long the analysis and the transforms of a ResNet-18-sized module take on this machine.

Run: ``python benchmarks/symmetry_analysis.py``. Prints the minimum over interleaved rounds of
every step, next to one plain forward pass of the same module for scale.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn

from invariance.symmetry import symmetries
from invariance.transforms import FoldBatchNorm, LayerScaling, NeuronScaling, Permutation


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and an identity or projection shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    widths, layers, n_in = (64, 128, 256, 512), [], 64
    for stage, width in enumerate(widths):
        for block in range(2):
            layers.append(Block(n_in, width, 2 if stage and not block else 1))
            n_in = width
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *layers, *head).eval()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def best(steps, rounds):
    """Time the steps in turn and return each one's minimum in seconds."""
    times = {name: float("inf") for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for title, model, x in (
        (
            "ResNet-18, 11.2 million parameters, one 32x32 image",
            resnet18(),
            torch.randn(1, 3, 32, 32),
        ),
        ("MLP 784-256-128-10, 100 rows", mlp(), torch.randn(100, 784)),
    ):
        steps = {
            "one forward pass": lambda m=model, i=x: m(i),
            "symmetries": lambda m=model, i=x: symmetries(m, i),
            "NeuronScaling": lambda m=model, i=x: NeuronScaling().apply(m, i),
            "Permutation": lambda m=model, i=x: Permutation().apply(m, i),
        }
        if isinstance(model[0], nn.Conv2d):
            steps["FoldBatchNorm"] = lambda m=model, i=x: FoldBatchNorm().apply(m, i)
        else:
            steps["LayerScaling"] = lambda m=model, i=x: LayerScaling([2.0, 2.0, 0.25]).apply(m, i)
        times = best(steps, rounds)
        forward = times["one forward pass"]
        print(f"{title} (minimum of {rounds} rounds, {torch.get_num_threads()} threads)")
        for name, seconds in times.items():
            print(f"  {name:18s} {seconds * 1e3:9.1f} ms {seconds / forward:8.1f} x forward")
        if "FoldBatchNorm" in times:
            whole = times["symmetries"] + times["NeuronScaling"]
            print(f"  analysing and transforming together: {whole:.3f} s")


if __name__ == "__main__":
    main()
