"""One network of the size of ResNet-18: the exact trace against what an estimate would take.

A 1 % estimate takes hours here, so a few products and probes of each library are timed and
the rest is said, not measured: how many probes 1 % takes follows from the spread of all
probes together (every library draws random signs, so the spread is one and the same).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from curvature_peers import available, products, traces
from torch import nn

from invariance.curvature import HessianOperator, exact_curvature


def compare_large(model, x, y, args, interleaved: Callable, table: Callable) -> None:
    """Time a gradient, the exact trace, one product and a few probes of each library."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in parameters)
    rows = f"{len(x)} rows of {'x'.join(map(str, x.shape[1:]))}"
    print(f"\n## resnet: {size:,} parameters, {rows}, {args.device}", flush=True)
    begun = time.perf_counter()

    def gradient():
        return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)

    own = {
        "one gradient": gradient,
        "invariance, exact trace": lambda: exact_curvature(model, x, y).trace,
        "one gradient, again": gradient,
    }
    best, last = interleaved(own, 0, args)
    unit = min(best.pop("one gradient, again"), best["one gradient"])
    exact = float(last["invariance, exact trace"])
    best["one gradient"] = unit
    table("Exact trace", unit, best, {"invariance, exact trace": f"{exact:.6g}"})
    theirs, missing = available(traces(model, x, y, args.probes))
    peers, found = {}, {}
    for name, run in theirs.items():
        if time.perf_counter() - begun > args.limit:
            missing[name] = f"left out, --limit {args.limit:.0f} s is over"
            continue
        seconds, last = interleaved({name: run}, 0, args)
        peers, found = peers | seconds, found | last
        print(f"(timed {name}: {seconds[name] / unit:.3g} gradients)", flush=True)
    table(f"Trace, {args.probes} probes each", unit, peers, _notes(found) | {"missing": missing})
    pooled = [v for samples in found.values() if len(samples) > 1 and not isinstance(samples, str)
              for v in samples]  # fmt: skip
    if len(pooled) > 2:
        values = torch.tensor(pooled, dtype=torch.float64)
        spread = float(values.std()) / abs(exact)
        low, high = _interval(len(pooled))
        needed = (spread / 0.01) ** 2
        print(
            f"\n{len(pooled)} probes of all libraries: mean {float(values.mean()):.4g} +- "
            f"{float(values.std()) / len(pooled) ** 0.5:.2g}, exact {exact:.4g}; one probe's "
            f"spread is {spread:.2g} of it.\nEXTRAPOLATED, not run: 1 % takes {needed:.0f} probes "
            f"(68 % interval {needed * low:.0f} to {needed * high:.0f})"
        )
        for peer, samples in found.items():
            if not isinstance(samples, str) and len(samples) > 1:
                cost = peers[peer] / args.probes * needed
                ratio = cost / best["invariance, exact trace"]
                print(f"  {peer}: {cost / unit:.0f} gradients, {ratio:.0f} times the exact trace")
    if time.perf_counter() - begun > args.limit:
        print(f"\nHessian-vector product: left out, --limit {args.limit:.0f} s is over")
        return
    operator = HessianOperator(model, x, y)
    vector = torch.randn(operator.shape[0]).to(x)
    multiply, missing = available(products(model, x, y))
    best, _ = interleaved({"invariance": lambda: operator.matvec(vector), **multiply}, 0, args)
    notes = {"invariance": operator.method, "missing": missing}
    table("Hessian-vector product", unit, best, notes)


def _notes(found) -> dict[str, str]:
    notes = {}
    for peer, samples in found.items():
        if isinstance(samples, str):
            notes[peer] = samples
        else:
            notes[peer] = ", ".join(f"{value:.4g}" for value in samples[:6])
    return notes


def _interval(count: int) -> tuple[float, float]:
    """Factors of a 68 % interval of a variance that ``count`` normal samples give."""
    from scipy.stats import chi2

    degrees = count - 1
    return degrees / chi2.ppf(0.84, degrees), degrees / chi2.ppf(0.16, degrees)
