"""What a treatment does: each treated network beside the untreated one that it pairs with.

Pairs share everything but the treatment: seed, batch size, learning rate. Effects are
matched-pairs rank-biserial correlations. Pairs of one seed start from the same weights, so
seeds are the units throughout: intervals come from a bootstrap over seeds, and tests, all
two-sided, from Student's t over the seeds' sums of signed ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata, ttest_1samp

from invariance.core._rng import numpy_generator
from invariance.stats import benjamini_yekutieli
from invariance.stats._ranks import MINIMUM_POINTS, FloatArray, interval
from invariance.studies._study import Record

#: Resamples behind an interval.
RESAMPLES = 2_000

#: With fewer seeds than this a bootstrap over seeds means nothing: there is no interval.
MINIMUM_SEEDS = 6

Pair = tuple[Record, Record]


@dataclass(frozen=True)
class Effect:
    """What a treatment does to one quantity.

    Attributes:
        treatment: Its name.
        quantity: What is compared.
        n: Pairs in which both values are known.
        rank_biserial: Effect in [-1, 1], positive if the treatment raises the quantity (or
            lowers it, where less is asked for); ``None`` with fewer than four pairs.
        ci_low: Lower end of its interval by bootstrap over seeds; ``None`` with too few.
        ci_high: Upper end.
        median: Median difference, treated minus untreated.
        p_value: Two-sided, of no effect in either direction; seeds are the units.
        p_by: Adjusted over the family (Benjamini and Yekutieli).
        seeds: Independent units behind it.
    """

    treatment: str
    quantity: str
    n: int
    rank_biserial: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    median: float | None = None
    p_value: float | None = None
    p_by: float | None = None
    seeds: int = 0

    def found(self, level: float = 0.05) -> int:
        """Return 1 if the adjusted test finds the effect asked for, -1 its opposite, else 0."""
        if self.p_by is None or self.rank_biserial is None or self.p_by > level:
            return 0
        return int(math.copysign(1, self.rank_biserial))


@dataclass(frozen=True)
class Ratio:
    """A factor by which a treatment changes a positive quantity, and its interval.

    Attributes:
        value: The factor; ``None`` if it cannot be told.
        ci_low: Lower end.
        ci_high: Upper end.
        n: Pairs behind it.
        seeds: Independent units behind it.
        extrapolated: Whether no pair, or all pairs on one side only, come near equality of
            what is held fixed: then the line is drawn beyond the data.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    extrapolated: bool
    seeds: int = 0


def pairs_of(
    records: Sequence[Record],
    treatment: Callable[[Record], str],
    match: Callable[[Record], Hashable],
    baseline: str,
) -> dict[str, list[Pair]]:
    """Pair each treated network with the untreated one that matches it.

    Shapes: returns ``(treated, untreated)``.
    """
    untreated = {match(r): r for r in records if treatment(r) == baseline}
    found: dict[str, list[Pair]] = {}
    for record in records:
        name = treatment(record)
        partner = untreated.get(match(record))
        if name != baseline and partner is not None:
            found.setdefault(name, []).append((record, partner))
    return found


def effect(
    treatment: str,
    quantity: str,
    pairs: Sequence[Pair],
    read: Callable[[Record], float],
    *,
    sign: int = 1,
    seed: int = 0,
) -> Effect:
    """Test whether a treatment raises (``sign=1``) or lowers (``sign=-1``) a quantity."""
    treated, untreated, seeds = _known(pairs, read)
    n = treated.size
    if n < MINIMUM_POINTS:
        return Effect(treatment, quantity, n)
    difference = sign * (treated - untreated)
    units = int(np.unique(seeds).size)
    value = float(rank_biserials(difference, np.ones((1, n)))[0])
    low, high = None, None
    if _enough(seeds):
        drawn = rank_biserials(difference, seed_counts(seeds, RESAMPLES, seed))
        low, high = interval(drawn, 0.95)
        if low == high and abs(value) == 1.0:  # every pair moved one way: no width by resampling
            far = value * 0.025 ** (1 / units)
            low, high = min(value, far), max(value, far)
    return Effect(
        treatment,
        quantity,
        n,
        value,
        low,
        high,
        float(np.median(treated - untreated)),
        clustered_p(difference, seeds),
        seeds=units,
    )


def clustered_p(difference: FloatArray, seeds: FloatArray) -> float | None:
    """Two-sided p-value of no effect: Student's t over the seeds' sums of signed ranks.

    Ranks are those of all absolute differences together, as in Wilcoxon's test; what is taken
    to be independent are the seeds, not their pairs. ``None`` with fewer than two seeds.

    Shapes: ``difference (n,)``, ``seeds (n,)``.
    """
    names, place = np.unique(seeds, return_inverse=True)
    if names.size < 2:
        return None
    signed = rankdata(np.abs(difference)) * np.sign(difference)
    sums = np.bincount(place, weights=signed)
    if np.ptp(sums) == 0:
        return 1.0 if sums[0] == 0 else 2.0 ** (1 - names.size)  # all flips of signs
    return float(ttest_1samp(sums, 0.0).pvalue)


def adjusted(effects: Sequence[Effect]) -> list[Effect]:
    """Adjust the p-values of one family of tests (Benjamini and Yekutieli)."""
    values = benjamini_yekutieli([entry.p_value for entry in effects])
    return [replace(entry, p_by=p) for entry, p in zip(effects, values, strict=True)]


