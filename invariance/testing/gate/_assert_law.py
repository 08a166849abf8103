"""A stated law, asserted: a power of the factor, or what the measure's declaration predicts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import invariance.transforms as T
from invariance.cells import CellEngine, CellRow
from invariance.core._errors import UsageError
from invariance.measures._registry import AnyMeasure
from invariance.testing.blame._narrowing import family_of, layer_ladders
from invariance.testing.blame._trends import FACTORS, Trend, fit_trend
from invariance.testing.gate._binding import precisions
from invariance.testing.gate._bound_measure import RTOL, bind
from invariance.testing.gate._examine import examine
from invariance.testing.gate._findings import NotInvariantError, replay_line
from invariance.testing.gate._recorder import recorded
from invariance.transforms._base import Transform

#: From a factor alpha to a map.
Family = Callable[[float], Transform]


@dataclass(frozen=True)
class LawResult:
    """A law that held.

    Attributes:
        measure: The measure's name.
        exponent: The power of alpha; ``None`` for a declared law.
        trends: What was measured, one a site.
        rows: The comparisons with the declared law.
    """

    measure: str
    exponent: float | None
    trends: tuple[Trend, ...] = ()
    rows: tuple[CellRow, ...] = ()

    def __str__(self) -> str:
        if self.exponent is None:
            maps = ", ".join(row.label for row in self.rows)
            return f"measure {self.measure!r} follows its declared law under {maps}"
        where = ", ".join(f"`{trend.site}`" if trend.site else "the map" for trend in self.trends)
        return f"measure {self.measure!r} moves as alpha^{self.exponent:g} at {where}"


class LawBrokenError(AssertionError):
    """A measure that does not move as claimed.

    Attributes:
        trend: How it moves instead.
        exponent: What was claimed.
    """

    def __init__(self, measure: str, trend: Trend, exponent: float, replay: str) -> None:
        self.measure, self.trend, self.exponent, self.replay = measure, trend, exponent, replay
        where = f" at `{trend.site}`" if trend.site else ""
        table = "\n".join(
            f"  alpha {factor:<8g} {value:.9g}   claimed {_claimed(trend, exponent, factor):.9g}"
            for factor, value in zip(trend.factors, trend.values, strict=True)
        )
        hint = f"\n  hint       {trend.hint}" if trend.hint and not trend.flat else ""
        super().__init__(
            f"measure {measure!r} was claimed to move as alpha^{exponent:g}{where}, but it "
            f"{'does not move' if trend.flat else trend}.\n{table}{hint}\n  replay     {replay}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.measure, self.trend, self.exponent, self.replay))


def assert_law(
    measure: AnyMeasure,
    transform: Transform | type[Transform] | Family,
    model: nn.Module | None = None,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    exponent: float | None = None,
    rtol: float = RTOL,
    dtype: torch.dtype | str = "float64",
    seed: int = 0,
    data: Mapping[str, Tensor] | None = None,
) -> LawResult:
    """Assert how a measure moves, not only that it does or does not.

    Args:
        measure: As for :func:`invariance.testing.assert_invariant`.
        transform: A scaling whose factor alpha is then varied (``LayerScaling([a, 1 / a])``
            stands for all alpha; so do ``BatchNormScaling`` and ``AtSite``); the class
            ``LayerScaling`` for every hidden layer in turn; or a function from alpha to a map.
        model: The network; a small trained MLP by default.
        x: Inputs; the small network's data by default.
        y: Labels.
        exponent: The claimed power of alpha. Without it, the measure must be registered
            and meet the value that its declared law predicts.
        rtol: Relative tolerance at every alpha; the float error where that is larger.
        dtype: Precision.
        seed: Seed of the round-off probes.
        data: More tensors by task field.

    Returns:
        What was measured.

    Raises:
        LawBrokenError: (an ``AssertionError``) If the power is another one.
        NotInvariantError: (an ``AssertionError``) If a declared law is not met.
        UsageError: If there is no law to check, or no factor to vary.

    Example:
        The weight of the first layer alone has norm ``a`` times as large:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([3, 4, 2], dtype=torch.float64).eval()
        >>> x, y = torch.rand(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
        >>> def first(model, x, y):
        ...     return float(model.linear1.weight.detach().norm())
        >>> family = lambda a: inv.transforms.LayerScaling([a, 1 / a])
        >>> _ = assert_law(first, family, model, x, y, exponent=1)
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and our message
    if model is None or x is None or y is None:
        if not (model is None and x is None and y is None):
            raise UsageError("Pass model, x and y together, or none of them.")
        model, x, y = default_network()
    bound = bind(measure, model, x, y, rtol=rtol, seed=seed, data=data, allow_constant=True)
    if exponent is None:
        return _declared(bound, transform, dtype)
    engine = bound.engine(precisions(model, dtype)[0])
    name = bound.measure.name
    with recorded(f"alpha^{exponent:g}", name) as facts:
        trends = []
        for site, family in _families(transform, engine):
            trend, worst = _measured(engine, site, family, exponent)
            if worst is not None:
                label = repr(family(worst))
                raise LawBrokenError(
                    name, trend, exponent, replay_line(label, str(dtype).removeprefix("torch."))
                )
            trends.append(trend)
        result = LawResult(name, exponent, tuple(trends))
        facts["message"] = str(result)
    return result


def _declared(
    bound: Any, transform: Transform | type[Transform] | Family, dtype: torch.dtype | str
) -> LawResult:
    name = bound.measure.name
    if not isinstance(transform, Transform):
        raise UsageError("Without exponent=, pass one transform object, such as LayerScaling(...).")
    if bound.measure.declared(transform.groups) != "law":
        raise UsageError(
            f"Measure {name!r} declares no law under {', '.join(transform.groups)}. Pass "
            "exponent=..., or declare one with the decorator invariance.measure(law=...)."
        )
    with recorded("declared law", name) as facts:
        certificate, findings = examine(bound, [transform], dtype=dtype, strict=True, judged=True)
        if findings:
            raise NotInvariantError(findings)
        if all(row.predicted is None for row in certificate.rows):
            raise UsageError(f"The law of {name!r} gives no value under {transform!r}.")
        facts.update(certificate.to_dict(), message=str(certificate))
    return LawResult(name, None, rows=certificate.rows)


def _families(
    transform: Transform | type[Transform] | Family, engine: CellEngine
) -> list[tuple[str, Family]]:
    if inspect.isclass(transform) and issubclass(transform, Transform):
        if transform is T.LayerScaling:
            ladders = layer_ladders(engine.model, engine.example)
            found = [(ladder.site, ladder.family) for ladder in ladders if ladder.family]
            if found:
                return found
            raise UsageError("The model has no hidden layer that can be scaled.")
        raise UsageError(
            f"The class {transform.__name__} has no factor of its own. Pass LayerScaling, an "
            "object, or a function from alpha to a transform."
        )
    if isinstance(transform, Transform):
        found_family = family_of(transform)
        if found_family is None:
            raise UsageError(
                f"{transform!r} has no single factor alpha to vary. Pass a function from alpha to "
                "a transform."
            )
        return [(getattr(transform, "site", ""), found_family)]
    family = cast(Family, transform)
    return [("", family)]


def _measured(
    engine: CellEngine, site: str, family: Family, exponent: float
) -> tuple[Trend, float | None]:
    """Sample the values; return their trend and the factor that is furthest off the claim."""
    values, worst, furthest = [], None, 0.0
    base = float(engine.before)
    for factor in FACTORS:
        if factor == 1.0:
            values.append(base)
            continue
        cell = engine.cell(family(factor))
        values.append(cell.row.after)
        claimed = base * factor**exponent
        allowed = engine.policy.rtol * abs(claimed)
        off = abs(cell.row.after - claimed)
        if off > allowed:
            allowed += engine.slack(cell)
        relative = off / abs(claimed) if claimed else off
        if off > allowed and relative > furthest:
            worst, furthest = factor, relative
    return fit_trend(site, FACTORS, values), worst


def _claimed(trend: Trend, exponent: float, factor: float) -> float:
    base = next(v for f, v in zip(trend.factors, trend.values, strict=True) if f == 1.0)
    return base * float(factor**exponent)


@functools.lru_cache(maxsize=1)
def _small_network() -> Any:
    from invariance.testing._networks import Networks

    return Networks()


def default_network(name: str = "mlp") -> tuple[nn.Module, Tensor, Tensor]:
    """Return a small trained network with its data; trained once a process."""
    found = _small_network()[name]
    return found.model, found.x, found.y
