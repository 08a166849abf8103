"""The same function, a hundred times the sharpness.

Train a network, multiply its first layer by alpha and divide the second by alpha. A ReLU
does not notice: every output stays bitwise the same. The Hessian trace does notice, by
exactly as much as one formula says.

    python demos/same_function_sharper.py
"""

from __future__ import annotations

from common import options, save
from rich.console import Console

import invariance as inv
from invariance.checking import alpha_sweep
from invariance.reporting._plots import sweep_figure


def main(arguments: list[str] | None = None) -> inv.Report:
    """Run the demo and return its report."""
    chosen = options(__doc__, arguments)
    task = inv.load_task(
        chosen.task, n_train=100 if chosen.small else 1_000, n_unseen=50, seed=chosen.seed
    )
    widths = (16, 8) if chosen.small else (256, 128)
    network = inv.models.mlp([task.x_train.shape[1], *widths, task.n_classes], seed=chosen.seed)
    trained = inv.fit(network, task, seed=chosen.seed, lr=0.05, max_epochs=200)
    print(f"{task.name}: test accuracy {trained.test_accuracy:.1%} after {trained.epochs} epochs")

    report = inv.check(
        trained.model,
        task,
        transforms=[inv.transforms.LayerScaling([alpha, 1 / alpha, 1.0]) for alpha in (4.0, 32.0)],
        measures=[
            "hessian_trace",
            "parameter_norm",
            "relative_flatness",
            "adaptive_trace",
            "fisher_rao_norm",
            "path_norm",
            "activation_patterns",
        ],
    ).extended(sweep=alpha_sweep(trained.model, task))
    Console().print(str(report), markup=False, highlight=False, soft_wrap=True)
    save(sweep_figure(report.sweep), chosen.out, "same-function-sharper")
    return report


if __name__ == "__main__":
    main()