def ratio_at_equal(
    pairs: Sequence[Pair],
    read: Callable[[Record], float],
    fixed: Callable[[Record], float],
    *,
    seed: int = 0,
) -> Ratio:
    """Factor by which a treatment changes a quantity when something else is equal.

    The intercept of ``log q' - log q = a + b (log f' - log f)`` by least squares over pairs:
    the treatment's effect at equal ``f``, such as the train loss, which treatments raise and
    which sharpness follows. Pairs with a value that is not positive are left out.
    """
    rows = []
    for treated, untreated in pairs:
        values = [read(treated), read(untreated), fixed(treated), fixed(untreated)]
        if all(math.isfinite(v) and v > 0 for v in values):
            logs = np.log(values)
            rows.append((logs[0] - logs[1], logs[2] - logs[3], treated.config.seed))
    if len(rows) < MINIMUM_POINTS:
        return Ratio(None, None, None, len(rows), extrapolated=True)
    y, x, seeds = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    value = float(_intercepts(x, y, np.ones((1, y.size)))[0])
    if not math.isfinite(value):
        return Ratio(None, None, None, len(rows), extrapolated=True)
    beyond = bool((x > 0).all() or (x < 0).all())
    if not _enough(seeds):
        return Ratio(math.exp(value), None, None, len(rows), beyond)
    low, high = interval(_intercepts(x, y, seed_counts(seeds, RESAMPLES, seed)), 0.95)
    units = int(np.unique(seeds).size)
    return Ratio(math.exp(value), math.exp(low), math.exp(high), len(rows), beyond, units)


def share_of(
    pairs: Sequence[Pair], holds: Callable[[Record, Record], bool | None], *, seed: int = 0
) -> Ratio:
    """Share of pairs for which something holds, with an interval by bootstrap over seeds.

    Where it holds for all pairs, or for none, every resample says the same and the bootstrap
    has no width: the end is then that of Clopper and Pearson with seeds for trials.
    """
    known = [(holds(a, b), a.config.seed) for a, b in pairs]
    rows = [(float(flag), at) for flag, at in known if flag is not None]
    if len(rows) < MINIMUM_POINTS:
        return Ratio(None, None, None, len(rows), extrapolated=False)
    flags, seeds = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    low, high = None, None
    if _enough(seeds):
        counts = seed_counts(seeds, RESAMPLES, seed)
        low, high = interval(counts @ flags / counts.sum(1), 0.95)
        certain = 0.025 ** (1 / len(np.unique(seeds)))
        if flags.all():
            low = certain
        elif not flags.any():
            high = 1 - certain
    units = int(np.unique(seeds).size)
    return Ratio(float(flags.mean()), low, high, len(rows), extrapolated=False, seeds=units)


def seed_counts(seeds: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Draw how often each pair occurs when seeds are drawn with replacement.

    Shapes: ``seeds (n,)``; returns ``(resamples, n)``.
    """
    names, place = np.unique(seeds, return_inverse=True)
    drawn = numpy_generator(seed).multinomial(
        names.size, np.full(names.size, 1 / names.size), size=resamples
    )
    counts: FloatArray = drawn[:, place].astype(np.float64)
    return counts


def rank_biserials(difference: FloatArray, counts: FloatArray) -> FloatArray:
    """Matched-pairs rank-biserial correlation of resamples, all at once.

    Shapes: ``difference (n,)``, ``counts (resamples, n)``; returns ``(resamples,)``.
    """
    moved = difference != 0
    d, w = difference[moved], counts[:, moved]
    sizes, place = np.unique(np.abs(d), return_inverse=True)
    tied = np.zeros((len(w), sizes.size))
    np.add.at(tied.T, place, w.T)
    # Mean rank of a group of ties: those before it, and half of its own.
    ranks = (np.cumsum(tied, axis=1) - tied + (tied + 1) / 2)[:, place]
    total = (w * ranks).sum(1)
    signed = (w * ranks * np.sign(d)).sum(1)
    out: FloatArray = np.divide(signed, total, out=np.zeros_like(total), where=total > 0)
    return out


def _enough(seeds: FloatArray) -> bool:
    return np.unique(seeds).size >= MINIMUM_SEEDS


def _intercepts(x: FloatArray, y: FloatArray, counts: FloatArray) -> FloatArray:
    """Weighted least squares of y on x, for each row of weights; NaN without any spread."""
    total = counts.sum(1)
    mean_x, mean_y = counts @ x / total, counts @ y / total
    spread = counts @ x**2 / total - mean_x**2
    cross = counts @ (x * y) / total - mean_x * mean_y
    usable = spread > 1e-12 * (1 + mean_x**2)
    slope = np.divide(cross, spread, out=np.full_like(spread, np.nan), where=usable)
    out: FloatArray = mean_y - slope * mean_x
    return out


def _known(
    pairs: Sequence[Pair], read: Callable[[Record], float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return both values and the seed of every pair that has them."""
    rows = [(read(a), read(b), float(a.config.seed)) for a, b in pairs]
    kept = [row for row in rows if math.isfinite(row[0]) and math.isfinite(row[1])]
    table = np.array(kept, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
