"""One hundred networks at once against the same networks one after another.

Both sides train the same networks (same starting weights, same order of the data, same
stopping rule, same final evaluation) and are timed in turns in one process; the minimum
over rounds counts. The other side is the loop that one would write with ``torch.nn`` and
``torch.optim``, with the data in memory and no loader in the way.

    python benchmarks/ensemble_training.py [--case small|wide] [--networks N] [--rounds R]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from invariance.core._rng import generator
from invariance.data import Task, load_task
from invariance.models import mlp
from invariance.training import fit_ensemble


@dataclass(frozen=True)
class Case:
    """A setting: hidden widths, points, networks, learning rate, looks at the accuracy."""

    hidden: tuple[int, ...]
    n_train: int
    networks: int
    lr: float
    max_epochs: int


CASES = {
    "small": Case((64, 8), 250, 100, 0.1, 500),
    "wide": Case((256, 128), 2000, 24, 0.03, 60),
}


@dataclass(frozen=True)
class Result:
    """What both sides report for a network."""

    epochs: int
    loss: float
    test: float


def one_after_another(sizes, task: Task, seeds, case: Case, device: str) -> list[Result]:
    """Train with a plain loop."""
    x, y = task.x_train.to(device), task.y_train.to(device)
    x_test, y_test = task.x_test.to(device), task.y_test.to(device)
    results = []
    for seed in seeds:
        model = mlp(sizes, seed=seed).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=case.lr)
        order = generator(seed, "order")
        for epoch in range(1, case.max_epochs + 1):  # noqa: B007
            for batch in torch.randperm(len(y), generator=order).to(device).split(64):
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                logits = model(x)
                loss = F.cross_entropy(logits, y)
                if bool((logits.argmax(1) == y).all()):
                    break
        with torch.no_grad():
            test = (model(x_test).argmax(1) == y_test).double().mean().item()
        results.append(Result(epoch, loss.item(), test))
    return results


def at_once(sizes, task: Task, seeds, case: Case, device: str) -> list[Result]:
    """Train with the package."""
    fits = fit_ensemble(
        sizes, task, seeds=seeds, lr=case.lr, max_epochs=case.max_epochs, device=device
    )
    return [Result(fit.epochs, fit.train_loss, fit.test_accuracy) for fit in fits]


def timed(function, *arguments) -> tuple[float, list[Result]]:
    start = time.perf_counter()
    results = function(*arguments)
    return time.perf_counter() - start, results


def compare(case: Case, device: str, rounds: int) -> None:
    task = load_task("auto", n_train=case.n_train)
    task = replace(task, x_test=task.x_test[:1000], y_test=task.y_test[:1000])
    sizes = (task.n_features, *case.hidden, task.n_classes)
    seeds = range(case.networks)
    name = "-".join(map(str, sizes))
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(
        f"{case.networks} networks {name}, {case.n_train} points of {task.name}, {device}{threads}"
    )
    best = {at_once: float("inf"), one_after_another: float("inf")}
    results: dict[object, list[Result]] = {}
    at_once(sizes, task, range(2), replace(case, max_epochs=2), device)  # warm up
    for number in range(rounds):
        for side in (at_once, one_after_another):
            seconds, results[side] = timed(side, sizes, task, seeds, case, device)
            best[side] = min(best[side], seconds)
            print(f"  round {number + 1}: {side.__name__:18} {seconds:8.2f} s", flush=True)
    ours, theirs = results[at_once], results[one_after_another]
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(a.epochs == b.epochs for a, b in pairs)
    losses = max(abs(a.loss - b.loss) / b.loss for a, b in pairs if a.epochs == b.epochs)
    test = sum(a.test for a in ours) / len(ours), sum(b.test for b in theirs) / len(theirs)
    print(f"  same number of epochs: {same} of {len(pairs)} networks ", end="")
    print(f"(mean {sum(a.epochs for a in ours) / len(ours):.1f})")
    print(f"  largest relative difference of their final train losses: {losses:.1e}")
    print(f"  mean test accuracy: {test[0]:.4f} at once, {test[1]:.4f} one after another")
    print(f"  minima: {best[at_once]:.2f} s against {best[one_after_another]:.2f} s", end="")
    print(f", ratio {best[one_after_another] / best[at_once]:.1f}")
    assert same >= 0.9 * len(pairs), "the two sides train different networks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="small")
    parser.add_argument("--networks", type=int)
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    case = replace(
        case,
        networks=arguments.networks or case.networks,
        max_epochs=arguments.max_epochs or case.max_epochs,
    )
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        compare(case, device, arguments.rounds)


if __name__ == "__main__":
    main()
