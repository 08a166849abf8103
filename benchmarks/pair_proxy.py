"""The pair proxy against one ``scipy.optimize.linprog`` call a pair, on MNIST networks.

Trains the networks of the published experiment (784-64-8-10, 250 training points, SGD
with learning rate 0.1 and batches of 64 to full train accuracy), then times, network by
network in turn, (a) the certified engine on every pair and (b) one linear program a pair
by HiGHS, on a random subset of the pairs or, with ``--full``, on all of them. Both see
the same frozen float64 features. Prints the agreement on every pair that (b) decided, the
ratio of the times a pair, and the time of the whole experiment with training.

    python benchmarks/pair_proxy.py [--networks 100] [--compared 10] [--pairs 30] [--full]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from invariance.data import load_task
from invariance.training import fit_ensemble
from invariance.weakness._features import frozen_features
from invariance.weakness.separability._pair_proxy import pair_proxy, pair_proxy_ensemble
from invariance.weakness.separability._threads import available_cores

SIZES = [784, 64, 8, 10]


def margin_rows(points, labels, n_classes):
    """One row (e_label - e_other) (x) [x, 1] a margin, as a sparse matrix."""
    rows = np.hstack([points, np.ones((len(points), 1))])
    width = rows.shape[1]
    blocks = []
    for row, label in zip(rows, labels, strict=True):
        for other in range(n_classes):
            if other != label:
                entry = np.zeros((n_classes, width))
                entry[label], entry[other] = row, -row
                blocks.append(entry.ravel())
    return np.array(blocks)


def feasible_by_linprog(train_rows, probe, target, n_classes):
    """Solve ``A w >= 1`` from scratch; True, False, or None when HiGHS gives up."""
    system = np.vstack([train_rows, margin_rows(probe[None], [target], n_classes)])
    result = linprog(
        np.zeros(system.shape[1]),
        A_ub=csr_array(-system),
        b_ub=-np.ones(len(system)),
        bounds=(None, None),
        method="highs",
    )
    return {0: True, 2: False}.get(result.status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--task", default="mnist")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--compared", type=int, default=10, help="networks on the linprog side")
    parser.add_argument("--pairs", type=int, default=30, help="pairs a network on that side")
    parser.add_argument("--full", action="store_true", help="all pairs on that side")
    options = parser.parse_args()

    task = load_task(options.task, n_train=250, n_unseen=100, seed=0)
    begin = time.perf_counter()
    fits = fit_ensemble(SIZES, task, seeds=range(options.networks), check_every=10)
    training = time.perf_counter() - begin
    models = [fit.model for fit in fits]
    inputs = (task.x_train, task.y_train, task.x_unseen)
    labels = task.y_train.numpy()
    print(f"{len(models)} networks {SIZES} trained on {len(labels)} points in {training:.1f} s")

    begin = time.perf_counter()
    pair_proxy(models[0], *inputs)
    print(f"first call, with loading or compiling the kernels: {time.perf_counter() - begin:.2f} s")

    rng = np.random.default_rng(0)
    ours, theirs, agreed, decided, failed = [], [], 0, 0, 0
    for model in models[: options.compared]:
        best = np.inf
        for _ in range(3):
            begin = time.perf_counter()
            estimate = pair_proxy(model, *inputs)
            best = min(best, time.perf_counter() - begin)
        status = estimate.detail["status"]
        ours.append(best / status.size)
        train, unseen = frozen_features(model, task.x_train, task.x_unseen).values
        train_rows = margin_rows(train, labels, status.shape[1])
        count = status.size if options.full else min(options.pairs, status.size)
        for pair in rng.choice(status.size, size=count, replace=False):
            probe, target = divmod(int(pair), status.shape[1])
            begin = time.perf_counter()
            answer = feasible_by_linprog(train_rows, unseen[probe], target, status.shape[1])
            theirs.append(time.perf_counter() - begin)
            failed += answer is None
            decided += answer is not None
            agreed += answer is not None and status[probe, target] == (1 if answer else -1)
    ratio = np.mean(theirs) / np.mean(ours)
    print(f"linprog: {1e3 * np.mean(theirs):.1f} ms a pair over {len(theirs)} pairs (one thread)")
    print(f"engine, one thread: {1e3 * np.mean(ours):.4f} ms a pair, verified ({ratio:.0f} times)")
    print(f"agreement on {agreed} of {decided} decided pairs; linprog gave up on {failed}")

    best = np.inf
    for _ in range(2):
        begin = time.perf_counter()
        estimates = pair_proxy_ensemble(models, *inputs)
        best = min(best, time.perf_counter() - begin)
    pairs = sum(estimate.detail["pairs"] for estimate in estimates)
    undecided = sum(estimate.detail["undecided"] for estimate in estimates)
    ratio = np.mean(theirs) * pairs / best
    print(
        f"engine, {available_cores()} cores: {pairs} pairs of {len(models)} networks in "
        f"{best:.2f} s, {1e3 * best / pairs:.4f} ms a pair ({ratio:.0f} times); "
        f"{undecided} undecided"
    )
    print(f"the whole experiment, training included: {training + best:.1f} s")


if __name__ == "__main__":
    main()
