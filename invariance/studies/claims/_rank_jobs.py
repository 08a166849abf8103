"""Rank correlations of one group of networks, computed together, read row by row.

Variables that are known for the same networks share one set of resamples; a measure with
gaps gets its own. So nothing is imputed, and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from invariance.stats._ranks import MINIMUM_POINTS, FloatArray, interval
from invariance.stats._resampled import (
    bootstrap_counts,
    partial_from_correlations,
    permutation_p_values,
    resampled_correlations,
    resampled_taus,
)
from invariance.stats._stratified import stratified_spearman

Mask = npt.NDArray[np.bool_]

#: What kind of variable, and its name.
Key = tuple[str, str]

#: A number and the ends of its interval.
Interval = tuple[float | None, float | None, float | None]

#: Largest relative change of a measure that still counts as round-off.
FIXED = 1e-9

#: Resamples behind an interval of Kendall's tau, whose cost grows with the square of n.
TAU_RESAMPLES = 2_000

#: Name of the partial correlation given all covariates jointly.
JOINTLY = "all"


class GroupCorrelations:
    """All correlations within one group of networks.

    Shapes: ``measures (n,)``, ``rescaled (n,)``, ``targets (n,)``, ``given (n,)``.
    """

    def __init__(
        self,
        *,
        measures: Mapping[str, FloatArray],
        rescaled: Mapping[str, FloatArray],
        targets: Mapping[str, FloatArray],
        given: Mapping[str, FloatArray],
        strata: Sequence[str] | None,
        seed: int,
        resamples: int,
        level: float,
    ) -> None:
        self.size = len(next(iter(targets.values())))
        self.values = {
            (kind, name): values
            for kind, group in (
                ("measure", measures),
                ("rescaled", rescaled),
                ("target", targets),
                ("given", given),
            )
            for name, values in group.items()
        }
        self.known = {key: np.isfinite(values) for key, values in self.values.items()}
        self.strata, self.seed, self.resamples, self.level = strata, seed, resamples, level
        self.covariates = [name for name in given if self.known["given", name].any()]
        self.unrecorded = [name for name in given if name not in self.covariates]
        self._wanted = self._plan()
        self._jobs: dict[bytes, _Job] = {}

    def row(self, measure: str, target: str) -> dict[str, Any]:
        """Say everything about one measure and one target, in plain values."""
        x, y = ("measure", measure), ("target", target)
        mask = self._mask(x, y)
        n = int(mask.sum())
        job = self._job(mask) if n >= MINIMUM_POINTS else None
        rho, low, high = (None, None, None) if job is None else job.rho(x, y)
        row: dict[str, Any] = {
            "n": n,
            "left_out": self.size - n,
            "rho": rho,
            "ci_low": low,
            "ci_high": high,
            "p_value": None if job is None or rho is None else job.p_value(x, y),
            "level": self.level,
        }
        tau = (None, None, None) if job is None else job.tau(x, y)
        row |= dict(zip(("kendall", "kendall_ci_low", "kendall_ci_high"), tau, strict=True))
        row |= {"partial": self._partials(x, y)}
        row |= self._rescaled(measure, y) | self._within(x, y, mask)
        return row | {"note": self._note(x, y, mask, rho)}

    def _plan(self) -> dict[bytes, list[Key]]:
        """List, for each set of networks, the measures that are correlated over it."""
        wanted: dict[bytes, dict[Key, None]] = {}
        targets = [key for key in self.values if key[0] == "target"]
        measures = [key for key in self.values if key[0] in ("measure", "rescaled")]
        for y in targets:
            for names in ([], *self._covariate_sets().values()):
                for x in measures:
                    mask = self._mask(x, y, names)
                    wanted.setdefault(mask.tobytes(), {})[x] = None
        return {mask: list(keys) for mask, keys in wanted.items()}

    def _covariate_sets(self) -> dict[str, list[str]]:
        sets = {name: [name] for name in self.covariates}
        return sets | ({JOINTLY: self.covariates} if len(self.covariates) > 1 else {})

    def _mask(self, x: Key, y: Key, names: Sequence[str] = ()) -> Mask:
        mask: Mask = self.known[x] & self.known[y]
        for name in names:
            mask = mask & self.known["given", name]
        return mask

    def _job(self, mask: Mask) -> _Job:
        key = mask.tobytes()
        if key not in self._jobs:
            # What is known for all these networks shares one set of resamples.
            right = [k for k in self.values if k[0] in ("target", "given")]
            rows = [*self._wanted[key], *(k for k in right if self.known[k][mask].all())]
            self._jobs[key] = _Job(
                {k: self.values[k][mask] for k in rows}, self.seed, self.resamples, self.level
            )
        return self._jobs[key]

    def _partials(self, x: Key, y: Key) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: {"rho": None, "ci_low": None, "ci_high": None, "p_value": None, "n": 0,
                   "given": []}
            for name in self.unrecorded
        }  # fmt: skip
        for label, names in self._covariate_sets().items():
            mask = self._mask(x, y, names)
            n = int(mask.sum())
            rho, low, high, p = None, None, None, None
            if n >= len(names) + MINIMUM_POINTS:
                rho, low, high = self._job(mask).partial(x, y, names)
                if rho is not None:
                    p = t_p_value(rho, n - 2 - len(names))
            found[label] = {
                "rho": rho, "ci_low": low, "ci_high": high, "p_value": p, "n": n, "given": names,
            }  # fmt: skip
        return found

    def _rescaled(self, measure: str, y: Key) -> dict[str, Any]:
        x, before = ("rescaled", measure), self.values["measure", measure]
        after = self.values[x]
        mask = self._mask(x, y)
        rho, low, high = None, None, None
        if mask.sum() >= MINIMUM_POINTS:
            rho, low, high = self._job(mask).rho(x, y)
        change = relative_change(before, after)
        same_networks = bool((np.isfinite(before) == np.isfinite(after)).all())
        return {
            "n_after_rescaling": int(mask.sum()),
            "rho_after_rescaling": rho,
            "ci_low_after": low,
            "ci_high_after": high,
            "max_relative_change": change,
            "stays_fixed": None if change is None else bool(change <= FIXED and same_networks),
        }

    def _within(self, x: Key, y: Key, mask: Mask) -> dict[str, Any]:
        names = ("rho_within", "rho_within_ci_low", "rho_within_ci_high")
        if self.strata is None or mask.sum() < MINIMUM_POINTS:
            return dict.fromkeys(names)
        labels = [label for label, used in zip(self.strata, mask, strict=True) if used]
        found = stratified_spearman(
            self.values[x][mask], self.values[y][mask], labels, level=self.level, resamples=0
        )
        within = found.within
        return dict(zip(names, (within.value, within.ci_low, within.ci_high), strict=True))

    def _note(self, x: Key, y: Key, mask: Mask, rho: float | None) -> str:
        if mask.sum() < MINIMUM_POINTS:
            return f"fewer than {MINIMUM_POINTS} networks with both numbers"
        if rho is None:
            constant = [key[1] for key in (x, y) if np.ptp(self.values[key][mask]) == 0]
            return f"{' and '.join(constant)} constant: no correlation is defined"
        return "" if mask.all() else f"{int((~mask).sum())} networks without a finite number"


def relative_change(before: FloatArray, after: FloatArray) -> float | None:
    """Return the largest relative change over networks that have both numbers.

    Shapes: ``before (n,)``, ``after (n,)``.
    """
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return None
    old, new = before[both], after[both]
    scale = np.where(old == 0, 1.0, np.abs(old))
    return float((np.abs(new - old) / scale).max())


def t_p_value(rho: float, freedom: int) -> float:
    """Two-sided p-value of a (partial) correlation by the t distribution."""
    statistic = abs(rho) * math.sqrt(freedom / max(1 - rho**2, np.finfo(float).tiny))
    return float(2 * stats.t.sf(statistic, freedom))


class _Job:
    """Correlations among variables that are all known for the same networks."""

    def __init__(
        self, values: Mapping[Key, FloatArray], seed: int, resamples: int, level: float
    ) -> None:
        self.values, self.seed, self.resamples, self.level = values, seed, resamples, level
        self.left = {key: i for i, key in enumerate(values)}
        right = [key for key in values if key[0] in ("target", "given")]
        self.right = {key: i for i, key in enumerate(right)}
        matrix = np.stack(list(values.values()))
        self.right_matrix = np.stack([values[key] for key in right])
        self.n = matrix.shape[1]
        counts = bootstrap_counts(self.n, resamples, seed)
        self.observed = resampled_correlations(matrix, self.right_matrix, np.ones((1, self.n)))
        self.drawn = resampled_correlations(matrix, self.right_matrix, counts)
        self._p_values: dict[Key, FloatArray] = {}
        self._partials: dict[tuple[object, ...], tuple[FloatArray, FloatArray]] = {}
        self._tau_counts = counts[:TAU_RESAMPLES]

    def rho(self, x: Key, y: Key) -> Interval:
        i, j = self.left[x], self.right[y]
        return self._with_interval(self.observed[0, i, j], self.drawn[:, i, j])

    def p_value(self, x: Key, y: Key) -> float:
        if y not in self._p_values:
            rows = np.stack([v for k, v in self.values.items() if k[0] == "measure"])
            self._p_values[y] = permutation_p_values(
                rows,
                self.values[y],
                draws=self.resamples,
                rng=np.random.default_rng([self.seed, 1]),
            )
        names = [key for key in self.left if key[0] == "measure"]
        return float(self._p_values[y][names.index(x)])

    def tau(self, x: Key, y: Key) -> Interval:
        a, b = self.values[x], self.values[y]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            return None, None, None
        drawn = resampled_taus(a[None], b[None], self._tau_counts)[:, 0, 0]
        return self._with_interval(float(stats.kendalltau(a, b).statistic), drawn)

    def partial(self, x: Key, y: Key, given: Sequence[str]) -> Interval:
        label = (y, *given)
        if label not in self._partials:
            own = [self.left["given", name] for name in given]
            fixed = [self.right["given", name] for name in given]

            def of(rho: FloatArray) -> FloatArray:
                j, k = self.right[y], self.left[y]
                return partial_from_correlations(
                    rho[:, :, [j]],
                    rho[:, :, fixed],
                    rho[:, [k]][:, :, fixed],
                    rho[:, own][:, :, fixed],
                )[:, :, 0]

            self._partials[label] = of(self.observed), of(self.drawn)
        observed, drawn = self._partials[label]
        return self._with_interval(observed[0, self.left[x]], drawn[:, self.left[x]])

    def _with_interval(self, value: float, drawn: FloatArray) -> Interval:
        if not np.isfinite(value) or not np.isfinite(drawn).any():
            return None, None, None
        return float(value), *interval(drawn, self.level)
