"""Linear mixing: would catch a mixed-up transpose, a head that leaks, a missed bias."""

from __future__ import annotations

import copy

import pytest
import torch
from transforms_zoo import build

from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.transforms import LinearMixing

PATHS = ["linear_path", "attention", "attention_packed", "attention_torch"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PATHS)
def test_function_stays_and_weights_move(name: str, seed: int) -> None:
    model, x, _ = build(name, seed)
    before = copy.deepcopy(model.state_dict())
    applied = LinearMixing(seed, spread=10.0).apply(model, x)
    expected = model(x).detach()
    gap = (applied.model(x).detach() - expected).abs().max()
    assert float(gap) <= 1e-11 * float(expected.abs().max())
    assert applied.action is None
    assert LinearMixing.group is Group.LINEAR_MIXING
    moved = sum(
        float((after - before[key]).abs().max()) > 1e-3
        for key, after in applied.model.state_dict().items()
    )
    assert moved == {"linear_path": 3, "attention": 7}.get(name, 3)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", PATHS)
def test_inverse_leads_back(name: str) -> None:
    model, x, _ = build(name)
    mixing = LinearMixing(3, spread=5.0)
    back = mixing.inverse()(mixing(model, x), x)
    for key, value in back.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=1e-12)


def test_matrices_act_as_written() -> None:
    """W1 -> A W1, b1 -> A b1, W2 -> W2 A^-1, by the definition."""
    model, x, _ = build("linear_path")
    applied = LinearMixing(0).apply(model, x)
    (matrix,) = applied.detail["matrices"].values()
    old, new = model.state_dict(), applied.model.state_dict()
    torch.testing.assert_close(new["2.weight"], matrix @ old["2.weight"])
    torch.testing.assert_close(new["2.bias"], matrix @ old["2.bias"])
    torch.testing.assert_close(new["3.weight"], old["3.weight"] @ torch.linalg.inv(matrix))
    values = torch.linalg.svdvals(matrix)
    assert float(values.max()) <= 3.0 + 1e-12
    assert float(values.min()) >= 1 / 3.0 - 1e-12


def test_every_head_keeps_its_scores() -> None:
    """W_Q^T W_K of each head, including its biases, is what attention sees."""
    model, x, _ = build("attention")
    new = LinearMixing(0)(model, x)
    for old_layer, new_layer in ((model.attention, new.attention),):
        for head in range(2):
            rows = slice(4 * head, 4 * head + 4)
            products = []
            for layer in (old_layer, new_layer):
                q = torch.cat([layer.q.weight, layer.q.bias[:, None]], 1)[rows]
                k = torch.cat([layer.k.weight, layer.k.bias[:, None]], 1)[rows]
                v = torch.cat([layer.v.weight, layer.v.bias[:, None]], 1)[rows]
                products.append((q.T @ k, layer.out.weight[:, rows] @ v))
            for old, mixed in zip(*products, strict=True):
                torch.testing.assert_close(mixed, old, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "mlp_gelu", "cnn", "resnet"])
def test_nonlinear_paths_are_refused(name: str) -> None:
    model, x, _ = build(name)
    with pytest.raises(TransformError, match="no linear path"):
        LinearMixing()(model, x)


def test_repr_seeds_and_arguments() -> None:
    mixing = LinearMixing(3, spread=2.0)
    assert repr(eval(repr(mixing))) == repr(mixing)
    assert repr(eval(repr(mixing.inverse()))) == repr(mixing.inverse())
    model, x, _ = build("linear_path")
    one, two, other = (LinearMixing(seed)(model, x).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["2.weight"], other["2.weight"])
    with pytest.raises(TransformError, match="spread"):
        LinearMixing(spread=0.5)
