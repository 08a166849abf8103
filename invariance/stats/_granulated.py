"""How a measure fares when one hyperparameter changes and all others stay.

A correlation over a grid of hyperparameters can come from one of them alone. The granulated
Kendall coefficient (Jiang et al., "Fantastic Generalization Measures and Where to Find
Them", arXiv 1912.02178) averages tau over the lines of the grid; the sign error (Dziugaite
et al., "In Search of Robust Measures of Generalization", arXiv 2010.11924) asks in each
environment, a change of one hyperparameter from one value to another, how often the measure
moves the wrong way, and judges a measure by its worst environment.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from invariance.core._errors import DataError, unknown_name
from invariance.core._rng import numpy_generator
from invariance.stats._ranks import FloatArray, interval, require_pairs

Settings = Mapping[str, Sequence[Hashable]]

#: Fewer lines of a grid than this give no interval.
MINIMUM_LINES = 4


@dataclass(frozen=True)
class AxisTau:
    """Kendall's tau along one hyperparameter, averaged over settings of all others.

    Attributes:
        setting: The hyperparameter.
        tau: The mean; ``None`` if no line of the grid has two values of it.
        ci_low: Lower end of a bootstrap interval over lines; ``None`` below four lines.
        ci_high: Upper end.
        lines: Number of lines: combinations of all other settings with at least two values.
        skipped: Combinations with a single value, which say nothing.
    """

    setting: str
    tau: float | None
    ci_low: float | None
    ci_high: float | None
    lines: int
    skipped: int


@dataclass(frozen=True)
class GranulatedKendall:
    """The granulated Kendall coefficient.

    Attributes:
        axes: Tau along each hyperparameter.
        mean: Their mean, the coefficient of the paper; ``None`` if no axis has one.
    """

    axes: tuple[AxisTau, ...]
    mean: float | None


@dataclass(frozen=True)
class Environment:
    """One change of one hyperparameter.

    Attributes:
        setting: The hyperparameter.
        first: Its one value.
        second: Its other value.
        error: Weighted share of pairs in which measure and target move in opposite
            directions; a tie counts one half. ``None`` if no pair has weight.
        pairs: Number of pairs with weight.
        dropped: Pairs without: their targets may differ by sampling of test points alone.
    """

    setting: str
    first: Hashable
    second: Hashable
    error: float | None
    pairs: int
    dropped: int


@dataclass(frozen=True)
class SignError:
    """The sign error of a measure.

    Attributes:
        environments: Every environment that the networks contain.
        robust: Largest error of an environment: the measure's worst case.
        mean: Mean error over environments; 0.5 is a coin's.
    """

    environments: tuple[Environment, ...]
    robust: float | None
    mean: float | None


def granulated_kendall(
    measure: Sequence[float] | FloatArray,
    target: Sequence[float] | FloatArray,
    settings: Settings,
    *,
    along: Sequence[str] | None = None,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> GranulatedKendall:
    """Average tau along each hyperparameter with all others fixed.

    Pairs that agree in the hyperparameter (replicates) are not compared. To compare only
    networks of the same seed, give the seed as a setting and leave it out of ``along``.

    Args:
        measure: ``(n,)`` values of the measure.
        target: ``(n,)`` values of the target, such as the generalization gap.
        settings: Hyperparameter to ``n`` values.
        along: Hyperparameters to move along; all by default.
        resamples: Bootstrap resamples of lines, which share no networks.
        level: Confidence level.
        seed: Seed of the resampling.

    Returns:
        Tau (ties count zero, as in the paper) along each hyperparameter and their mean.

    Raises:
        DataError: If lengths differ or values are not finite.
        UsageError: If ``along`` names no setting.

    Example:
        The measure follows the width and runs against the rate:

        >>> settings = {"width": [1, 1, 2, 2], "rate": [1, 2, 1, 2]}
        >>> found = granulated_kendall([1, 2, 3, 4], [2, 1, 4, 3], settings)
        >>> {axis.setting: axis.tau for axis in found.axes}, found.mean
        ({'width': 1.0, 'rate': -1.0}, 0.0)
    """
    x, y = _checked(measure, target, settings)
    axes = []
    for name in _along(settings, along):
        taus, skipped = [], 0
        for line in _lines(settings, name):
            i, j = _pairs(line, settings[name])
            if i.size:
                taus.append(float((np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])).mean()))
            else:
                skipped += 1
        low, high = None, None
        if len(taus) >= MINIMUM_LINES:
            rows = numpy_generator(seed).integers(0, len(taus), (resamples, len(taus)))
            low, high = interval(np.array(taus)[rows].mean(axis=1), level)
        tau = float(np.mean(taus)) if taus else None
        axes.append(AxisTau(name, tau, low, high, len(taus), skipped))
    known = [axis.tau for axis in axes if axis.tau is not None]
    return GranulatedKendall(tuple(axes), float(np.mean(known)) if known else None)


def sign_error(
    measure: Sequence[float] | FloatArray,
    target: Sequence[float] | FloatArray,
    settings: Settings,
    *,
    along: Sequence[str] | None = None,
    test_points: int | None = None,
    minimum_weight: float = 0.0,
) -> SignError:
    """Say in each environment how often the measure moves against the target.

    Args:
        measure: ``(n,)`` values of the measure.
        target: ``(n,)`` values that it should move with, such as the generalization gap.
        settings: Hyperparameter to ``n`` values.
        along: Hyperparameters whose changes are environments; all by default.
        test_points: Test points behind each target value, an error or accuracy between 0 and
            1: pairs are then weighted by :func:`hoeffding_weight`. ``None`` weights alike.
        minimum_weight: Pairs of no larger weight are dropped.

    Returns:
        The error ``E[1 - sgn(dy) sgn(dx)] / 2`` of each environment, the worst and the mean.

    Raises:
        DataError: If lengths differ or values are not finite.
        UsageError: If ``along`` names no setting.

    Example:
        >>> settings = {"width": [1, 1, 2, 2], "rate": [1, 2, 1, 2]}
        >>> found = sign_error([1, 2, 3, 4], [2, 1, 4, 3], settings)
        >>> {place.setting: place.error for place in found.environments}, found.robust
        ({'width': 0.0, 'rate': 1.0}, 1.0)
    """
    x, y = _checked(measure, target, settings)
    environments = []
    for name in _along(settings, along):
        errors: dict[tuple[Hashable, Hashable], list[tuple[FloatArray, FloatArray]]] = {}
        for line in _lines(settings, name):
            at: dict[Hashable, list[int]] = {}
            for k in line:
                at.setdefault(settings[name][k], []).append(k)
            for first, second in itertools.combinations(dict.fromkeys(settings[name]), 2):
                if first in at and second in at:
                    i, j = (g.ravel() for g in np.meshgrid(at[first], at[second]))
                    wrong = (1 - np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])) / 2
                    weight = (
                        np.ones(i.size)
                        if test_points is None
                        else hoeffding_weight(y[i] - y[j], test_points)
                    )
                    errors.setdefault((first, second), []).append((wrong, weight))
        for (first, second), parts in errors.items():
            wrong, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
            kept = weight > minimum_weight
            error = float((wrong * weight)[kept].sum() / weight[kept].sum()) if kept.any() else None
            environments.append(
                Environment(name, first, second, error, int(kept.sum()), int((~kept).sum()))
            )
    known = [found.error for found in environments if found.error is not None]
    return SignError(
        tuple(environments),
        max(known) if known else None,
        float(np.mean(known)) if known else None,
    )


def hoeffding_weight(difference: FloatArray, test_points: int) -> FloatArray:
    """Weigh pairs by how surely two errors, estimated on test points, differ.

    By Hoeffding's inequality each estimate is within half of ``difference`` of the truth
    with probability at least ``1 - 2 exp(-2 n (difference / 2)^2)``; the weight is the
    chance that both are, as in Dziugaite et al.

    Args:
        difference: Differences of estimated errors.
        test_points: Points behind each estimate.

    Returns:
        Weights between 0 and 1; zero where the bound says nothing.

    Example:
        >>> import numpy as np
        >>> hoeffding_weight(np.array([0.0, 1.0]), 10_000).tolist()
        [0.0, 1.0]
    """
    sure = 1 - 2 * np.exp(-2 * test_points * (np.asarray(difference) / 2) ** 2)
    weight: FloatArray = np.maximum(0.0, sure) ** 2
    return weight


def _checked(
    measure: Sequence[float] | FloatArray,
    target: Sequence[float] | FloatArray,
    settings: Settings,
) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(measure, dtype=np.float64), np.asarray(target, dtype=np.float64)
    require_pairs(x, y)
    for name, values in settings.items():
        if len(values) != x.size:
            raise DataError(f"Expected {x.size} values of {name!r}. Got {len(values)}.")
    if not settings:
        raise DataError("Expected at least one hyperparameter. Got none.")
    return x, y


def _along(settings: Settings, along: Sequence[str] | None) -> list[str]:
    for name in along or ():
        if name not in settings:
            raise unknown_name("setting", name, settings)
    return list(settings if along is None else along)


def _lines(settings: Settings, moved: str) -> list[list[int]]:
    """Group networks that agree in everything but ``moved``."""
    others = [values for name, values in settings.items() if name != moved]
    lines: dict[tuple[Hashable, ...], list[int]] = {}
    for k in range(len(settings[moved])):
        lines.setdefault(tuple(values[k] for values in others), []).append(k)
    return list(lines.values())


def _pairs(line: Sequence[int], values: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(i, j) for i, j in itertools.combinations(line, 2) if values[i] != values[j]]
    found = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return found[:, 0], found[:, 1]
