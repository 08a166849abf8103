"""The package's own architectures, their groups counted by hand."""

from __future__ import annotations

import pytest
import torch
from symmetry_reference import assert_groups_hold, randomize

from invariance.models import cnn, mlp, resnet, vgg, vit
from invariance.symmetry import SymmetryKind

# Each entry: groups and their degrees of freedom together (permutations have none).
KNOWN = {
    # hidden layers of 64 and 32 units; the head 32 -> 10 shifts by 32 weights and a bias
    "mlp": (
        lambda: mlp([20, 64, 32, 10]),
        (20,),
        {"scaling": (2, 96), "permutation": (2, 0), "logit_shift": (1, 33)},
    ),
    # BatchNorm: statistics, affine part and signs for each of the hidden units
    "mlp with BatchNorm": (
        lambda: mlp([20, 64, 32, 10], batch_norm=True),
        (20,),
        {
            "permutation": (2, 0),
            "sign_flip": (2, 96),
            "batchnorm_affine": (2, 96),
            "batchnorm_weight_scale": (2, 96),
            "logit_shift": (1, 33),
        },
    ),
    # convolutions of 8 and 16 channels, a linear layer of 32
    "cnn": (
        cnn,
        (1, 28, 28),
        {"scaling": (3, 56), "permutation": (3, 0), "logit_shift": (1, 33)},
    ),
    # convolutions of 16, 32, 64, 64 channels with BatchNorm, a linear layer of 64
    "vgg": (
        vgg,
        (3, 32, 32),
        {
            "scaling": (1, 64),
            "permutation": (5, 0),
            "sign_flip": (4, 176),
            "batchnorm_affine": (4, 176),
            "batchnorm_weight_scale": (4, 176),
            "logit_shift": (1, 65),
        },
    ),
    # streams of 8 and 16 channels, inner layers of 8 and 16: four families; six BatchNorms
    # (stem 8; block one 8 and 8; block two 16, 16 and the projection's 16)
    "resnet": (
        resnet,
        (3, 32, 32),
        {
            "permutation": (4, 0),
            "sign_flip": (6, 72),
            "batchnorm_affine": (4, 48),
            "batchnorm_weight_scale": (6, 72),
            "logit_shift": (1, 17),
        },
    ),
    # Two blocks, width 32, 4 heads of 8, MLPs of 64. Scaling, a block: norm1 32, queries with
    # keys 32, values 32, norm2 32; the last norm 32. Permutation: the stream; a block: 4
    # times queries with keys, 4 times values, the MLP. Signs: like scaling, and the whole
    # stream. Mixing, a block: 4 heads of queries with keys, 4 of values, 64 degrees each.
    "vit": (
        vit,
        (1, 28, 28),
        {
            "scaling": (9, 288),
            "permutation": (19, 0),
            "sign_flip": (10, 289),
            "linear_mixing": (16, 1024),
            "logit_shift": (1, 33),
            # two layers of 32 keys, 32 + 64 inputs and two biases; a patch, a bias, 16 positions
            "translation": (13, 2 * (32 + 32 + 64 + 2) + 49 + 1 + 16),
        },
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_groups_of_known_models(name):
    build, shape, expected = KNOWN[name]
    model = randomize(build(), 0)
    x, probe = torch.randn((2, 2, *shape), generator=torch.Generator().manual_seed(0)).double()
    found = assert_groups_hold(model, x, [probe])
    assert {
        k.value: (found.count(k), found.dof(k)) for k in SymmetryKind if found.count(k)
    } == expected
