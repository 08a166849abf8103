"""Reported degrees of freedom equal the null directions of ``J diag(theta)``, rule by rule.

Would catch: a rule that forgets a constraint (the claim fails on other inputs), and one that
stops what it could let through (the count falls short of the numerical dimension).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from symmetry_reference import (
    affine_norm_channels,
    assert_groups_hold,
    diagonal_null_directions,
    enlarge_eps,
    randomize,
)
from torch import nn
from torch.nn.utils import parametrize, prune

import invariance.symmetry.analysis._symmetries as engine
from invariance.symmetry import SCALING_KINDS, SymmetryKind
from invariance.symmetry.analysis._entries import reshape_labels


@pytest.fixture(autouse=True)
def _rules_do_not_fail(monkeypatch):
    """A rule that trips over its arguments is a stop for users, and a failure here."""
    monkeypatch.setattr(engine, "_RULE_FAILURES", (engine.NotUnderstoodError,))


class Net(nn.Module):
    """``out(function(self, hidden(x)))`` with extra parameters by keyword."""

    def __init__(self, function, features=3, width=4, seen=None, **extra):
        super().__init__()
        self.a, self.o = nn.Linear(features, width), nn.Linear(seen or width, 2)
        self.function = function
        for name, thing in extra.items():
            if isinstance(thing, tuple):
                setattr(self, name, nn.Parameter(torch.randn(thing)))
            elif isinstance(thing, torch.Tensor):
                self.register_buffer(name, thing)
            else:
                setattr(self, name, thing)

    def forward(self, x):
        return self.o(self.function(self, self.a(x)))


@dataclass(frozen=True)
class Tiny:
    """A net, its input, the groups that it has beside scalings, and null directions by name.

    ``missed`` counts null directions that are no scaling of units, with the reason in a
    comment where it is not zero.
    """

    name: str
    build: object
    permutations: int = 1
    signs: int = 0
    mixings: int = 0
    shape: tuple[int, ...] = (3,)
    missed: int = 0
    shifts: int | None = None  # translations, where the numerical test looks for them


class Standardised(nn.Conv1d):
    """A convolution with a standardised weight, as in NFNet (with gain) and BiT (without)."""

    def __init__(self, *arguments, gain):
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1)) if gain else None

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = None if self.gain is None else (self.gain * 0.7).view(-1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, eps=0.3)
        return F.conv1d(x, weight.reshape_as(self.weight), self.bias)


def standardised(gain):
    return nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.ReLU(), Standardised(4, 3, 2, gain=gain), nn.ReLU(),
        nn.Flatten(), nn.Linear(9, 2),
    )  # fmt: skip


class Lora(nn.Module):
    """Merged low rank: ``W + 0.5 B A``."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 4), nn.Linear(5, 2)
        self.w = nn.Parameter(torch.randn(5, 4))
        self.u, self.v = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return self.o(F.linear(self.a(x).relu(), self.w + 0.5 * (self.u @ self.v)).relu())


def pruned():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    torch.manual_seed(0)
    for layer in (0, 2):
        prune.random_unstructured(model[layer], "weight", amount=0.3)
    with torch.no_grad():
        model(torch.randn(1, 3))  # leaves a weight without a graph, which can be copied
    return model


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.arange(20).reshape(5, 4) % 3 > 0).float())

    def forward(self, weight):
        return weight * self.mask


class Gained(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.g = nn.Parameter(torch.randn(*shape) if shape else torch.randn(()))

    def forward(self, weight):
        return weight * self.g


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight + weight.T


def parametrized(part, width=5):
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)
    )
    parametrize.register_parametrization(model[2], "weight", part, unsafe=True)
    return model


