"""Sharper and better?

Train the same networks without regularisation, with augmentation, and with sharpness-aware
minimisation. Set each regularised network beside the one that started from the same weights:
is it better, is it sharper, and is it still sharper once both are rescaled, which changes
neither function?

    python demos/study_regularisation.py
"""

from __future__ import annotations

import tempfile

from common import options, save
from rich.console import Console
from rich.table import Table

from invariance.papers.mason_williams.regularisation._figures import scatter_figure
from invariance.papers.mason_williams.regularisation._reading import fitted_pairs, reader
from invariance.papers.mason_williams.regularisation._study import STUDY
from invariance.studies._engine import run_study
from invariance.studies.claims._paired_treatments import Effect, effect

METHODS = ("baseline", "augmentation", "sam")
SHOWN = ("hessian_trace", "sam_sharpness", "relative_flatness", "adaptive_trace")


def main(arguments: list[str] | None = None) -> list[Effect]:
    """Run the demo and return the effects, as trained and rescaled."""
    chosen = options(__doc__, arguments)
    scale = {**STUDY.quick.scale, "methods": METHODS}
    if chosen.small:
        scale |= {"epochs": 250, "batch_sizes": (32,), "test_rows": 100, "attacked_rows": 20}
    size = STUDY.quick.but(
        task="mnist" if chosen.task == "auto" else chosen.task,
        seed=chosen.seed,
        networks=4 if chosen.small else None,
        n_train=(100,) if chosen.small else None,
        scale=scale,
    )
    with tempfile.TemporaryDirectory() as folder:
        records = run_study(STUDY, size, out=folder, workers=1).records
    pairs = fitted_pairs(records)
    accuracy = {
        name: effect(name, "test_accuracy", entries, reader("targets", "test_accuracy"))
        for name, entries in pairs.items()
    }
    table = Table("method", "better?", "measure", "sharper?", "rescaled, same function")
    found = []
    for name, entries in pairs.items():
        for measure in SHOWN:
            before = effect(name, measure, entries, reader("measures", measure))
            after = effect(name, measure, entries, reader("rescaled", measure))
            found += [before, after]
            shown = [accuracy[name], before, after]
            numbers = ["-" if e.rank_biserial is None else f"{e.rank_biserial:+.2f}" for e in shown]
            table.add_row(name, numbers[0], measure, numbers[1], numbers[2])
    Console().print(table)
    print("Rank-biserial effects, pair by pair: +1 if every pair says yes, -1 if every pair no.")
    if pairs:
        save(scatter_figure(pairs, "sharper and better?"), chosen.out, "study-regularisation")
    return found


if __name__ == "__main__":
    main()
