"""Strategies for a network, data and a map together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from torch import Tensor, nn

from invariance.core._groups import ABOUT, Group
from invariance.measures._registry import AnyMeasure
from invariance.testing.gate._assert_invariant import assert_invariant
from invariance.testing.gate._findings import Certificate
from invariance.testing.strategies._maps import checked_groups, transforms
from invariance.testing.strategies._networks import DrawnNetwork, data, mlps
from invariance.transforms._base import Transform


@dataclass(frozen=True, eq=False)
class Case:
    """One drawn case: a network, data and a map.

    Attributes:
        network: The network and its recipe.
        x: ``(n, d)`` inputs.
        y: ``(n,)`` labels.
        transform: The map.
        data_seed: Seed of the data.
    """

    network: DrawnNetwork
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    transform: Transform
    data_seed: int = 0

    @property
    def model(self) -> nn.Module:
        """The network's module."""
        return self.network.model

    def __repr__(self) -> str:
        rows = int(self.x.shape[0])
        return f"Case({self.network!r}, {self.transform!r}, rows={rows}, seed={self.data_seed})"

    def assert_invariant(self, measure: AnyMeasure, **options: Any) -> Certificate:
        """Assert that the map leaves ``measure`` alone; fast, so that shrinking is.

        Args:
            measure: As for :func:`invariance.testing.assert_invariant`.
            options: Passed on. Failures are not explained unless ``explain=True``: the
                shrunken case is its own explanation.

        Returns:
            What was compared.
        """
        # A tiny network may well be constant: one class, or no unit that is alive.
        settings: dict[str, Any] = {
            "explain": False,
            "dtype": "float64",
            "allow_constant": True,
            **options,
        }
        return assert_invariant(
            measure, self.model, self.x, self.y, transforms=[self.transform], **settings
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    groups: Iterable[Group | str] | None = None,
    networks: st.SearchStrategy[DrawnNetwork] | None = None,
    max_rows: int = 12,
) -> Case:
    """Draw a network, data and a map together.

    Args:
        draw: Given by Hypothesis.
        groups: Kinds of map to draw from; by default all that the network admits. A kind
            that only BatchNorm admits brings a network with BatchNorm.
        networks: Networks to draw from; :func:`mlps` by default.
        max_rows: Rows of data at most.

    Returns:
        The case.
    """
    wanted = checked_groups(groups)
    if networks is None:
        needs = all(ABOUT[group].relu_mlp == "with BatchNorm" for group in wanted)
        networks = mlps(batch_norm=True) if needs else mlps()
    network = draw(networks)
    x, y, seed = draw(data(network.shape, network.classes, max_rows=max_rows))
    transform = draw(transforms(network.model, x, groups=wanted))
    return Case(network, x, y, transform, seed)
