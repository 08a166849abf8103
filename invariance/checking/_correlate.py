"""Correlation with the generalization gap, before and after every network is rescaled.

A correlation that a change of parameters without any change of function destroys was
never about the function. Each network gets its own random rescaling, the same for all
measures, and every correlation is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import invariance.transforms as T
from invariance.cells import Refusal
from invariance.core._errors import DataError, InvarianceError
from invariance.core._modules import clone, model_device, weight_layers
from invariance.core._progress import Progress
from invariance.core._rng import generator
from invariance.data import Task, cast_task
from invariance.measures._registry import AnyMeasure, Measure, resolve
from invariance.stats import RankCorrelation, holm, spearman
from invariance.transforms._base import Transform

#: How the networks are rescaled: name to a function from network index to transform.
Rescaling = Callable[[nn.Module, int], Transform]


@dataclass(frozen=True)
class CorrelationRow:
    """One measure's rank correlation with one target.

    Attributes:
        measure: The measure's Python name.
        target: What it is correlated with.
        n: Number of networks.
        rho: Spearman's rho; ``None`` where the measure is constant.
        ci_low: Lower end of the bootstrap 95 % interval.
        ci_high: Upper end.
        p_value: Two-sided permutation p-value.
        p_holm: The same, adjusted for the number of measures (Holm).
        rho_after_rescaling: Rho after a random layer scaling of every network.
        ci_low_after: Lower end of its interval.
        ci_high_after: Upper end.
        rho_after_neuron_rescaling: Rho after a layer and a neuron scaling of each.
        max_relative_change: Largest relative change of the measure over the networks
            under the layer scaling: zero up to round-off for an invariant measure.
    """

    measure: str
    target: str
    n: int
    rho: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    p_holm: float | None
    rho_after_rescaling: float | None
    ci_low_after: float | None
    ci_high_after: float | None
    rho_after_neuron_rescaling: float | None
    max_relative_change: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class CorrelationStudy:
    """All correlations, with the numbers behind them for plots.

    Attributes:
        rows: One row a measure.
        target: Name of the target.
        target_values: ``(n,)`` the target, a value a network.
        values: Measure to ``{"as trained": ..., "layer": ..., "neuron": ...}``, each
            ``(n,)``.
        refused: Measures that could not be computed, with reasons.
    """

    rows: tuple[CorrelationRow, ...]
    target: str
    target_values: tuple[float, ...]
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    refused: tuple[Refusal, ...] = ()


def random_layer_scaling(model: nn.Module, seed: int, *, spread: float = 30.0) -> Transform:
    """Draw a layer scaling: each hidden layer's factor log-uniform in ``[1/spread, spread]``.

    Args:
        model: The model, for its number of weight layers.
        seed: Seed of the draw.
        spread: Largest factor.

    Returns:
        The transform.
    """
    layers = len(weight_layers(model))
    draws = torch.rand(layers - 1, generator=generator(seed, "layer scaling"), dtype=torch.float64)
    cumulative = [math.exp((2 * float(u) - 1) * math.log(spread)) for u in draws] + [1.0]
    before = [1.0, *cumulative[:-1]]
    return T.LayerScaling([now / then for now, then in zip(cumulative, before, strict=True)])


def random_neuron_scaling(model: nn.Module, seed: int) -> Transform:
    """Draw a layer scaling followed by a scaling of every single neuron."""
    return T.Compose([random_layer_scaling(model, seed), T.NeuronScaling(seed=seed)])


RESCALINGS: Mapping[str, Rescaling] = {
    "layer": random_layer_scaling,
    "neuron": random_neuron_scaling,
}


def correlate(
    networks: Sequence[nn.Module],
    target: Sequence[float],
    task: Task,
    *,
    target_name: str = "generalization_gap",
    measures: Sequence[AnyMeasure] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    progress: Progress | None = None,
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
    return CorrelationStudy(rows, target_name, tuple(target), values, tuple(refused))


def _variants(
    networks: Sequence[nn.Module], dtype: torch.dtype, data: Task, seed: int
) -> dict[str, list[nn.Module]]:
    trained = [clone(network).to(dtype) for network in networks]
    example = data.x_train[:8]
    variants = {"as trained": trained}
    for name, rescaling in RESCALINGS.items():
        variants[name] = [
            rescaling(network, seed + 1_000 * i)(network, example)
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
