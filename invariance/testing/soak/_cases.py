"""The random cases of the soak: a network, data and maps, decided by two numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import invariance.transforms as T
from invariance.cells import BrokenTransformError, MappedNetwork
from invariance.core._errors import TransformError
from invariance.core._groups import ABOUT, Group
from invariance.core._rng import generator
from invariance.models import mlp
from invariance.testing.gate._bound_measure import mapped
from invariance.testing.strategies._drawing import random_data, randomize, train_briefly
from invariance.transforms._base import Transform
from invariance.transforms._members import draw_member

#: Maps drawn for each network, each of another kind, as far as there are kinds.
MAPS = 5

#: Steps of the brief training that every second network gets.
STEPS = 40


@dataclass(frozen=True, eq=False)
class SoakCase:
    """A network with data and maps, and the transformed networks once they are asked for.

    Attributes:
        seed: Seed of the run.
        number: Number of the case within it.
        model: The network, float64, in eval mode.
        x: ``(n, d)`` inputs.
        y: ``(n,)`` labels.
        maps: Maps of different kinds; some are followed by a permutation.
        network: Where they are put to the network, once for all measures.
        member_seed: Decides the maps' members and the round-off probes.
    """

    seed: int
    number: int
    model: nn.Module
    x: Tensor
    y: Tensor
    maps: tuple[Transform, ...]
    network: MappedNetwork
    member_seed: int

    def __str__(self) -> str:
        return f"seed {self.seed}, case {self.number}"

    def admitted(self, declared: frozenset[Group]) -> list[Transform]:
        """Return the maps made of ``declared`` kinds that the network admits."""
        fitting = []
        for transform in self.maps:
            if not declared.issuperset(transform.groups):
                continue
            try:
                self.network.under(transform)
            except BrokenTransformError:
                raise
            except TransformError:
                continue  # a residual stream that ties layers, no unit that can be split, ...
            fitting.append(transform)
        return fitting


def draw_case(seed: int, number: int) -> SoakCase:
    """Draw the network, data and maps of one case."""
    stream = generator(seed, "soak case", number)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=stream))

    hidden = [integer(1, 7) for _ in range(integer(1, 3))]
    features, classes, rows = integer(2, 6), integer(2, 4), integer(6, 16)
    norm = bool(integer(0, 1))
    member_seed = integer(0, 2**30)
    model = mlp(
        (features, *hidden, classes),
        activation=("relu", "leaky_relu")[integer(0, 1)],
        batch_norm=norm,
        bias=bool(integer(0, 3)),
        seed=member_seed,
        dtype=torch.float64,
    ).eval()
    randomize(model, member_seed)
    if integer(0, 1):
        train_briefly(model, features, classes, member_seed, STEPS)
    x, y = random_data(rows, features, classes, member_seed)
    admitted = ("all", "with BatchNorm") if norm else ("all",)
    kinds = [group for group in Group if ABOUT[group].relu_mlp in admitted]
    order = torch.randperm(len(kinds), generator=stream).tolist()
    maps: list[Transform] = []
    for place in order[:MAPS]:
        drawn = draw_member(kinds[place], model, member_seed)
        composed = integer(0, 3) == 0 and kinds[place] is not Group.PERMUTATION
        maps.append(T.Compose([drawn, T.Permutation(member_seed)]) if composed else drawn)
    network = mapped(model, x, torch.float64, keep=True)
    return SoakCase(seed, number, model, x, y, tuple(maps), network, member_seed)
