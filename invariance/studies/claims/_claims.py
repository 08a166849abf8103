"""A published claim beside our number, its interval and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from scipy import stats

from invariance.core._errors import UsageError
from invariance.stats import holm

ClaimVerdict = Literal["supported", "contradicted", "open", "theorem", "not tested"]

#: What earlier versions wrote for the same thing.
FORMER_WORDS: Mapping[str, ClaimVerdict] = {"not supported": "contradicted", "inconclusive": "open"}

#: What a claim rests on: a sample, a proof whose conclusion was checked, or nothing yet.
Basis = Literal["sample", "theorem", "not tested"]

#: Probability of a false verdict, over all claims of a study together.
ALPHA = 0.05


@dataclass(frozen=True)
class Region:
    """The values of a number for which a claim is true: an open interval.

    Attributes:
        low: Lower end; minus infinity for none.
        high: Upper end; infinity for none.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"A region needs low < high. Got ({self.low}, {self.high}).")

    def judge(self, ci_low: float | None, ci_high: float | None) -> ClaimVerdict:
        """Say what an interval of plausible values means for the claim.

        Args:
            ci_low: Lower end of the confidence interval; ``None`` if there is none.
            ci_high: Upper end.

        Returns:
            ``"supported"`` if the whole interval lies in the region, ``"contradicted"`` if
            none of it does, else ``"open"``.

        >>> Region(low=0.0).judge(0.1, 0.7), Region(low=0.0).judge(-0.1, 0.7)
        ('supported', 'open')
        """
        if ci_low is None or ci_high is None or not ci_low <= ci_high:
            return "open"
        if self.low < ci_low and ci_high < self.high:
            return "supported"
        if ci_high <= self.low or self.high <= ci_low:
            return "contradicted"
        return "open"

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"below {self.high:g}"
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Claim:
    """One claim, what the paper reports, and what we find.

    Attributes:
        name: Short name, unique within the study.
        statement: The claim as a sentence that can be true or false.
        quantity: What the number is: "Spearman's rho of pair proxy and test accuracy".
        paper: The paper's number; ``None`` if it gives none.
        region: Values for which the claim is true. Fixed before looking at results.
        value: Our number; ``None`` if it could not be computed.
        ci_low: Lower end of its interval.
        ci_high: Upper end.
        n: What the number was computed from: networks, pairs, splits.
        p_value: Two-sided p-value against the nearest end of the region; by default read
            off the interval, see :func:`p_from_interval`.
        adjusted: Name of the correction for multiple tests, empty for none.
        level: Level of the interval.
        exact: True where the number follows without sampling (an identity that was checked,
            a count of all there is): the interval is then the number itself.
        note: What limits the verdict.
        basis: ``"theorem"`` for what cannot fail and was checked; ``"not tested"`` where the
            setting of the claim was not run, whatever number was found elsewhere.
        ours: A question that we ask and no paper claims.
        clusters: Independent units behind the number (seeds, splits), where they are fewer
            than ``n``.
        p_adjusted: The p-value adjusted over all claims of the study; set by :func:`judged`.
    """

    name: str
    statement: str
    quantity: str
    paper: float | None
    region: Region
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    p_value: float | None = None
    adjusted: str = ""
    level: float = 0.95
    exact: bool = False
    note: str = ""
    basis: Basis = "sample"
    ours: bool = False
    clusters: int | None = None
    p_adjusted: float | None = None

    @property
    def verdict(self) -> ClaimVerdict:
        """The word for what was found.

        A theorem whose check fails is contradicted. What was sampled is decided only if the
        whole interval lies on one side *and* the adjusted p-value is small; an interval
        without width is one that could not be told (a bootstrap of equal values).
        """
        if self.basis == "not tested":
            return "not tested"
        found = self.region.judge(self.ci_low, self.ci_high)
        if self.basis == "theorem":
            return "theorem" if found == "supported" else found
        if self.exact or found == "open":
            return found
        if self.ci_low == self.ci_high:
            return "open"
        p = self.p_value if self.p_adjusted is None else self.p_adjusted
        return found if p is None or p <= ALPHA else "open"

    def to_dict(self) -> dict[str, Any]:
        """Return the claim with its verdict as plain values; no bound is ``null``."""
        plain = asdict(self)
        plain["region"] = [
            None if math.isinf(end) else end for end in (self.region.low, self.region.high)
        ]
        return plain | {"verdict": self.verdict}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Claim:
        """Read what :meth:`to_dict` wrote, or an earlier version of it."""
        known = {field.name for field in fields(cls)}
        low, high = plain["region"]
        region = Region(-math.inf if low is None else low, math.inf if high is None else high)
        return cls(**{k: v for k, v in plain.items() if k in known} | {"region": region})


def judged(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Adjust the p-values of all claims of a study together (Holm 1979).

    One rule for all: every sampled claim has a two-sided p-value against the end of its
    region that lies nearest, and the family is the study. Theorems, counts and claims that
    were not tested take no part.
    """
    tested = [
        claim.basis == "sample" and not claim.exact and claim.ci_low != claim.ci_high
        for claim in claims
    ]
    raw = [
        (p_from_interval(claim) if claim.p_value is None else claim.p_value) if takes else None
        for claim, takes in zip(claims, tested, strict=True)
    ]
    family = sum(p is not None for p in raw)
    words = f"Holm over {family} claims"
    return tuple(
        replace(claim, p_value=p, p_adjusted=adjusted, adjusted="" if p is None else words)
        for claim, p, adjusted in zip(claims, raw, holm(raw), strict=True)
    )


def p_from_interval(claim: Claim) -> float | None:
    """Return the p-value that a claim's interval implies against its region.

    The distance from the number to the nearest end of the region, in units of the half of
    the interval that points there, is compared with Student's t of one degree of freedom
    less than there are independent units: 0.05 where the end of a 95 % interval touches the
    end of the region.

    >>> claim = Claim("a", "", "", None, Region(low=0.0), 0.5, 0.0, 1.0, 9)
    >>> round(p_from_interval(claim), 9)
    0.05
    """
    value, low, high = claim.value, claim.ci_low, claim.ci_high
    units = claim.n if claim.clusters is None else claim.clusters
    if value is None or low is None or high is None or units < 2:
        return None
    ends = [end for end in (claim.region.low, claim.region.high) if math.isfinite(end)]
    if not ends:
        return None
    ratios = []
    for end in ends:
        half = value - low if end < value else high - value
        ratios.append(abs(value - end) / half if half > 0 else math.inf)
    if any(math.isinf(ratio) for ratio in ratios):
        # A number on the very bound of what it can be has no half on that side.
        ratios = [ratio for ratio in ratios if math.isfinite(ratio)] or [0.0]
    nearest = float(min(ratios))
    critical = float(stats.t.ppf((1 + claim.level) / 2, units - 1))
    return float(2 * stats.t.sf(nearest * critical, units - 1))
