"""Curvature against PyHessian, hessian-eigenthings, curvlinops and BackPACK, in one run.

    python benchmarks/curvature.py [--nets mlp cnn ensemble memory resnet] [--quick] [--device cpu]

Sides are interleaved: every round runs each contender once, and the table shows minima, in
units of one gradient of the same loss timed in the same rounds. Goals that are missed are
printed as missed. Peers that are not installed are named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings

import torch
from curvature_ensemble import compare_ensemble
from curvature_large import compare_large
from curvature_peers import available, products, top_eigenvalues, traces
from torch import nn

from invariance.curvature import (
    HessianOperator,
    exact_curvature,
    hessian_eigenvalues,
)
from invariance.models import mlp, resnet18


def cnn() -> nn.Module:
    """A small convolutional network on 1 x 28 x 28 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(784, 10),
        )


def problem(name: str, quick: bool, device: str):
    """Return a briefly trained network and its data."""
    shape, rows = {
        "mlp": ((784,), 256 if quick else 2048),
        "cnn": ((1, 28, 28), 64 if quick else 512),
        "resnet": ((3, 32, 32), 8 if quick else 256),
    }[name]
    model = {"mlp": lambda: mlp([784, 256, 128, 10]), "cnn": cnn, "resnet": resnet18}[name]()
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (rows,), generator=draws)
    # Ten noisy prototypes, 80 % of the pixels dark: as learnable and as sparse as digits.
    prototypes = torch.rand(10, *shape, generator=draws)
    x = (prototypes[y] + 0.5 * torch.rand(rows, *shape, generator=draws) - 0.8).clamp_min(0)
    model, x, y = model.to(device), x.to(device), y.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps, batch = (20, 32) if name == "resnet" else (100, 64)
    for step in range(steps):
        pick = torch.arange(step * batch, step * batch + batch) % rows
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval(), x, y


#: Processor time is the fairer clock on a machine that others use, with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(contenders, rounds: int, args: argparse.Namespace):
    """Run every contender once a round; return the minimum seconds and the last result."""
    best = dict.fromkeys(contenders, float("inf"))
    last = {}
    device, clock = args.device, args.clock
    for number in range(rounds + 1):
        for name, run in list(contenders.items()):
            try:
                start = CLOCKS[clock]()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    last[name] = run()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds = CLOCKS[clock]() - start
            except Exception as error:  # a peer's crash is a result, not the end of the run
                last[name] = f"crashes: {str(error).splitlines()[0][:70]}"
                best[name] = float("nan")
                del contenders[name]
                continue
            # The first round warms caches up, unless it is the only one.
            if number or not rounds:
                best[name] = min(best[name], seconds)
    return best, last


def table(title: str, unit: float, best, notes) -> None:
    print(f"\n{title}\n| contender | seconds | gradients | note |\n| --- | --- | --- | --- |")
    for name, seconds in best.items():
        note = notes.get(name, "")
        print(f"| {name} | {seconds:.4g} | {seconds / unit:.3g} | {note} |")
    for name, reason in notes.get("missing", {}).items():
        print(f"| {name} | - | - | {reason} |")


def verdict(words: str, value: float, goal: float, *, at_least: bool = False) -> None:
    met = value >= goal if at_least else value <= goal
    sign = ">=" if at_least else "<="
    print(f"GOAL {'met' if met else 'MISSED'}: {words}: {value:.3g} (goal {sign} {goal:g})")


def compare(name: str, args: argparse.Namespace) -> None:
    """Compare everything on one network."""
    model, x, y = problem(name, args.quick, args.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in parameters)
    print(f"\n## {name}: {size:,} parameters, {len(x)} rows, {args.device}")

    def gradient():
        return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)

    compare_products(model, x, y, gradient, args)
    compare_traces(model, x, y, gradient, args)
    compare_eigenvalues(model, x, y, gradient, args)


