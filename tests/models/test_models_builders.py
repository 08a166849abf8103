"""Builders: the right shapes, the right weights for a seed, traceable, and no side effects.

Catches: initialisation that is not torch's own, a seed that leaks into or depends on the
global generator, control flow that torch.fx cannot trace, silent bad sizes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from invariance import models
from invariance.core._errors import ModelError, UsageError

BUILDERS = {
    "mlp": (lambda **k: models.mlp((12, 8, 5), batch_norm=True, **k), (12,)),
    "cnn": (lambda **k: models.cnn(widths=(3, 4), hidden=6, **k), (1, 28, 28)),
    "cnn-norm": (
        lambda **k: models.cnn(in_channels=3, image_size=32, batch_norm=True, **k), (3, 32, 32)
    ),
    "vgg": (lambda **k: models.vgg(stages=((4,), (6, 6)), **k), (3, 32, 32)),
    "vgg-28": (
        lambda **k: models.vgg(in_channels=1, image_size=28, stages=((4,),), batch_norm=False, **k),
        (1, 28, 28),
    ),
    "resnet": (lambda **k: models.resnet(widths=(4, 6), blocks=(2, 1), **k), (3, 32, 32)),
    "resnet-28": (lambda **k: models.resnet(in_channels=1, image_size=28, **k), (1, 28, 28)),
    "vit": (lambda **k: models.vit(width=8, heads=2, hidden=12, **k), (1, 28, 28)),
    "vit-32": (
        lambda **k: models.vit(
            in_channels=3, image_size=32, patch=8, width=8, heads=4, activation="relu", **k
        ),
        (3, 32, 32),
    ),
}  # fmt: skip
IMAGES = [name for name in BUILDERS if name != "mlp"]


def bits(model):
    return torch.cat([entry.detach().flatten().double() for entry in model.parameters()])


@pytest.mark.parametrize("name", BUILDERS)
def test_shapes_and_tracing(name):
    build, shape = BUILDERS[name]
    model = build().eval()
    x = torch.rand(3, *shape)
    out = model(x)
    assert out.shape == (3, 5 if name == "mlp" else 10)
    assert torch.isfinite(out).all()
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x), out)
    assert traced(torch.rand(7, *shape)).shape[0] == 7
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_a_seed_is_a_network_and_nothing_else_is_touched(name):
    build, _ = BUILDERS[name]
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = build(seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(bits(first), bits(build(seed=5)))
    assert not torch.equal(bits(first), bits(build(seed=6)))
    double = build(seed=5, dtype=torch.float64)
    assert all(entry.dtype == torch.float64 for entry in double.parameters())
    assert torch.equal(bits(double), bits(first))
    assert all(module.training for module in first.modules())


@pytest.mark.parametrize("name", IMAGES)
def test_flat_rows(name):
    build, shape = BUILDERS[name]
    x = torch.rand(2, *shape)
    images, rows = build(seed=1).eval(), build(seed=1, flat_input=True).eval()
    assert torch.equal(images(x), rows(x.flatten(1)))
    assert torch.equal(fx.symbolic_trace(rows)(x.flatten(1)), images(x))


def test_mlp_is_torchs_own_initialisation():
    with torch.random.fork_rng():
        torch.manual_seed(17)
        expected = nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4, bias=True)
        )
    model = models.mlp((6, 5, 4), activation="tanh", batch_norm=True, seed=17)
    assert torch.equal(bits(model), bits(expected))
    names = ["linear1", "norm1", "act1", "linear2"]
    assert [name for name, _ in model.named_children()] == names
    assert [type(layer) for layer in model] == [type(layer) for layer in expected]


def test_mlp_options():
    assert models.mlp((6, 4)).linear1.bias is not None
    assert models.mlp((6, 5, 4), bias=False).linear2.bias is None
    assert len(models.mlp((6, 4))) == 1
    for name in models.ACTIVATIONS:
        assert torch.isfinite(models.mlp((6, 5, 4), activation=name)(torch.rand(2, 6))).all()
    assert models.mlp((6, 5, 4), activation="prelu").act1.weight.shape == (1,)


def test_resnet_shortcuts_and_size():
    net = models.resnet(widths=(4, 4, 6), blocks=(1, 2, 1))
    shortcuts = [
        type(module.shortcut) for module in net.modules() if isinstance(module, models.BasicBlock)
    ]
    assert shortcuts == [nn.Identity, nn.Sequential, nn.Identity, nn.Sequential]
    with torch.no_grad():
        block = copy.deepcopy(net.stage1.block1).eval()
        x = torch.rand(2, 4, 8, 8)
        block.norm2.weight.zero_()
        assert torch.equal(block(x), F.relu(x)), "a silent branch must leave the stream"
    big = models.resnet18()
    assert sum(parameter.numel() for parameter in big.parameters()) == 11_173_962


def test_attention_is_torchs_attention():
    ours = models.Attention(8, 2)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.rand(3, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_vit_sees_where_a_patch_is():
    net = models.vit(width=8, heads=2, hidden=12).eval()
    x = torch.rand(1, 1, 28, 28)
    swapped = x.clone()
    swapped[..., :7, :7], swapped[..., 7:14, :7] = x[..., 7:14, :7], x[..., :7, :7]
    assert (net(x) - net(swapped)).abs().max() > 1e-6
    with torch.no_grad():
        net.tokens.position.zero_()
    torch.testing.assert_close(net(x), net(swapped))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: models.mlp((5,)), ModelError, r"two or more positive integers.*Got \(5,\)"),
        (lambda: models.mlp((5, 0)), ModelError, "positive integers"),
        (lambda: models.mlp((5, 2.0)), ModelError, "positive integers"),
        (lambda: models.mlp("55"), ModelError, "positive integers"),
        (lambda: models.mlp((5, 4, 3), activation="rleu"), UsageError, "Did you mean 'relu'"),
        (lambda: models.cnn(widths=()), ModelError, "widths must be a non-empty"),
        (lambda: models.cnn(widths=(4, -1)), ModelError, r"widths must be a positive.*-1"),
        (lambda: models.cnn(image_size=3), ModelError, "image_size // 2"),
        (lambda: models.vgg(image_size=4), ModelError, "image_size // 2"),
        (lambda: models.vgg(stages=()), ModelError, "stages"),
        (lambda: models.resnet(widths=(4,), blocks=(1, 1)), ModelError, "1 widths"),
        (lambda: models.resnet(n_classes=0), ModelError, "n_classes must be a positive"),
        (lambda: models.vit(patch=5), ModelError, "image_size = 28 must be a multiple of 5"),
        (lambda: models.vit(width=30), ModelError, "width = 30 must be a multiple of 4"),
    ],
)
def test_bad_sizes_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_given_weights_are_the_function():
    weights = [torch.randn(4, 3), torch.randn(2, 4)]
    biases = [torch.randn(4), torch.randn(2)]
    x = torch.randn(5, 3)
    model = models.from_weights(weights, biases, activation="tanh", dtype=torch.float32)
    expected = torch.tanh(x @ weights[0].T + biases[0]) @ weights[1].T + biases[1]
    assert not model.training
    assert torch.allclose(model(x), expected)
    weights[0].zero_()
    assert model.linear1.weight.abs().min() > 0  # a copy


@pytest.mark.parametrize(
    ("weights", "biases", "words"),
    [
        ([], None, "each as wide"),
        ([[1.0, 2.0]], None, r"Got shapes \[\(2,\)\]"),
        ([[[1.0]], [[1.0, 1.0]]], None, r"\(1, 1\), \(1, 2\)"),
        ([[[1.0]]], [[1.0, 2.0]], "biases must have the shapes"),
    ],
)
def test_weights_that_make_no_chain_are_refused(weights, biases, words):
    with pytest.raises(ModelError, match=words):
        models.from_weights(weights, biases)
