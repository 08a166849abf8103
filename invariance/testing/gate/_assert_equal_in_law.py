"""Equality of noisy measures: paired by common random numbers, with a stated error rate.

An estimate with chance in it cannot be compared to six digits. Two tests share the error
rate: a paired test of the mean (both networks see the same random numbers, so that what
the draws have in common cancels), and an exact Kolmogorov-Smirnov test between draws of
disjoint seeds, which also sees a change of spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from invariance.cells import BrokenTransformError, MappedNetwork
from invariance.cells._faults import FaultyMeasureError, as_number, isolated
from invariance.cells._mapped_network import EXAMPLE_ROWS
from invariance.core._errors import InvarianceError, UsageError
from invariance.core._modules import clone
from invariance.testing.gate._binding import (
    cast,
    check_data,
    precisions,
    require_evaluation_mode,
)
from invariance.testing.gate._bound_measure import bind, wanted_groups
from invariance.testing.gate._findings import replayable
from invariance.testing.gate._recorder import record
from invariance.transforms._base import Transform, as_transforms
from invariance.transforms._members import members

#: ``noisy(model, x, y, seed) -> number``: the same seed, the same value.
NoisyMeasure = Callable[[nn.Module, Tensor, Tensor, int], Any]

#: A paired difference below this share of the values is round-off, not chance.
ROUND_OFF = 1e-9

#: Chance of seeing a shift that the power statement promises to detect.
POWER = 0.8

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EqualityTest:
    """The outcome of one comparison.

    Attributes:
        measure: The measure's name.
        transform: The map, as it can be replayed.
        draws: Random draws on either side.
        mean_before: Mean over the draws before the map.
        mean_after: Mean after it.
        stderr: Standard error of the paired difference of means.
        p_mean: p-value of the paired test of the mean; 1 if every pair agrees.
        p_distribution: Exact p-value of the Kolmogorov-Smirnov test.
        error_rate: Chance of a false alarm over all maps that were tried together.
        level: Level of this one comparison: ``error_rate`` over the number of maps and
            over the two tests.
        detectable: Relative shift of the mean that is found with probability 0.8.
    """

    measure: str
    transform: str
    draws: int
    mean_before: float
    mean_after: float
    stderr: float
    p_mean: float
    p_distribution: float
    error_rate: float
    level: float
    detectable: float

    @property
    def equal(self) -> bool:
        """True unless one of the two tests rejects equality."""
        return min(self.p_mean, self.p_distribution) >= self.level

    def __str__(self) -> str:
        verdict = "shows no difference" if self.equal else "differs"
        ratio = self.mean_after / self.mean_before if self.mean_before else math.nan
        return (
            f"noisy measure {self.measure!r} {verdict} under {self.transform}: mean "
            f"{self.mean_before:.6g} -> {self.mean_after:.6g} (ratio {ratio:.4g}, paired "
            f"standard error {self.stderr:.2g}, {self.draws} draws); p = {self.p_mean:.2g} (mean), "
            f"{self.p_distribution:.2g} (distribution), level {self.level:.2g} each. False alarms: "
            f"at most {self.error_rate:g} a call; a shift of {100 * self.detectable:.2g} % of the "
            f"mean would be found with probability {POWER:g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return asdict(self) | {"equal": self.equal}


def compare_draws(
    before: Sequence[float] | FloatArray,
    after: Sequence[float] | FloatArray,
    *,
    error_rate: float = 1e-3,
    comparisons: int = 1,
    measure: str = "measure",
    transform: str = "",
) -> EqualityTest:
    """Test whether draws with common random numbers come from one distribution.

    The level of each test is ``error_rate / (2 comparisons)`` (Bonferroni). The
    Kolmogorov-Smirnov part is exact for continuous values at any number of draws and
    conservative for ties; the paired t-test is exact for normal differences, and
    otherwise approaches its level as the number of draws grows.

    Shapes: ``before (n,)``, ``after (n,)``.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size < 8:
        raise UsageError(f"Expected at least 8 pairs of draws. Got {a.shape} and {b.shape}.")
    if not 0 < error_rate < 0.5:
        raise UsageError(f"error_rate must be in (0, 0.5). Got {error_rate!r}.")
    n, level = a.size, error_rate / (2 * comparisons)
    difference = b - a
    scale = max(float(np.abs(a).max()), float(np.abs(b).max()))
    stderr = float(difference.std(ddof=1) / math.sqrt(n))
    half = n // 2
    if float(np.abs(difference).max()) <= ROUND_OFF * scale:
        p_mean = p_distribution = 1.0
    elif stderr <= ROUND_OFF * scale:
        p_mean = p_distribution = 0.0  # every draw moves by one and the same amount
    else:
        p_mean = float(stats.ttest_1samp(difference, 0.0).pvalue)
        # Disjoint seeds on the two sides, so that the samples are independent.
        p_distribution = float(stats.ks_2samp(a[:half], b[half:], method="exact").pvalue)
    reach = float(stats.t.isf(level / 2, n - 1) + stats.t.ppf(POWER, n - 1))
    mean = float(a.mean())
    return EqualityTest(
        measure=measure,
        transform=transform,
        draws=n,
        mean_before=mean,
        mean_after=float(b.mean()),
        stderr=stderr,
        p_mean=p_mean,
        p_distribution=p_distribution,
        error_rate=error_rate,
        level=level,
        detectable=reach * stderr / abs(mean) if mean else math.inf,
    )


