"""The two axes that networks are moved along, and the law of the trace on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from invariance.papers.recipes._measure_perceptrons import widths
from invariance.studies._config import Config
from invariance.studies._study import Record

#: A second, narrow network, on which the pair proxy is not saturated.
NARROW, NARROW_SIZE = (64, 8), 250


WIDE_NAME, NARROW_NAME = "wide", "narrow"

#: The published factors: T_beta scales layer 1 against 2, T_gamma layer 2 against 3.
FACTORS = (1.0, 2.0, 5.0, 10.0, 20.0)

AXES: Mapping[str, int] = {"beta": 0, "gamma": 1}


class AxisLaw(NamedTuple):
    """``Tr H(a) = A / a^2 + C + B a^2`` along one axis."""

    a: float
    b: float
    c: float

    def __call__(self, factor: float) -> float:
        """Return the trace at a factor."""
        return self.a / factor**2 + self.c + self.b * factor**2


def law_of(blocks: Mapping[str, float], first: int) -> AxisLaw:
    """Read the law along one axis off the traces of the parameters' blocks.

    The scaled layer's weight and bias shrink their curvature, the next layer's weight grows
    its own, and nothing else is touched.
    """
    weights = [name for name in blocks if name.endswith("weight")]
    scaled, following = weights[first], weights[first + 1]
    a = blocks[scaled] + blocks[scaled.removesuffix("weight") + "bias"]
    b = blocks[following]
    return AxisLaw(a, b, sum(blocks.values()) - a - b)


def kind_of(record: Record) -> str:
    """Return which kind of network a record is, with its training-set size."""
    kind = NARROW_NAME if is_narrow(record.config) else WIDE_NAME
    return f"{kind}, n={record.config.settings['n_train']}"


def is_narrow(config: Config) -> bool:
    """Return whether a network is one of the narrow ones."""
    return widths(config)[1:-1] == NARROW
