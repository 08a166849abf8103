"""Correlation with the generalization gap, before and after every network is rescaled.

A correlation that a change of parameters without any change of function destroys was
never about the function. Each network gets its own random rescaling, the same for all
measures, and every correlation is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from invariance.cells import Refusal
from invariance.core._errors import DataError, InvarianceError
from invariance.core._modules import clone, model_device
from invariance.core._progress import TellProgress
from invariance.data import Task, cast_task
from invariance.measures._registry import AnyMeasure, Measure, resolve
from invariance.reporting import CorrelationRow, CorrelationStudy
from invariance.stats import RankCorrelation, holm, spearman
from invariance.transforms import UNITS_RESCALED, random_rescaling

#: What is done to every network, beside leaving it as trained: whether single units are scaled.
_RESCALED: Mapping[str, bool] = {"layer": False, "neuron": True}


def correlate(
    networks: Sequence[nn.Module],
    target: Sequence[float],
    task: Task,
    *,
    target_name: str = "generalization_gap",
    measures: Sequence[AnyMeasure] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    progress: TellProgress | None = None,
) -> CorrelationStudy:
    """Correlate every measure with ``target`` over networks, as trained and rescaled.

    Args:
        networks: The trained networks.
        target: One value a network, for example its generalization gap.
        task: The data that the measures read.
        target_name: What the target is called in the rows.
        measures: As for :func:`invariance.check`.
        seed: Seed of rescalings and of the resampling.
        dtype: Precision of the measurements.
        progress: Called as ``progress(done, total, what)``.

    Returns:
        Rows and values; a measure that fails on any network is refused with its reason.

    Raises:
        DataError: If there is not one target value a network, or fewer than four networks.

    Example:
        >>> import invariance as inv
        >>> from invariance.checking import correlate
        >>> task = inv.load_task("digits", n_train=100)
        >>> fits = inv.fit_ensemble([64, 8, 10], task, seeds=range(5))
        >>> networks = [found.model for found in fits]
        >>> study = correlate(networks, [1.0, 2.0, 3.0, 4.0, 5.0], task, measures=["path_norm"])
        >>> (row,) = study.rows
        >>> row.measure, row.n
        ('path_norm', 5)
    """
    if len(networks) != len(target):
        raise DataError(
            f"Expected one target value a network. Got {len(target)} for {len(networks)} networks."
        )
    chosen = resolve(measures)
    data = cast_task(task, dtype, model_device(networks[0]))
    variants = _variants(networks, dtype, data, seed)
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    refused: list[Refusal] = []
    for position, measure in enumerate(chosen):
        if progress is not None:
            progress(position, len(chosen), f"{measure.name} of {len(networks)} networks")
        try:
            values[measure.name] = {
                name: tuple(_values(measure, models, data)) for name, models in variants.items()
            }
        except InvarianceError as error:
            refused.append(Refusal(measure.name, str(error), "ensemble"))
    before = {name: _rho(found["as trained"], target, seed) for name, found in values.items()}
    adjusted = dict(zip(before, holm([found.p_value for found in before.values()]), strict=True))
    rows = tuple(
        _row(name, target_name, before[name], adjusted[name], values[name], target, seed)
        for name in values
    )
    how = f"{UNITS_RESCALED}, in the column of neurons only"
    return CorrelationStudy(rows, target_name, tuple(target), values, tuple(refused), how)


def _variants(
    networks: Sequence[nn.Module], dtype: torch.dtype, data: Task, seed: int
) -> dict[str, list[nn.Module]]:
    trained = [clone(network).to(dtype) for network in networks]
    example = data.x_train[:8]
    variants = {"as trained": trained}
    for name, units in _RESCALED.items():
        variants[name] = [
            random_rescaling(network, example, seed + 1_000 * i, units=units)(network, example)
            for i, network in enumerate(trained)
        ]
    return variants


def _values(measure: Measure, models: Sequence[nn.Module], data: Task) -> list[float]:
    return [float(estimate) for estimate in measure.of_many(models, **measure.inputs(data))]


def _rho(values: Sequence[float], target: Sequence[float], seed: int) -> RankCorrelation:
    return spearman(list(values), list(target), seed=seed)


def _row(
    name: str,
    target_name: str,
    before: RankCorrelation,
    p_holm: float | None,
    values: Mapping[str, tuple[float, ...]],
    target: Sequence[float],
    seed: int,
) -> CorrelationRow:
    after = _rho(values["layer"], target, seed)
    neuron = _rho(values["neuron"], target, seed)
    change = max(
        abs(new - old) / abs(old) if old else abs(new)
        for old, new in zip(values["as trained"], values["layer"], strict=True)
    )
    return CorrelationRow(
        measure=name,
        target=target_name,
        n=before.n,
        rho=before.rho,
        ci_low=before.ci_low,
        ci_high=before.ci_high,
        p_value=before.p_value,
        p_holm=p_holm,
        rho_after_rescaling=after.rho,
        ci_low_after=after.ci_low,
        ci_high_after=after.ci_high,
        rho_after_neuron_rescaling=neuron.rho,
        max_relative_change=change,
    )
