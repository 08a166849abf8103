"""A published claim beside our number, its interval and the verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from invariance.core._errors import UsageError

ClaimVerdict = Literal["supported", "not supported", "inconclusive"]


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
            ``"supported"`` if the whole interval lies in the region, ``"not supported"`` if
            none of it does, else ``"inconclusive"``.
        """
        if ci_low is None or ci_high is None or not ci_low <= ci_high:
            return "inconclusive"
        if self.low < ci_low and ci_high < self.high:
            return "supported"
        if ci_high <= self.low or self.high <= ci_low:
            return "not supported"
        return "inconclusive"

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
        n: Independent units behind it: networks, seeds, pairs.
        p_value: Two-sided p-value, adjusted where ``adjusted`` says how.
        adjusted: Name of the correction for multiple tests, empty for none.
        level: Level of the interval.
        exact: True where the number follows without sampling (an identity that was checked):
            the interval is then the number give or take round-off.
        note: What limits the verdict.
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

    @property
    def verdict(self) -> ClaimVerdict:
        """Supported, not supported, or inconclusive; see :meth:`Region.judge`.

        A supported claim whose p-value was adjusted must also pass the adjusted test.
        """
        found = self.region.judge(self.ci_low, self.ci_high)
        if found == "supported" and self.adjusted and self.p_value is not None:
            return "supported" if self.p_value <= 1 - self.level else "inconclusive"
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the claim with its verdict as plain values; no bound is ``null``."""
        plain = asdict(self)
        plain["region"] = [
            None if math.isinf(end) else end for end in (self.region.low, self.region.high)
        ]
        return plain | {"verdict": self.verdict}
