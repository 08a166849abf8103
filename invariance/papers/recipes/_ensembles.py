"""What every recipe does that trains the networks of one cell with ``fit_ensemble``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invariance.core._errors import UsageError
from invariance.data import Task
from invariance.studies._config import Config
from invariance.studies._study import Context, Trained
from invariance.training import Fit, Progress, fit_ensemble
from invariance.training._fit import ModelSource


def settings_of_cell(configs: Sequence[Config], recipe: str) -> dict[str, Any]:
    """Return the settings that all of a batch's configurations share.

    Args:
        configs: Configurations that differ in their seeds alone.
        recipe: The recipe that they must be of.

    Returns:
        The settings of the cell.

    Raises:
        UsageError: If the configurations are not of this recipe, or not of one cell.
    """
    first = configs[0]
    if first.recipe != recipe or len({config.cell for config in configs}) != 1:
        raise UsageError(f"Expected configurations of one cell of {recipe!r}. Got {configs!r}.")
    return dict(first.settings)


def fit_cell(
    configs: Sequence[Config], context: Context, source: ModelSource, task: Task, **options: Any
) -> list[Fit]:
    """Train the networks of one cell together; one that diverges is kept and says so.

    Args:
        configs: Configurations of one cell.
        context: Device and progress.
        source: What to train, as for :func:`invariance.fit_ensemble`.
        task: The data.
        options: How to train, as for :func:`invariance.fit_ensemble`.

    Returns:
        One fit for each configuration.
    """

    def tell(done: int, total: int, info: Progress) -> None:
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
    """Return a fit as it is kept.

    Args:
        fit: The fit.
        facts: What it has to say beyond epochs, losses and accuracies.

    Returns:
        Its weights on the CPU, and its facts.
    """
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
