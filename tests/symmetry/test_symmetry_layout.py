"""Channels whose entries are moved about, some unlike others: which of them still exchange?

Would catch: entries of two channels matched by their place where one of them was flipped or
thinned out (the network would change), and channels kept apart that lie alike.
"""

from __future__ import annotations

import pytest
import torch
from symmetry_reference import assert_groups_hold, randomize
from torch import nn

from invariance.symmetry import SymmetryKind


def flipped(h):
    return torch.cat([h[:, :2], h[:, 2:].flip(2)], 1)


def one_by_one(h):
    return torch.cat([h[:, :1], h[:, 1:2].flip(2), h[:, 2:]], 1)


def thinned(h):
    return torch.cat([h[:, :2, ::2], h[:, 2:, :8]], 1)


def rolled(h):
    return torch.cat([h[:, :2], h[:, 2:].roll(3, 2)], 1)


def overwritten(h):
    out = h.clone()
    out[:, 2:] = h[:, 2:].flip(2)
    return out


class Net(nn.Module):
    """Four channels of sixteen entries, rearranged, read by a consumer."""

    def __init__(self, rearrange, read):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.flat = nn.LazyLinear(3) if read in FLAT else None
        self.mix = nn.Conv1d(4, 5, 3)
        self.tokens = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(5, 3)
        self.rearrange, self.read = rearrange, read

    def forward(self, x):
        return self.read(self, self.rearrange(torch.relu(self.conv(x)).flatten(2)))


def flatten(net, h):
    return net.flat(h.flatten(1))


def relu_flatten(net, h):
    return net.flat(torch.relu(h - 0.2).flatten(1))


def convolve(net, h):
    return net.head(torch.relu(net.mix(h)).sum(2))


def by_token(net, h):
    return net.head(torch.relu(net.tokens(h.transpose(1, 2))).sum(1))


def normalised(net, h):
    return net.head(torch.relu(net.tokens(net.norm(h.transpose(1, 2)))).sum(1))


def pooled(net, h):
    return net.flat(nn.functional.max_pool1d(h, 3).flatten(1))


def summed(net, h):
    return net.flat(h.square().sum(2))


def products(net, h):
    return net.flat((h @ h.transpose(1, 2)).flatten(1))


FLAT = (flatten, relu_flatten, pooled, summed, products)


def twice(rearrange):
    return lambda h: h + rearrange(h)


EVEN = {
    "as they are": lambda h: h,
    "all flipped": lambda h: h.flip(2),
    "every other entry": lambda h: h[:, :, ::2],
    "flipped by rows": lambda h: h.transpose(0, 1).flip(2).transpose(0, 1),
    "padded with a reflection": lambda h: nn.functional.pad(h.flip(2), (1, 1), mode="reflect"),
}
UNEVEN = {"flipped": flipped, "rolled": rolled, "overwritten": overwritten, "thinned": thinned}

#: Rearrangement, consumer, and the channels that exchange with each other.
CASES = [
    *((move, read, [4]) for move in EVEN.values() for read in (flatten, convolve, by_token)),
    *((move, read, [4]) for move in (flipped, rolled, overwritten, one_by_one)
      for read in (flatten, relu_flatten)),
    (thinned, flatten, [2, 2]),
    (one_by_one, convolve, [3]),
    *((move, read, [2, 2]) for move in UNEVEN.values() for read in (convolve, by_token)),
    *((twice(move), flatten, [2, 2]) for move in (flipped, rolled)),
]  # fmt: skip


def name_of(value):
    return getattr(value, "__name__", None) if callable(value) else None


def found_in(rearrange, read):
    model = Net(rearrange, read).double()
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(x)
    model = randomize(model, 1)
    probes = [torch.randn(2, 1, 6, 6, dtype=torch.float64) for _ in range(2)]
    for seed in range(4):  # a random permutation of few channels may be none
        found = assert_groups_hold(model, x, probes, seed=10 * seed)
    return found


def exchanged(found):
    """Sizes of the sets of channels of the first layer that exchange."""
    groups = [
        group
        for group in found.groups
        if group.kind is SymmetryKind.PERMUTATION
        and any("conv" in leg.parameter for leg in group.legs)
    ]
    return sorted(group.size for group in groups)


@pytest.mark.parametrize(("rearrange", "read", "sizes"), CASES, ids=name_of)
def test_channels_exchange_if_and_only_if_their_entries_can_be_matched(rearrange, read, sizes):
    assert exchanged(found_in(rearrange, read)) == sizes


@pytest.mark.parametrize("read", [normalised, pooled, summed, products], ids=name_of)
@pytest.mark.parametrize("rearrange", [*UNEVEN.values(), one_by_one], ids=name_of)
def test_what_is_claimed_of_mixed_positions_holds(rearrange, read):
    found_in(rearrange, read)  # sound; these may claim less than there is
