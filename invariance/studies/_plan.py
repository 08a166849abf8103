"""From options to batches: what has to be trained and measured, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from invariance.core._errors import UsageError
from invariance.studies._config import Config
from invariance.studies._study import Options, Study


@dataclass(frozen=True)
class Batch:
    """Networks of one cell that train and are measured together.

    Attributes:
        configs: What they are.
        cost: Their work, relative to other batches.
    """

    configs: tuple[Config, ...]
    cost: float


def grid_of(study: Study, options: Options) -> tuple[Config, ...]:
    """Return the networks of a study, each once, in the order of its grid."""
    configs = tuple({config.id: config for config in study.grid(options)}.values())
    if not configs:
        raise UsageError(f"The grid of study {study.name!r} is empty for {options}.")
    return configs


def batches_of(study: Study, configs: Sequence[Config]) -> list[Batch]:
    """Cut a grid into batches: within a cell, in the order of the grid, expensive ones first.

    The cut depends on the whole grid alone, not on what is done already.
    """
    cells: dict[str, list[Config]] = {}
    for config in configs:
        cells.setdefault(config.cell, []).append(config)
    batches = []
    for members in cells.values():
        size = study.batch_size(members[0])
        if size < 1:
            raise UsageError(
                f"batch_size of study {study.name!r} must give a positive integer. Got {size}."
            )
        for start in range(0, len(members), size):
            part = tuple(members[start : start + size])
            batches.append(Batch(part, sum(study.cost(config) for config in part)))
    return sorted(batches, key=lambda batch: -batch.cost)