def assert_equal_in_law(
    measure: NoisyMeasure,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    transforms: Sequence[Transform] | Transform | None = None,
    groups: Sequence[str] | None = None,
    draws: int = 64,
    error_rate: float = 1e-3,
    dtype: torch.dtype | str = "float64",
    seed: int = 0,
    name: str | None = None,
) -> tuple[EqualityTest, ...]:
    """Assert that a noisy measure's distribution survives function-preserving maps.

    Args:
        measure: ``measure(model, x, y, seed) -> number``, deterministic given its seed; see
            :func:`invariance.testing.adapters.noisy`.
        model: The network, in eval mode.
        x: Inputs.
        y: Labels.
        transforms: What to apply; by default a member of every kind that the model admits.
        groups: Apply the kinds named here instead.
        draws: Random draws on either side, each with its own seed.
        error_rate: Chance that an invariant measure fails, over all maps together.
        dtype: Precision.
        seed: First seed of the draws, and seed of the random maps.
        name: The measure's name in messages; its own by default.

    Returns:
        One outcome a map.

    Raises:
        NotEqualInLawError: (an ``AssertionError``) If a test rejects equality.
        FaultyMeasureError: If one seed gives two values, or a value is no number.
        BrokenTransformError: If a given transform changes the function.
        UsageError: If no map applies.

    Example:
        Noise around a function of the outputs is equal in law under every map:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([3, 4, 2], dtype=torch.float64).eval()
        >>> x, y = torch.rand(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
        >>> def noisy(model, x, y, seed):
        ...     draws = torch.Generator().manual_seed(seed)
        ...     return float(model(x).detach().softmax(1).max() + torch.rand(1, generator=draws))
        >>> _ = assert_equal_in_law(noisy, model, x, y)
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and our message
    require_evaluation_mode(model)
    check_data(x, y)
    title = name or str(getattr(measure, "__name__", type(measure).__name__))
    base, data = cast(model, {"x": x, "y": y}, precisions(model, dtype)[0])
    mapped = MappedNetwork(base, data["x"][:EXAMPLE_ROWS], keep=True)

    def sample(network: nn.Module) -> list[float]:
        return [_draw(measure, network, data, seed + k, title) for k in range(draws)]

    first = _draw(measure, base, data, seed, title)
    if _draw(measure, base, data, seed, title) != first:
        raise FaultyMeasureError(
            "not deterministic", title, f"Seed {seed} gave two values on one network."
        )
    if transforms is None:
        bound = bind(_placeholder, base, data["x"], data["y"], seed=seed)
        transforms = list(members(base, wanted_groups(bound, groups), seed))
    moved: list[tuple[str, nn.Module]] = []
    refusals: list[str] = []
    for transform in as_transforms(transforms):
        try:
            moved.append((repr(transform), mapped.under(transform, title).model))
        except BrokenTransformError:
            raise
        except InvarianceError as error:
            refusals.append(str(error))
    if not moved:
        raise UsageError(f"Nothing was checked: no transform applies. {'; '.join(refusals)}")
    before = sample(base)
    outcomes = tuple(
        compare_draws(
            before,
            sample(network),
            error_rate=error_rate,
            comparisons=len(moved),
            measure=title,
            transform=label,
        )
        for label, network in moved
    )
    for outcome in outcomes:
        record(
            "equal in law",
            title,
            holds=outcome.equal,
            message=str(outcome),
            detail=outcome.to_dict(),
        )
    broken = [outcome for outcome in outcomes if not outcome.equal]
    if broken:
        raise NotEqualInLawError(tuple(broken), seed, draws)
    return outcomes


class NotEqualInLawError(AssertionError):
    """A noisy measure whose distribution moved; ``outcomes`` hold the tests."""

    def __init__(self, outcomes: tuple[EqualityTest, ...], seed: int, draws: int) -> None:
        self.outcomes, self.seed, self.draws = outcomes, seed, draws
        lines = []
        for outcome in outcomes:
            written = replayable(outcome.transform) or "transform"
            lines += [
                str(outcome),
                "  replay     import invariance as inv; inv.testing.assert_equal_in_law("
                f"measure, model, x, y, transforms=[{written}], draws={draws}, seed={seed})",
            ]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.outcomes, self.seed, self.draws))


def _placeholder(model: nn.Module) -> float:
    return 0.0


def _draw(
    measure: NoisyMeasure, model: nn.Module, data: dict[str, Tensor], seed: int, title: str
) -> float:
    """Evaluate one draw on throwaway copies, random states put back after it."""
    with isolated():
        value = measure(clone(model), data["x"].clone(), data["y"].clone(), seed)
    return float(as_number(value, title))
