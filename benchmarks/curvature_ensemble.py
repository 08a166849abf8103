"""Many small networks: one call against loops, our own and those of other libraries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from curvature_peers import PEERS, available, top_eigenvalues, traces

from invariance.curvature import (
    exact_curvature,
    hessian_eigenvalues,
    hessian_eigenvalues_ensemble,
    hessian_trace_ensemble,
)
from invariance.models import mlp

#: Every tenth network stands for ten in the loops of other libraries, which take long.
SHARE = 10

#: Relative tolerance of the eigenvalues, in the sense that each solver gives to it.
TOLERANCE = 1e-3


def problem(count: int, device: str):
    """Return equal-shaped networks and rows for all of them."""
    draws = torch.Generator().manual_seed(0)
    x = (torch.rand(250, 784, generator=draws) - 0.8).clamp_min(0).to(device)
    y = torch.randint(0, 10, (250,), generator=draws).to(device)
    return [mlp([784, 64, 8, 10], seed=seed).to(device) for seed in range(count)], x, y


def compare_ensemble(args, interleaved: Callable, verdict: Callable) -> None:
    """A stack of networks against loops over them."""
    models, x, y = problem(10 if args.quick else 100, args.device)
    asked = {"tolerance": TOLERANCE}
    best, last = interleaved(
        {
            "trace, loop": lambda: [exact_curvature(m, x, y).trace for m in models],
            "trace, stack": lambda: hessian_trace_ensemble(models, x, y).trace,
            "top eigenvalue, loop": lambda: [hessian_eigenvalues(m, x, y, **asked) for m in models],
            "top eigenvalue, stack": lambda: hessian_eigenvalues_ensemble(models, x, y, **asked),
            "gradient, loop": lambda: [_gradient(m, x, y) for m in models],
        },
        max(1, args.rounds // 4),
        args,
    )
    unit = best["gradient, loop"]
    print(f"\n## ensemble: {len(models)} networks 784-64-8-10, 250 rows, {args.device}")
    print(f"one gradient each, in a loop: {unit:.3f} s")
    some = models[::SHARE]
    theirs, found = _peers(some, x, y, args, interleaved)
    exact = [float(value) for value in last["trace, stack"][::SHARE]]
    values = [float(value) for value in last["top eigenvalue, stack"][::SHARE]]
    for what, true in (("trace", exact), ("top eigenvalue", values)):
        loop, stack = best[f"{what}, loop"], best[f"{what}, stack"]
        print(f"{what}: our loop {loop:.3f} s, stack {stack:.3f} s ({stack / unit:.2g} gradients)")
        verdict(f"{what}, loop of our own calls over stack", loop / stack, 10, at_least=True)
        ratios = []
        for (kind, peer), seconds in theirs.items():
            if kind != what:
                continue
            result = found[kind, peer]
            if isinstance(result, str):
                print(f"  {peer}: {result}")
                continue
            cost, note = _at_goal(kind, result, true, seconds, args.probes)
            cost *= len(models) / len(some)
            print(f"  {peer}: {cost:.3g} s in a loop ({note}): {cost / stack:.3g} times the stack")
            if "wrong" not in note:
                ratios.append(cost / stack)
        if ratios:
            verdict(f"{what}, best peer's loop over stack", min(ratios), 10, at_least=True)


def _gradient(model, x, y):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, list(model.parameters()))


def _peers(models, x, y, args, interleaved: Callable):
    """Time each library's call on a share of the networks, one after another."""
    contenders = {}
    for peer in PEERS:
        for kind, build in (("trace", _traces), ("top eigenvalue", _values)):
            runs = [available(build(model, x, y, args.probes))[0].get(peer) for model in models]
            if all(run is not None for run in runs):
                contenders[kind, peer] = lambda runs=runs: [run() for run in runs]
    return interleaved(contenders, 1, args)


def _traces(model, x, y, probes):
    return traces(model, x, y, probes)


def _values(model, x, y, probes):
    return top_eigenvalues(model, x, y, tol=TOLERANCE)


def _at_goal(kind: str, result, true: list[float], seconds: float, probes: int):
    """Return the seconds that a usable answer takes, and how good the timed one was."""
    if kind == "top eigenvalue":
        worst = max(abs(value / goal - 1) for value, goal in zip(result, true, strict=True))
        return seconds, f"worst error {worst:.1g}{', wrong' if worst > 0.1 else ''}"
    if len(result[0]) == 1:
        worst = max(abs(v[0] / goal - 1) for v, goal in zip(result, true, strict=True))
        return seconds, f"exact diagonal, worst error {worst:.1g}"
    needed = []
    for samples, goal in zip(result, true, strict=True):
        spread = float(torch.tensor(samples, dtype=torch.float64).std(correction=0)) / abs(goal)
        needed.append(max(2.0, (spread / 0.01) ** 2))
    mean = sum(needed) / len(needed)
    return seconds / probes * mean, f"1 % needs {mean:.0f} probes, timed {probes}"
