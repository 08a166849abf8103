"""A sweep over random mixtures of the cotangents instead of all of them: the sampled root.

With ``H_n = R_n R_n^T`` the Hessian of row n's loss in the outputs and s random signs,
``E (R_n s)(R_n s)^T = H_n``. Everything that the exact sweep sums over the columns of R_n is
linear in that matrix, so with the m columns ``R_n s`` in place of the K - 1 of R_n every trace,
diagonal entry and relative flatness is unbiased. The signs are drawn anew for every row: rows
are independent, and the standard error, which falls like ``1 / sqrt(n m)``, is found from the
draws of every row, of which there are at least two.

That is Hutchinson's estimator (Hutchinson 1990) in the outputs of every row instead of in the
parameters, where K dimensions are left to chance instead of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from invariance.core._errors import MeasureError
from invariance.core._rng import generator
from invariance.curvature._batches import Sums
from invariance.curvature.losses._base import Draws, Loss

#: Fewest draws over all rows: fewer would not tell how far they spread.
_FEWEST = 64

#: Degrees of freedom below which a few rows make the spread, which is then not known well.
_FREEDOM = 24.0

#: More draws than the spread asks for, which is itself an estimate.
_MARGIN = 1.15

Key = tuple[str, str]


@dataclass(frozen=True)
class Drawn:
    """What a sampled sweep found; all of it is exact if ``count`` is 0.

    Attributes:
        stages: The sums of every stage.
        counts: Draws a row of every stage.
        converged: Whether the standard error met the tolerance.
    """

    stages: tuple[Sums, ...]
    counts: tuple[int, ...]
    converged: bool = True

    @property
    def exact(self) -> bool:
        """Whether nothing was drawn."""
        return not self.counts

    @property
    def count(self) -> int:
        """Draws a row in all."""
        return sum(self.counts)

    def _weights(self) -> list[float]:
        return [count / self.count for count in self.counts] or [1.0]

    def of(self, kind: str) -> dict[str, float]:
        """Return name to the mean, for one kind of scalar."""
        found: dict[str, float] = {}
        for weight, sums in zip(self._weights(), self.stages, strict=True):
            for name, value in sums.of(kind).items():
                found[name] = found.get(name, 0.0) + weight * float(value)
        return found

    def error(self, key: Key) -> float:
        """Return the standard error of a mean, such that 1.96 of them cover 95 %."""
        variance, freedom = self._spread(key)
        if not variance:
            return 0.0
        student = stats.t.ppf(0.975, max(freedom, 1.0)) / stats.norm.ppf(0.975)
        return math.sqrt(variance) * float(student)

    def freedom(self, key: Key) -> float:
        """Return the degrees of freedom that the spread is known with."""
        return self._spread(key)[1]

    def _spread(self, key: Key) -> tuple[float, float]:
        """Return a mean's variance and its degrees of freedom (Satterthwaite 1946)."""
        variance = doubt = 0.0
        for weight, sums in zip(self._weights(), self.stages, strict=True):
            if key in sums.spreads:
                first, second = sums.spreads[key].tolist()
                scale = (weight / float(sums.mass)) ** 2
                variance += scale * first
                doubt += scale**2 * second
        return variance, variance**2 / doubt if doubt else math.inf

    def diagonals(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the diagonal by parameter, and its entries' standard errors."""
        values: dict[str, Tensor] = {}
        spreads: dict[str, Tensor] = {}
        for weight, sums in zip(self._weights(), self.stages, strict=True):
            for name, found in sums.mean_diagonals().items():
                values[name] = values.get(name, 0.0) + weight * found
            for name, found in sums.diagonal_spreads.items():
                share = found * (weight / float(sums.mass)) ** 2
                spreads[name] = spreads.get(name, 0.0) + share
        return values, {name: value.sqrt() for name, value in spreads.items()}


def sample_sweep(
    sweep: Callable[[Draws | None], Sums],
    loss: Loss,
    outputs: int,
    rows: int,
    keys: Callable[[Drawn], Sequence[tuple[Key, float]]],
    *,
    rtol: float,
    budget: int,
    seed: int,
) -> Drawn:
    """Sweep with as many draws a row as a relative standard error of ``rtol`` takes.

    A first stage of a few draws says how many more; where all columns of the root are no
    dearer, the sweep is exact. ``keys`` names what must meet the tolerance, with its value.
    """
    if not rtol > 0:
        raise MeasureError(f"rtol must be positive. Got {rtol!r}.")
    if budget < 2:
        raise MeasureError(f"A standard error needs at least 2 draws a row. Got budget={budget}.")
    full = loss.columns(outputs)
    draws = generator(seed, "curvature", "sampled")
    found = Drawn((), ())
    need = max(2, -(-_FEWEST // rows))
    while True:
        need = min(need, budget - found.count)
        per_draw = 1 if found.exact or not _mixed(found) else 2
        if need * per_draw >= full:
            return Drawn((sweep(None),), ())
        sums = sweep(Draws(loss, need, draws))
        found = Drawn((*found.stages, sums), (*found.counts, need))
        worst, poor = 0.0, False
        for key, value in keys(found):
            error = found.error(key)
            worst = max(worst, error / abs(value) if value else (math.inf if error else 0.0))
            poor = poor or found.freedom(key) < _FREEDOM
        if worst <= rtol and not poor:
            return found
        if budget - found.count < 2:
            return Drawn(found.stages, found.counts, converged=worst <= rtol)
        whole = found.count * min(_MARGIN * (worst / rtol) ** 2, 1e6)
        need = max(2, math.ceil(whole) - found.count, found.count if poor else 0)


def _mixed(found: Drawn) -> bool:
    """Whether the last stage took two columns a draw: a loss of both curvatures."""
    return found.stages[-1].columns > found.counts[-1]