COMPUTED = [
    # seven entries are masked and have no influence
    Tiny("a masked weight", lambda: parametrized(Masked()), permutations=2, missed=7),
    Tiny("a gain a row", lambda: parametrized(Gained(5, 1)), permutations=2, signs=1),
    Tiny("a gain a column", lambda: parametrized(Gained(1, 4)), permutations=2, signs=1),
    Tiny("a gain a column, flat", lambda: parametrized(Gained(4)), permutations=2, signs=1),
    Tiny("one gain", lambda: parametrized(Gained()), permutations=2, signs=1),
    # every entry has a factor of its own to exchange: 20 directions that are no units
    Tiny("a gain an entry", lambda: parametrized(Gained(5, 4)), permutations=2, missed=20),
    Tiny("a symmetric weight", lambda: parametrized(Symmetric(), 4), permutations=1),
    Tiny("merged low rank", Lora, permutations=3, signs=1, mixings=1),
    Tiny(
        "a product of weights",
        lambda: Net(lambda m, h: h.relu() @ (m.u @ m.v), u=(4, 3), v=(3, 4)),
        permutations=3,
        signs=2,
        mixings=2,
    ),
    Tiny("standardised with a gain", lambda: standardised(True), permutations=2, signs=1,
         shape=(2, 5)),
    Tiny("standardised without", lambda: standardised(False), permutations=2, shape=(2, 5)),
]  # fmt: skip


class Recurrent(nn.Module):
    """The sum over positions of what a recurrent layer makes."""

    def __init__(self, layer, **extra):
        super().__init__()
        self.layer, self.o = layer(3, 4, batch_first=True, **extra), nn.LazyLinear(2)
        self(torch.randn(1, 2, 3))

    def forward(self, x):
        return self.o(self.layer(x)[0].sum(1))


