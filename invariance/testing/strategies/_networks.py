"""Strategies for networks and data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from invariance.models import mlp
from invariance.testing.strategies._architectures import Network
from invariance.testing.strategies._architectures import networks as build_networks
from invariance.testing.strategies._drawing import random_data, randomize, train_briefly

#: Seeds shrink towards 0 and stay readable.
SEEDS = st.integers(min_value=0, max_value=9_999)


#: Steps of the short training of a "trained" network.
STEPS = 30


@dataclass(frozen=True, eq=False)
class DrawnNetwork:
    """A network with the recipe that rebuilds it.

    Attributes:
        model: The network, float64, in eval mode.
        recipe: What it was built from, as it is printed.
        shape: Shape of one input, ``(features,)`` or ``(channels, height, width)``.
        classes: Outputs.
    """

    model: nn.Module = field(repr=False)
    recipe: str
    shape: tuple[int, ...]
    classes: int

    def __repr__(self) -> str:
        return self.recipe


@st.composite
def mlps(
    draw: st.DrawFn,
    *,
    max_hidden: int = 3,
    max_units: int = 6,
    max_features: int = 5,
    max_classes: int = 4,
    batch_norm: bool | None = None,
    bias: bool | None = None,
    trained: bool | None = None,
    activations: Sequence[str] = ("relu", "leaky_relu"),
) -> DrawnNetwork:
    """Draw a multilayer perceptron with random or briefly trained weights, in float64.

    Args:
        draw: Given by Hypothesis.
        max_hidden: Hidden layers at most; at least one.
        max_units: Units a hidden layer at most.
        max_features: Input features at most.
        max_classes: Classes at most; at least two.
        batch_norm: With BatchNorm or not; ``None`` to draw.
        bias: With biases or not; ``None`` to draw.
        trained: Briefly trained or not; ``None`` to draw.
        activations: Names to draw from, the simplest first.

    Returns:
        The network.
    """
    hidden = draw(st.lists(st.integers(1, max_units), min_size=1, max_size=max_hidden))
    features, classes = draw(st.integers(1, max_features)), draw(st.integers(2, max_classes))
    norm = draw(st.booleans()) if batch_norm is None else batch_norm
    with_bias = draw(st.booleans()) if bias is None else bias
    activation = draw(st.sampled_from(list(activations)))
    seed = draw(SEEDS)
    steps = STEPS if (draw(st.booleans()) if trained is None else trained) else 0
    sizes = (features, *hidden, classes)
    model = mlp(
        sizes, activation=activation, batch_norm=norm, bias=with_bias, seed=seed,
        dtype=torch.float64,
    )  # fmt: skip
    randomize(model, seed)
    if steps:
        train_briefly(model, features, classes, seed, steps)
    recipe = (
        f"mlp({list(sizes)}, activation={activation!r}, batch_norm={norm}, bias={with_bias}, "
        f"seed={seed}, steps={steps})"
    )
    return DrawnNetwork(model.eval(), recipe, (features,), classes)


def architectures(**options: Any) -> st.SearchStrategy[DrawnNetwork]:
    """Draw networks of many kinds: convolutions, residual streams, norms, pooling, sharing.

    Args:
        options: Passed to :func:`invariance.testing.strategies._architectures.networks`.

    Returns:
        A strategy for :func:`invariance.testing.strategies.cases`; what a drawn network does
        not admit is not drawn.
    """

    def wrap(network: Network) -> DrawnNetwork:
        return DrawnNetwork(network, repr(network), network.shape, network.outputs)

    return build_networks(**options).map(wrap)


@st.composite
def data(
    draw: st.DrawFn, features: int | tuple[int, ...], classes: int, *, max_rows: int = 12
) -> tuple[Tensor, Tensor, int]:
    """Draw inputs, labels and the seed that they come from.

    Args:
        draw: Given by Hypothesis.
        features: Columns of the inputs, or the shape of one input.
        classes: Number of labels.
        max_rows: Rows at most; at least two.

    Returns:
        ``(x, y, seed)``.
    """
    rows, seed = draw(st.integers(2, max_rows)), draw(SEEDS)
    x, y = random_data(rows, features, classes, seed)
    return x, y, seed