def compare_products(model, x, y, gradient, args) -> None:
    """Compare one Hessian-vector product, everything that can be kept being kept."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(model(x), y)
    graph = torch.autograd.grad(loss, parameters, create_graph=True)
    operator = HessianOperator(model, x, y, memory_budget=64 << 30)
    parts = [torch.randn_like(p) for p in parameters]
    vector = torch.cat([part.flatten() for part in parts])
    theirs, missing = available(products(model, x, y))
    best, _ = interleaved(
        {
            "one gradient": gradient,
            "bare cached-graph HVP": lambda: torch.autograd.grad(
                graph, parameters, parts, retain_graph=True
            ),
            "invariance": lambda: operator.matvec(vector),
            **theirs,
        },
        args.rounds,
        args,
    )
    notes = {"invariance": operator.method, "missing": missing}
    table("Hessian-vector product", best["one gradient"], best, notes)
    ratio = best["invariance"] / best["bare cached-graph HVP"]
    verdict("HVP over a bare cached-graph HVP", ratio, 1.2)


def compare_traces(model, x, y, gradient, args) -> None:
    """Compare the exact trace with estimates, extrapolated to 1 % standard error."""
    theirs, missing = available(traces(model, x, y, args.probes))
    contenders = {
        "one gradient": gradient,
        "invariance, exact": lambda: exact_curvature(model, x, y).trace,
        "invariance, exact + relative flatness": lambda: (
            exact_curvature(model, x, y, relative_flatness=True).trace
        ),
    }
    rounds = max(1, args.rounds // 2)
    best, last = interleaved(contenders, rounds, args)
    peers, found = interleaved(theirs, 0, args)
    unit, exact = best["one gradient"], float(last["invariance, exact"])
    notes: dict[str, object] = {"invariance, exact": f"{exact:.6g}", "missing": missing}
    at_one_percent = []
    for peer, samples in found.items():
        if isinstance(samples, str):
            notes[peer] = samples
        elif len(samples) > 1:
            values = torch.tensor(samples, dtype=torch.float64)
            error = abs(float(values.mean()) / exact - 1)
            # Each library's own samples say how many probes a standard error of 1 % takes.
            spread = float(values.std(correction=0)) / abs(exact)
            needed = max(2.0, (spread / 0.01) ** 2)
            cost = peers[peer] / args.probes * needed
            at_one_percent.append(cost)
            notes[peer] = (
                f"{args.probes} probes, error {error:.2g}; 1 % needs {needed:.0f}: "
                f"{cost / unit:.0f} gradients"
            )
        else:
            notes[peer] = f"exact diagonal, {samples[0]:.6g}"
    table("Trace of the Hessian", unit, best | peers, notes)
    swept = best["invariance, exact"]
    verdict("exact trace in gradients", swept / unit, 2)
    both = best["invariance, exact + relative flatness"]
    verdict("trace and relative flatness in gradients", both / unit, 3)
    if at_one_percent:
        ratio = min(at_one_percent) / swept
        verdict("best peer's 1 % estimate over the exact trace", ratio, 40, at_least=True)


def compare_eigenvalues(model, x, y, gradient, args) -> None:
    """Compare the largest eigenvalue, each call from scratch."""
    theirs, missing = available(top_eigenvalues(model, x, y))
    double = torch.float64

    def ours():
        return hessian_eigenvalues(
            model,
            x,
            y,
            tolerance=1e-6,
            criterion="value",
            certify_in=double,
            memory_budget=64 << 30,
        )

    contenders = {"one gradient": gradient, "invariance": ours, **theirs}
    rounds = max(1, args.rounds // 4)
    best, last = interleaved(contenders, rounds, args)
    found = last["invariance"]
    truth = float(hessian_eigenvalues(model, x, y, dtype=torch.float64, tolerance=1e-9))
    notes: dict[str, object] = {"missing": missing}
    notes["invariance"] = (
        f"{float(found):.8g}, error {abs(float(found) / truth - 1):.1e}, bound "
        f"{found.stderr / truth:.1e}, {found.iterations} products, converged {found.converged}"
    )
    for peer in theirs:
        value = last[peer]
        notes[peer] = (
            value if isinstance(value, str) else f"{value:.8g}, error {abs(value / truth - 1):.1e}"
        )
    unit = best["one gradient"]
    table("Top eigenvalue to 1e-6 relative", unit, best, notes)
    verdict("top eigenvalue in gradients", best["invariance"] / unit, 20)
    accurate = [
        best[peer]
        for peer in theirs
        if not isinstance(last[peer], str) and abs(last[peer] / truth - 1) < 1e-4
    ]
    if accurate:
        verdict("top eigenvalue over the best peer", best["invariance"] / min(accurate), 1)


MEMORY = """
import re, sys, torch
from invariance.curvature import exact_curvature
from invariance.models import mlp
rows, budget = int(sys.argv[1]), int(sys.argv[2])
model = mlp([784, 256, 128, 10])
x, y = torch.rand(rows, 784), torch.arange(rows) % 10
exact_curvature(model, x[:64], y[:64], relative_flatness=True)
read = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = read("VmRSS")
exact_curvature(model, x, y, relative_flatness=True, memory_budget=budget)
print(read("VmHWM") - before)
"""


def compare_memory(args) -> None:
    """Peak memory of the exact sweep over 60,000 rows, in a process of its own."""
    rows = 6000 if args.quick else 60000
    print(f"\n## peak memory of the exact trace and relative flatness, n = {rows}")
    for budget in (64 << 20, 256 << 20):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(rows), str(budget)],
            capture_output=True,
            text=True,
            check=True,
        )
        used = int(done.stdout.strip().splitlines()[-1])
        print(f"budget {budget >> 20} MiB: resident memory grew by {used / 2**20:.0f} MiB")
        verdict("growth over the budget", used / budget, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    quick = ["mlp", "cnn", "ensemble", "memory"]
    parser.add_argument(
        "--nets",
        nargs="*",
        default=quick,
        choices=[*quick, "resnet"],
        help="all but resnet by default, which takes half an hour on one core",
    )
    parser.add_argument("--quick", action="store_true", help="small data, two rounds")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (default 12)")
    parser.add_argument("--probes", type=int, default=40, help="probes of the peers' traces")
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds after which resnet starts nothing more"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 12)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, {args.clock}"
    )
    for name in args.nets:
        if name == "ensemble":
            compare_ensemble(args, interleaved, verdict)
        elif name == "resnet":
            compare_large(*problem(name, args.quick, args.device), args, interleaved, table)
        elif name == "memory":
            compare_memory(args)
        else:
            compare(name, args)


if __name__ == "__main__":
    main()