class Bag(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.e, self.o = nn.EmbeddingBag(5, 4, mode=mode), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(self.e((x[..., 0].abs() * 2).long().clamp(max=4)))


class Bili(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(3, 4), nn.Linear(3, 2)
        self.b, self.o = nn.Bilinear(4, 2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.o(self.b(self.a(x).relu(), self.c(x).relu()).relu())


def tiny(name, function, permutations=1, signs=0, mixings=0, missed=0, shape=(3,), **extra):
    """A net with one function between its layers."""
    return Tiny(name, lambda: Net(function, **extra), permutations, signs, mixings, shape, missed)


RULES = [
    tiny("glu", lambda m, h: F.glu(h, -1), width=8, seen=4, signs=1),
    tiny("addcmul", lambda m, h: torch.addcmul(h.relu(), m.g, h.abs(), value=0.5), g=(4,)),
    tiny("addcmul of a layer scale", lambda m, h: torch.addcmul(m.b, m.g, h.relu()),
         b=(4,), g=(4,), signs=1),
    tiny("addcdiv", lambda m, h: torch.addcdiv(h.relu(), h, m.g.exp()), g=(4,)),
    tiny("lerp", lambda m, h: torch.lerp(h.relu(), h, 0.3)),
    tiny("lerp of a gate", lambda m, h: torch.lerp(h, h.tanh(), m.g), g=(4,), signs=1),
    tiny("where", lambda m, h: torch.where(h > 0, h, 0.2 * h)),
    tiny("where with a constant", lambda m, h: torch.where(h > 0, h, 0.0)),
    tiny("where with a number", lambda m, h: torch.where(h > 0, h, 0.5)),
    tiny("h times its step", lambda m, h: h * (h > 0)),
    tiny("h times a cast step", lambda m, h: h * (h >= 0).to(h.dtype)),
    # a jump leaves no trace in derivatives: four directions that are none
    tiny("times a number that is no float32", lambda m, h: (h * 1e-300).relu() * 1e300),
    tiny("times zero, plus itself", lambda m, h: h * 0.0 + h.relu()),
    tiny("a step at one", lambda m, h: h * (h > 1), missed=4),
    tiny("square", lambda m, h: h**2, signs=1),
    tiny("cube", lambda m, h: h**3, signs=1),
    tiny("a power", lambda m, h: h.abs() ** 0.3, signs=1),
    tiny("a power of a third", lambda m, h: h.relu().pow(1 / 3)),
    tiny("the eighth power", lambda m, h: h.pow(8), signs=1),
    tiny("matrix and vector", lambda m, h: h.relu() * (h.relu() @ m.v).unsqueeze(-1),
         v=(4,), signs=1),
    tiny("std", lambda m, h: h.relu() * h.std(-1, keepdim=True)),
    tiny("var", lambda m, h: h * h.var(-1, keepdim=True), signs=1),
    tiny("norm", lambda m, h: h * h.norm(dim=-1, keepdim=True), signs=1),
    tiny("norm of order one", lambda m, h: h * h.norm(1, dim=-1, keepdim=True), signs=1),
    tiny("norm of order three", lambda m, h: h * torch.norm(h, 3, -1, True), signs=1),
    tiny("largest entry", lambda m, h: h.relu() * torch.linalg.vector_norm(h, torch.inf, -1, True)),
    tiny("leaky", lambda m, h: F.leaky_relu(h, 0.3)),
    tiny("threshold", lambda m, h: F.threshold(h, 0.0, 0.0)),
    tiny("threshold at one", lambda m, h: F.threshold(h, 1.0, 0.0), missed=4),
    tiny("running sum", lambda m, h: h.relu().cumsum(1)[:, -1], shape=(4, 3)),
    tiny("largest of positions", lambda m, h: h.topk(2, dim=1).values.sum(1), shape=(4, 3)),
    tiny("sorted positions", lambda m, h: h.relu().sort(1)[0][:, 1], shape=(4, 3)),
    # the outer product of two sets of channels stops what moves and mixes either
    tiny("three-operand einsum",
         lambda m, h: torch.einsum("bi,bj,jk->bik", h, h.relu(), m.v).flatten(1),
         v=(4, 2), seen=8, permutations=0, signs=1),
    Tiny("bilinear", Bili, permutations=3),
    Tiny("embedding bag", lambda: Bag("mean"), signs=1, mixings=1, shape=(3, 1)),
    Tiny("largest of a bag", lambda: Bag("max"), shape=(3, 1)),
    Tiny("rnn, tanh", lambda: Recurrent(nn.RNN), signs=1, shape=(3, 3)),
    Tiny("rnn, relu", lambda: Recurrent(nn.RNN, nonlinearity="relu"), shape=(3, 3)),
    Tiny("gru", lambda: Recurrent(nn.GRU), signs=1, shape=(3, 3)),
    Tiny("lstm", lambda: Recurrent(nn.LSTM), signs=1, shape=(3, 3)),
    Tiny("two layers of lstm", lambda: Recurrent(nn.LSTM, num_layers=2), 2, 2, shape=(3, 3)),
    Tiny("lstm without biases", lambda: Recurrent(nn.LSTM, bias=False), 1, 1, shape=(3, 3)),
    Tiny("gru in both directions", lambda: Recurrent(nn.GRU, bidirectional=True), 2, 2,
         shape=(3, 3)),
]  # fmt: skip

TINY = COMPUTED + RULES


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_degrees_are_the_numerical_dimension(case):
    model = enlarge_eps(randomize(case.build(), 0))

    def make(seed):
        stream = torch.Generator().manual_seed(seed)
        return (torch.randn((8, *case.shape), dtype=torch.float64, generator=stream),)

    found = assert_groups_hold(model, make(0), [make(1), make(2)])
    null = diagonal_null_directions(model, make, least=25) - affine_norm_channels(model)
    assert found.dof(*SCALING_KINDS) == null - case.missed
    counts = [
        found.count(k)
        for k in (SymmetryKind.PERMUTATION, SymmetryKind.SIGN_FLIP, SymmetryKind.LINEAR_MIXING)
    ]
    assert counts == [case.permutations, case.signs, case.mixings]


def test_lottery_tickets_keep_their_symmetries():
    model = pruned().double()
    x, probe = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    found = assert_groups_hold(model, (x,), [(probe,)])
    assert found.count(SymmetryKind.PERMUTATION) == 2
    assert found.dof(*SCALING_KINDS) == 9
    # the masks follow the weights
    assert {"0.weight_mask", "2.weight_mask"} <= {
        leg.parameter for group in found.of(SymmetryKind.PERMUTATION) for leg in group.legs
    }


@pytest.mark.parametrize(
    ("labels", "before", "after"),
    [
        ((1, 3, 1), (1, 3, 8), (3, 2, 2, 2)),
        ((1, 3, 8), (1, 3, 8), (3, 2, 2, 2)),
        ((1, 1, 8), (1, 3, 8), (3, 2, 2, 2, 1)),
        ((3, 1, 1, 1), (3, 2, 2, 2), (24,)),
        ((1, 2, 1, 1), (3, 2, 2, 2), (1, 3, 8)),
        ((), (), (1, 1)),
    ],
)
def test_labels_are_reshaped_like_what_they_label(labels, before, after):
    count = math.prod(labels)
    array = np.arange(count).reshape(labels)
    got = reshape_labels(array, before, after)
    assert np.array_equal(
        np.broadcast_to(got, after), np.broadcast_to(array, before).reshape(after)
    )
