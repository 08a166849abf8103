"""Hypothesis strategies: networks, data and maps that shrink to the smallest failing case.

Everything random is drawn inside a strategy, seeds included, so a failure replays from
what Hypothesis prints. Sizes shrink to one unit, exponents of factors to zero, flags to
off: what is left is the smallest net, the fewest units and the smallest factor that break
a claim.

>>> from hypothesis import given
>>> from invariance.testing import strategies
>>> @given(strategies.cases(groups=["neuron_scaling"]))
... def test_mine(case):
...     case.assert_invariant(my_measure)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

from invariance import transforms as T
from invariance.core.errors import TransformError, unknown_name
from invariance.core.groups import Group
from invariance.core.modules import weight_layers
from invariance.core.rng import generator
from invariance.models import mlp
from invariance.testing.architectures import Network
from invariance.testing.architectures import networks as build_networks
from invariance.testing.at_site import AtSite, analyse
from invariance.testing.binding import AnyMeasure
from invariance.testing.claims import assert_invariant
from invariance.testing.findings import Certificate
from invariance.testing.narrowing import KINDS_OF
from invariance.transforms.base import Transform

#: Seeds shrink towards 0 and stay readable.
SEEDS = st.integers(min_value=0, max_value=9_999)

#: Largest power of two in a factor.
MAX_EXPONENT = 5

#: Steps and rate of the short training of a "trained" network.
STEPS, RATE = 30, 0.2


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
        options: Passed to :func:`invariance.testing.architectures.networks`.

    Returns:
        A strategy for :func:`cases`; what a drawn network does not admit is not drawn.
    """

    def wrap(network: Network) -> DrawnNetwork:
        return DrawnNetwork(network, repr(network), network.shape, network.outputs)

    return build_networks(**options).map(wrap)


def randomize(model: nn.Module, seed: int) -> None:
    """Give biases, BatchNorm parameters and statistics values that no test can overlook.

    A fresh BatchNorm (gamma 1, beta 0, mean 0, variance 1) hides most mistakes about it.
    """
    source = generator(seed, "norms")
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                continue
            for name in ("weight", "running_var"):
                tensor = getattr(module, name)
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
            for name in ("bias", "running_mean"):
                tensor = getattr(module, name)
                tensor.copy_(torch.randn(tensor.shape, generator=source))


def train_briefly(model: nn.Module, features: int, classes: int, seed: int, steps: int) -> None:
    """Take a few steps of gradient descent on random data, in eval mode."""
    x, y = random_data(16, features, classes, seed)
    model.eval()
    parameters = list(model.parameters())
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.sub_(RATE * grad)


