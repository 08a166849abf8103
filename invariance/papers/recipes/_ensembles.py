"""What every recipe does that trains the networks of one cell with ``fit_ensemble``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invariance.core._errors import UsageError
from invariance.data import Task
from invariance.studies._config import Config
from invariance.studies._study import Context, Trained
from invariance.training import Fit, TrainingProgress, fit_ensemble
from invariance.training._fit import ModelSource


def settings_of_cell(configs: Sequence[Config], recipe: str) -> dict[str, Any]:
    """Return the settings that all of a batch's configurations share."""
    first = configs[0]
    if first.recipe != recipe or len({config.cell for config in configs}) != 1:
        raise UsageError(f"Expected configurations of one cell of {recipe!r}. Got {configs!r}.")
    return dict(first.settings)


def fit_cell(
    configs: Sequence[Config], context: Context, source: ModelSource, task: Task, **options: Any
) -> list[Fit]:
    """Train the networks of one cell together; one that diverges is kept and says so."""

    def tell(done: int, total: int, info: TrainingProgress) -> None:
        context.tell(done / total)

    return fit_ensemble(
        source,
        task,
        seeds=[config.seed for config in configs],
        device=context.device,
        progress=tell,
        on_divergence="keep",
        **options,
    )


def trained(fit: Fit, **facts: Any) -> Trained:
    """Return a fit as it is kept."""
    return Trained(
        {k: v.detach().cpu().contiguous() for k, v in fit.model.state_dict().items()},
        {
            "epochs": fit.epochs,
            "diverged": fit.diverged,
            "train_accuracy": fit.train_accuracy,
            "train_loss": fit.train_loss,
            "test_accuracy": fit.test_accuracy,
            **facts,
        },
    )
