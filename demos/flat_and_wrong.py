"""Flat and wrong: a network that is right on every training point and on no other.

Two networks learn y = x_1 x_2 from 100 of 2^30 points. One computes it; the other keeps one
unit for each training point and answers 0 everywhere else. Both interpolate, and both attain
the least trace of the Hessian that an interpolating network can have, 4 sqrt(d + 1). Which
measures tell them apart? And where does sharpness-aware minimisation end?

    python demos/flat_and_wrong.py
"""

from __future__ import annotations

from common import options, save
from rich.console import Console
from rich.table import Table

from invariance.papers.wen.flat_not_general import (
    contest,
    draw_problem,
    minimum_trace,
    published_constants,
)
from invariance.papers.wen.flat_not_general._figures import trajectories
from invariance.papers.wen.flat_not_general._memoriser_or_generaliser import RankingRow
from invariance.papers.wen.flat_not_general._settings import CELLS, at_scale, config_of
from invariance.papers.wen.flat_not_general._study import STUDY, problem_of, train
from invariance.studies import Record
from invariance.studies._study import Context

SHOWN = ("hessian_trace", "minimum_sharpness", "fisher_rao_norm", "hessian_eigenvalues",
         "free_regions", "pair_proxy", "extension_count", "relative_flatness",
         "path_norm")  # fmt: skip

TRAINED = ("no bias, SAM", "no bias, GD + decay", "bias, SAM", "bias, GD + decay", "layer, SAM")


def main(arguments: list[str] | None = None) -> tuple[list[RankingRow], list[Record]]:
    """Run the demo; return the contest without an output bias, and the trained networks."""
    chosen = options(__doc__, arguments)
    console = Console()
    d, n = (12, 24) if chosen.small else (30, 100)
    data = draw_problem(chosen.seed, dimension=d, n_train=n, n_test=1_000)
    without = contest(data, output_bias=False, n_unseen=20, names=SHOWN)
    with_bias = contest(data, output_bias=True, n_unseen=20, names=SHOWN)
    table = Table(title=f"d = {d}, n = {n}: least trace {minimum_trace('plain', features=d + 1)}")
    for heading in ("measure", "memoriser", "generaliser", "verdict", "with an output bias"):
        table.add_column(heading)
    for row, other in zip(without, with_bias, strict=True):
        cells = (f"{row.memoriser:.5g}", f"{row.generaliser:.5g}", row.verdict, other.verdict)
        table.add_row(row.measure, *cells)
    console.print(table)
    for constant in published_constants(dimension=d, n_train=n):
        if not constant.survives:
            console.print(
                f"{constant.where}: '{constant.printed}' claims {constant.claimed:.4g} for the "
                f"{constant.quantity}; it is {constant.found:.4g}",
                markup=False,
                highlight=False,
            )

    size = STUDY.quick
    if chosen.small:
        size = size.but(
            scale={**size.scale, "width": 20, "epochs": 1e-6, "full_batch_epochs": 1e-6}
        )
    records = []
    for cell in TRAINED:
        config = config_of(cell, at_scale(CELLS[cell], size), size, chosen.seed)
        (trained,) = train([config], Context(size, "cpu", lambda share: None))
        log = trained.facts["log"]
        print(
            f"{cell}: test accuracy {log['test_accuracy'][-1]:.1%}, "
            f"sharpness {log['gauss_newton'][-1]:.4g} on {len(problem_of(config).x_train)} points"
        )
        records.append(Record(config, trained.facts, {}))
    save(trajectories(records), chosen.out, "flat-and-wrong")
    return without, records


if __name__ == "__main__":
    main()