def random_data(
    rows: int, features: int | tuple[int, ...], classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw normal inputs and uniform labels from a seed, in float64."""
    source = generator(seed, "data")
    shape = (features,) if isinstance(features, int) else features
    x = torch.randn((rows, *shape), generator=source, dtype=torch.float64)
    y = torch.randint(0, classes, (rows,), generator=source)
    return x, y


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


#: Kinds of map that a drawn perceptron may admit.
DRAWABLE = (
    Group.LAYER_SCALING,
    Group.NEURON_SCALING,
    Group.PERMUTATION,
    Group.SIGN_FLIP,
    Group.LOGIT_SHIFT,
    Group.BATCHNORM_FOLD,
    Group.BATCHNORM_SCALING,
    Group.UNIT_SPLIT,
    Group.DORMANT_UNITS,
)

_NEEDS_NORM = (Group.BATCHNORM_FOLD, Group.BATCHNORM_SCALING, Group.SIGN_FLIP)


@st.composite
def transforms(
    draw: st.DrawFn,
    model: nn.Module,
    example: Tensor,
    *,
    groups: Iterable[Group | str] | None = None,
) -> Transform:
    """Draw a map that ``model`` admits.

    Factors are powers of two whose exponents shrink to zero, so that a shrunken failure
    moves as few units by as little as will do.

    Args:
        draw: Given by Hypothesis.
        model: The network.
        example: Input rows.
        groups: Kinds to draw from; by default those that the network admits.

    Returns:
        The map.
    """
    wanted = checked_groups(groups)
    found = analyse(model, example)
    possible = [g for g in wanted if g not in KINDS_OF or found.of(*KINDS_OF[g])]
    if Group.BATCHNORM_FOLD in possible and not found.norms:
        possible.remove(Group.BATCHNORM_FOLD)
    if not possible:
        reject()
    group = draw(st.sampled_from(possible))
    drawn: Transform = _DRAWERS[group](draw, model, example)
    try:
        drawn.apply(model, example)
    except TransformError:
        reject()  # a residual stream that ties layers, a norm that cannot be folded, ...
    return drawn


def checked_groups(groups: Iterable[Group | str] | None) -> list[Group]:
    """Return the groups to draw from.

    Raises:
        UsageError: For one that no strategy draws; lists the known ones.
    """
    if groups is None:
        return list(DRAWABLE)
    known = [group.value for group in DRAWABLE]
    for entry in groups:
        if str(entry) not in known:
            raise unknown_name("group", entry, known)
    return [Group(entry) for entry in groups]


def _exponents(draw: st.DrawFn, count: int) -> list[int]:
    """Exponents that are not all zero; each shrinks to zero, the last one left to one."""
    lists = st.lists(st.integers(-MAX_EXPONENT, MAX_EXPONENT), min_size=count, max_size=count)
    return draw(lists.filter(any))


def _layer_scaling(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    layers = len(weight_layers(model))
    logs = _exponents(draw, layers - 1)
    factors = [2.0 ** (a - b) for a, b in zip([*logs, 0], [0, *logs], strict=True)]
    return T.LayerScaling(factors)


def _neuron_scaling(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    groups = analyse(model, example).of("scaling", "batchnorm_affine")
    logs = iter(_exponents(draw, sum(group.size for group in groups)))
    factors = [[2.0 ** next(logs) for _ in range(group.size)] for group in groups]
    return T.NeuronScaling(factors=factors)


def _at_site(draw: st.DrawFn, model: nn.Module, example: Tensor, kind: str) -> AtSite:
    group = draw(st.sampled_from(list(analyse(model, example).of(kind))))
    if kind == "permutation":
        if group.size == 1:
            return AtSite(kind, group.site, units=(0, 0))
        first = draw(st.integers(0, group.size - 2))
        second = draw(st.integers(first + 1, group.size - 1))
        return AtSite(kind, group.site, units=(first, second))
    unit = draw(st.integers(0, group.size - 1))
    if kind == "sign_flip":
        return AtSite(kind, group.site, units=(unit,))
    # Upwards only: a compensated running variance has to stay positive.
    factor = 2.0 ** draw(st.integers(1, MAX_EXPONENT))
    return AtSite(kind, group.site, factor, units=(unit,))


def _permutation(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return _at_site(draw, model, example, "permutation")


def _sign_flip(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return _at_site(draw, model, example, "sign_flip")


def _norm_scaling(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return _at_site(draw, model, example, "batchnorm_weight_scale")


def _logit_shift(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.LogitShift(seed=draw(SEEDS))


def _fold(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.FoldBatchNorm()


def _split(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.SplitUnits(draw(st.integers(1, 3)), seed=draw(SEEDS))


def _dormant(draw: st.DrawFn, model: nn.Module, example: Tensor) -> Transform:
    return T.DormantUnits(draw(st.integers(1, 3)), seed=draw(SEEDS))


_DRAWERS: Mapping[Group, Any] = {
    Group.LAYER_SCALING: _layer_scaling,
    Group.NEURON_SCALING: _neuron_scaling,
    Group.PERMUTATION: _permutation,
    Group.SIGN_FLIP: _sign_flip,
    Group.LOGIT_SHIFT: _logit_shift,
    Group.BATCHNORM_FOLD: _fold,
    Group.BATCHNORM_SCALING: _norm_scaling,
    Group.UNIT_SPLIT: _split,
    Group.DORMANT_UNITS: _dormant,
}


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
        needs = all(group in _NEEDS_NORM for group in wanted)
        networks = mlps(batch_norm=True) if needs else mlps()
    network = draw(networks)
    x, y, seed = draw(data(network.shape, network.classes, max_rows=max_rows))
    transform = draw(transforms(network.model, x, groups=wanted))
    return Case(network, x, y, transform, seed)
