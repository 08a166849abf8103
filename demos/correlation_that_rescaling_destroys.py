"""A correlation that rescaling destroys.

Over many networks, raw sharpness correlates with the generalization gap. Then every
network is rescaled at random, which changes no prediction of any of them. The
correlation of raw sharpness is gone; that of invariant measures is the same to the last
digit.

    python demos/correlation_that_rescaling_destroys.py
"""

from __future__ import annotations

from common import options, save
from rich.console import Console

from invariance.checking import CorrelationStudy
from invariance.checking._experiment import ReportConfig, run_correlation
from invariance.reporting._plots import scatter_figure
from invariance.reporting._terminal import correlation_table

MEASURES = ("hessian_trace", "parameter_norm", "relative_flatness", "minimum_sharpness")


def main(arguments: list[str] | None = None) -> CorrelationStudy:
    """Run the demo and return the correlations."""
    chosen = options(__doc__, arguments)
    config = ReportConfig(
        task=chosen.task,
        n_train=100 if chosen.small else 500,
        networks=6 if chosen.small else 40,
        seed=chosen.seed,
        max_epochs=20 if chosen.small else 500,
    )
    study, notes = run_correlation(config, measures=MEASURES)
    Console().print(correlation_table(study))
    for note in notes:
        print(note)
    save(scatter_figure(study, MEASURES), chosen.out, "correlation-that-rescaling-destroys")
    return study


if __name__ == "__main__":
    main()
