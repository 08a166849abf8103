"""Folding BatchNorm: the network that is deployed is not the network that was measured.

Every deployment tool folds BatchNorm into the layer before it. The function stays; the
Hessian trace does not. And while BatchNorm is still there, the weights before it can be
multiplied by anything at all.

    python demos/folding_batchnorm.py
"""

from __future__ import annotations

from common import options, save
from matplotlib.figure import Figure
from rich.console import Console

import invariance as inv
from invariance.checking import Report


def main(arguments: list[str] | None = None) -> Report:
    """Run the demo and return its report."""
    chosen = options(__doc__, arguments)
    task = inv.load_task(
        chosen.task, n_train=100 if chosen.small else 1_000, n_unseen=50, seed=chosen.seed
    )
    widths = (16, 8) if chosen.small else (128, 64)
    network = inv.models.mlp(
        [task.x_train.shape[1], *widths, task.n_classes], batch_norm=True, seed=chosen.seed
    )
    trained = inv.fit(network, task, seed=chosen.seed, lr=0.05, max_epochs=200)
    print(f"{task.name}: test accuracy {trained.test_accuracy:.1%} after {trained.epochs} epochs")

    factors = [0.25, 1.0, 4.0, 16.0]
    report = inv.check(
        trained.model,
        task,
        transforms=[
            inv.transforms.FoldBatchNorm(),
            *(inv.transforms.BatchNormScaling(factor) for factor in factors),
        ],
        measures=["hessian_trace", "relative_flatness", "path_norm", "activation_patterns"],
    )
    Console().print(str(report), markup=False, highlight=False, soft_wrap=True)
    save(_figure(report, factors), chosen.out, "folding-batchnorm")
    return report


def _figure(report: Report, factors: list[float]) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in (("hessian_trace", "#d55e00"), ("relative_flatness", "#0072b2")):
        rows = [row for row in report.rows if row.measure == name]
        scaled = {row.label: row for row in rows if row.transform == "BatchNormScaling"}
        axes.loglog(
            factors[: len(scaled)],
            [row.after for row in scaled.values()],
            "o-",
            color=colour,
            label=f"{name}, weights before BatchNorm scaled",
        )
        folded = next((row for row in rows if row.transform == "FoldBatchNorm"), None)
        if folded is not None:
            axes.axhline(folded.after, color=colour, linestyle=":", label=f"{name}, folded")
    axes.set_xlabel("factor on every weight before a BatchNorm")
    axes.set_ylabel("value of the measure")
    axes.set_title("One function in eval mode", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
