"""Translations are the directions ``d`` with ``J d = 0`` at all parameters and inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from symmetry_reference import (
    assert_groups_hold,
    diagonal_null_directions,
    enlarge_eps,
    randomize,
)
from torch import nn

import invariance as inv
from invariance.symmetry import SymmetryKind
from invariance.transforms import Translation


class Stream(nn.Module):
    """A pre-norm residual stream: attention over tokens, and a perceptron."""

    def __init__(self, *, fused=True, final=True, position=False):
        super().__init__()
        self.e, self.n, self.q = nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 12)
        self.p, self.m, self.f, self.g = (
            nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 4),
        )  # fmt: skip
        self.l, self.h = nn.LayerNorm(4) if final else nn.Identity(), nn.Linear(4, 2)
        self.position = nn.Parameter(torch.randn(1, 3, 4)) if position else None
        self.fused = fused

    def forward(self, x):
        x = self.e(x)
        if self.position is not None:
            x = x + self.position
        q, k, v = self.q(self.n(x)).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 0.7).softmax(-1) @ v
        x = x + self.p(y.transpose(1, 2).reshape_as(x))
        x = x + self.g(torch.tanh(self.f(self.m(x))))
        return self.h(self.l(x))


class Bias(nn.Module):
    """A table of biases that softmax over keys reads: one number a head goes unseen."""

    def __init__(self):
        super().__init__()
        self.q, self.h = nn.Linear(2, 4), nn.Linear(2, 2)
        self.table = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        q = self.q(x).reshape(*x.shape[:2], 2, 2).transpose(1, 2)
        where = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 2, 1]])
        scores = q @ q.transpose(-2, -1) + self.table[where].permute(2, 0, 1)
        y = scores.softmax(-1) @ x.unsqueeze(1)
        return self.h(y.sum(1))


class Mask(nn.Module):
    """A mask that fused attention adds: one number a query goes unseen, and none a key."""

    def __init__(self):
        super().__init__()
        self.q, self.h = nn.Linear(2, 2), nn.Linear(4, 2)
        self.mask = nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        y = F.scaled_dot_product_attention(self.q(x[:, :2]), x, x, attn_mask=self.mask)
        return self.h(y.flatten(1))


class Joined(nn.Module):
    """A class token in front of the others, whose shift goes unseen with theirs."""

    def __init__(self):
        super().__init__()
        self.e, self.n, self.h = nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.e(x)], 1)
        return self.h(torch.tanh(self.n(x)).sum(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.n, self.h = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.h(torch.tanh(self.n(self.e((x[..., 0].abs() * 2).long().clamp(max=4)))).sum(1))


def conv(norm, **options):
    return nn.Sequential(
        nn.Conv1d(2, 4, 2, **options), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
    )


NETS = [
    # name, network, shape of a row, translations
    ("pre-norm stream", Stream, (3, 2), 2 + 1 + 4 + 4 + 1 + 3 + 1),
    ("scores written out", lambda: Stream(fused=False), (3, 2), 2 + 1 + 4 + 4 + 1 + 3 + 1),
    ("one instance norm", lambda: conv(nn.InstanceNorm1d(4)), (2, 5), 4),
    ("affine instance norm", lambda: conv(nn.InstanceNorm1d(4, affine=True)), (2, 5), 4),
    ("two groups", lambda: conv(nn.GroupNorm(2, 4)), (2, 5), 2),
    ("one group", lambda: conv(nn.GroupNorm(1, 4)), (2, 5), 1),
    ("batch statistics", lambda: conv(nn.BatchNorm1d(4, track_running_stats=False)), (2, 5), 4),
    ("running statistics", lambda: conv(nn.BatchNorm1d(4)), (2, 5), 0),
    ("padded", lambda: nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.InstanceNorm1d(4), nn.Tanh(), nn.Flatten(),
        nn.Linear(20, 2)), (2, 5), 4),
    ("a norm of all features", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)), (3,), 3 + 1),
    ("a root mean square", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.RMSNorm(4, eps=0.3), nn.Tanh(), nn.Linear(4, 2)), (3,), 0),
    ("a function between", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)), (3,), 0),
    ("a number between", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Flatten(), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)), (3,), 4),
    ("transposed", lambda: nn.Sequential(
        nn.ConvTranspose1d(2, 4, 2), nn.InstanceNorm1d(4), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 2)), (2, 5), 4),
    ("whole attention", lambda: nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, activation=torch.tanh),
        nn.Linear(4, 2)), (3, 4), 4 + 4 + 1 + 3 + 1),
    ("a table of biases", Bias, (3, 2), 2),
    ("a mask", Mask, (3, 2), 2),
    ("a class token", Joined, (3, 2), 2 + 1 + 1),
    # every word may shift alike, whether the example has it or not
    ("words", Words, (3, 1), 5),
]  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "count"), [net[1:] for net in NETS],
                         ids=[net[0] for net in NETS])  # fmt: skip
def test_translations_are_the_numerical_null_directions(build, shape, count):
    model = enlarge_eps(randomize(build(), 0))

    def make(seed):
        stream = torch.Generator().manual_seed(seed)
        return (torch.randn((6, *shape), dtype=torch.float64, generator=stream),)

    found = assert_groups_hold(model, make(0), [make(1), make(2)])
    assert found.dof(SymmetryKind.TRANSLATION) == count
    null = diagonal_null_directions(model, make, statistics=False, least=12, plain=True)
    # logits' shifts are none, for the logits move
    assert null == count


@pytest.mark.parametrize(
    ("options", "count", "shared"),
    [
        ({"position": True}, 16 + 3, 3),
        # the head reads the stream: nothing but keys' biases is free by itself
        ({"final": False}, 4, 2),
    ],
)
def test_what_several_parameters_add_they_could_share_out(options, count, shared):
    """A shift of one parameter that another takes back is not looked for."""
    model = enlarge_eps(randomize(Stream(**options), 0))

    def make(seed):
        stream = torch.Generator().manual_seed(seed)
        return (torch.randn((6, 3, 2), dtype=torch.float64, generator=stream),)

    found = assert_groups_hold(model, make(0), [make(1)])
    null = diagonal_null_directions(model, make, statistics=False, least=12, plain=True)
    assert found.dof(SymmetryKind.TRANSLATION) == null - shared == count


class Reads(nn.Module):
    """Two readers of one normalised value; ``how`` says what the other one does."""

    def __init__(self, how):
        super().__init__()
        self.a, self.n, self.h, self.how = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), how

    def forward(self, x):
        a = self.a(x)
        return self.h(torch.tanh(self.n(a))) + self.how(a)


@pytest.mark.parametrize(
    "how",
    [
        lambda a: a.sum(-1, keepdim=True),
        lambda a: a.detach()[..., :2],
        lambda a: torch.relu_(a.view_as(a))[..., :2],
        lambda a: a.data.mul(2.0)[..., 1:3],
        lambda a: F.relu(a)[..., :2],
    ],
)
def test_what_something_else_reads_is_not_free(how):
    model = Reads(how).double()
    assert not inv.symmetries(model, torch.randn(5, 3).double()).of("translation")


def test_the_transform_moves_and_leads_back():
    model, x = randomize(Stream(), 0), torch.randn(5, 3, 2).double()
    there = Translation(1, scale=2.0)
    applied = there.apply(model, x)
    moved = applied.model
    assert applied.verification.max_abs_logit_diff < 1e-12
    assert not torch.allclose(moved.p.weight, model.p.weight)
    assert torch.equal(moved.h.weight, model.h.weight)
    back = there.inverse()(moved, x)
    assert torch.allclose(back.p.weight, model.p.weight)
    # they are one network in canonical form, and on one orbit
    related = inv.same_orbit(model, moved, x)
    assert related
    assert torch.allclose(related.apply(model).g.weight, moved.g.weight)
    with pytest.raises(inv.TransformError, match="no parameter that may be shifted"):
        Translation()(inv.models.mlp([2, 3, 2]), torch.rand(1, 2))
