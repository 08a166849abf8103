"""How sure a correlation is: over other random subsets, and with more networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from invariance.core._errors import DataError, UsageError
from invariance.stats import random_effects
from invariance.stats._ranks import MINIMUM_POINTS, FloatArray, interval
from invariance.stats._resampled import bootstrap_counts, resampled_correlations
from invariance.studies._study import Record
from invariance.studies.claims._correlations import TableRow, column, names_of, split

#: Numbers of networks whose interval is worked out by default.
SIZES = (25, 50, 100, 150, 200, 250, 300)


def stability_rows(
    records: Sequence[Record],
    *,
    subset: Callable[[Record], str],
    measures: Sequence[str] | None = None,
    targets: Sequence[str] = ("test_accuracy", "generalization_gap"),
    seed: int = 0,
    resamples: int = 2_000,
    level: float = 0.95,
) -> list[TableRow]:
    """Say how far each correlation moves between random subsets of the data.

    Subsets with networks of their own (other training points) are independent samples: their
    mean is that of random effects, and ``between_sd`` is the spread beyond sampling noise.
    Subsets that measure the same networks on other unseen points are not: the mean's interval
    is then a bootstrap over networks, and the spread between subsets speaks for itself.
    """
    names = names_of(records, "measures", measures)
    wanted = names_of(records, "targets", targets)
    groups = split(records, subset)
    if len(groups) < 2:
        raise DataError(f"Expected at least two subsets. Got {list(groups)}.")
    ids = {label: [record.config.id for record in members] for label, members in groups.items()}
    if repeated := [label for label, own in ids.items() if len(set(own)) < len(own)]:
        raise DataError(f"Expected each network once in a subset. {repeated[0]!r} repeats some.")
    shared = set.intersection(*(set(own) for own in ids.values()))
    independent = sum(map(len, ids.values())) == len(set().union(*ids.values()))
    if not independent and len(shared) < MINIMUM_POINTS:
        raise DataError(
            "Expected subsets that share no network, or that all share at least "
            f"{MINIMUM_POINTS}. These share {len(shared)}."
        )
    if not independent:
        groups = {
            label: sorted((r for r in members if r.config.id in shared), key=_identity)
            for label, members in groups.items()
        }
    rows = []
    for target in wanted:
        for name in names:
            pairs = {
                label: (column(members, "measures", name), column(members, "targets", target))
                for label, members in groups.items()
            }
            summary = (
                _independent(pairs, level)
                if independent
                else _same_networks(pairs, seed, resamples, level)
            )
            rows.append({"measure": name, "target": target} | summary)
    return rows


def interval_width(
    records: Sequence[Record],
    measure: str,
    target: str,
    *,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    draws: int = 2_000,
    level: float = 0.95,
) -> list[TableRow]:
    """Say how wide the interval of a correlation is at ``n`` networks.

    Networks are drawn with replacement, ``n`` at a time, so that ``n`` may exceed what was
    trained; the spread of rho over the draws is what a study of ``n`` networks would see.
    """
    x = column(records, "measures", names_of(records, "measures", [measure])[0])
    y = column(records, "targets", names_of(records, "targets", [target])[0])
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if x.size < MINIMUM_POINTS or min(sizes) < MINIMUM_POINTS:
        raise DataError(
            f"Expected at least {MINIMUM_POINTS} networks in the study and in each size. "
            f"Got {x.size} and {min(sizes)}."
        )
    observed = resampled_correlations(x[None], y[None], np.ones((1, x.size)))[0, 0, 0]
    if not np.isfinite(observed):
        raise UsageError(f"{measure!r} or {target!r} is constant: it has no correlation.")
    quantile = float(stats.norm.ppf((1 + level) / 2))
    rows = []
    for size in sizes:
        counts = bootstrap_counts(x.size, draws, seed, size=size)
        rho = resampled_correlations(x[None], y[None], counts)[:, 0, 0]
        low, high = interval(rho, level)
        kept = rho[np.isfinite(rho)]
        rows.append(
            {
                "measure": measure,
                "target": target,
                "n": size,
                "trained": int(x.size),
                "rho": float(observed),
                "rho_low": low,
                "rho_high": high,
                "width": high - low,
                "width_by_formula": _formula_width(float(observed), size, quantile),
                "power": float((np.abs(_z(kept)) > quantile * _error(kept, size)).mean()),
            }
        )
    return rows


def _identity(record: Record) -> str:
    return record.config.id


def _spread(found: dict[str, tuple[float, int]]) -> dict[str, Any]:
    rhos = [rho for rho, _ in found.values() if math.isfinite(rho)]
    return {
        "subsets": {
            label: {"rho": rho if math.isfinite(rho) else None, "n": n}
            for label, (rho, n) in found.items()
        },
        "rho_min": min(rhos, default=None),
        "rho_max": max(rhos, default=None),
        "rho_sd": float(np.std(rhos, ddof=1)) if len(rhos) > 1 else None,
        "rho_mean": None,
        "ci_low": None,
        "ci_high": None,
        "between_sd": None,
        "heterogeneity_p": None,
        "method": "fewer than two subsets with a correlation",
    }


def _rho(x: FloatArray, y: FloatArray) -> tuple[float, int]:
    known = np.isfinite(x) & np.isfinite(y)
    n = int(known.sum())
    if n < MINIMUM_POINTS:
        return math.nan, n
    ones = np.ones((1, n))
    return float(resampled_correlations(x[known][None], y[known][None], ones)[0, 0, 0]), n


def _independent(pairs: dict[str, tuple[FloatArray, FloatArray]], level: float) -> dict[str, Any]:
    found = {label: _rho(x, y) for label, (x, y) in pairs.items()}
    summary = _spread(found)
    usable = [(rho, n) for rho, n in found.values() if math.isfinite(rho)]
    if len(usable) < 2:
        return summary
    pooled = random_effects([rho for rho, _ in usable], [n for _, n in usable], level=level)
    return summary | {
        "rho_mean": pooled.mean.value,
        "ci_low": pooled.mean.ci_low,
        "ci_high": pooled.mean.ci_high,
        "between_sd": pooled.between_sd,
        "heterogeneity_p": pooled.heterogeneity_p,
        "method": pooled.mean.method,
    }


def _same_networks(
    pairs: dict[str, tuple[FloatArray, FloatArray]], seed: int, resamples: int, level: float
) -> dict[str, Any]:
    # Only networks with every number: each resample then holds the same ones in all subsets.
    known = np.all([np.isfinite(x) & np.isfinite(y) for x, y in pairs.values()], axis=0)
    kept = {label: (x[known], y[known]) for label, (x, y) in pairs.items()}
    found = {label: _rho(x, y) for label, (x, y) in kept.items()}
    summary = _spread(found)
    usable = [label for label, (rho, _) in found.items() if math.isfinite(rho)]
    if len(usable) < 2:
        return summary
    counts = bootstrap_counts(int(known.sum()), resamples, seed)
    drawn = np.mean(
        [
            resampled_correlations(kept[label][0][None], kept[label][1][None], counts)[:, 0, 0]
            for label in usable
        ],
        axis=0,
    )
    low, high = interval(drawn, level)
    return summary | {
        "rho_mean": float(np.mean([found[label][0] for label in usable])),
        "ci_low": low,
        "ci_high": high,
        "method": "mean over subsets of the same networks; bootstrap over networks",
    }


def _z(rho: FloatArray) -> FloatArray:
    z: FloatArray = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return z


def _error(rho: FloatArray, n: int) -> FloatArray:
    error: FloatArray = np.sqrt((1 + rho**2 / 2) / (n - 3))
    return error


def _formula_width(rho: float, n: int, quantile: float) -> float:
    centre, half = _z(np.array(rho)), quantile * _error(np.array(rho), n)
    return float(np.tanh(centre + half) - np.tanh(centre - half))
