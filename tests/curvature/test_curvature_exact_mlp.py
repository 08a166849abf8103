"""Exact traces, diagonals and relative flatness of MLPs against closed forms and dense Hessians.

Would catch: a wrong root of S, a lost bias or BatchNorm block, slopes taken on the wrong side
of an activation, rows weighted by batch instead of by mass, and Python scalars that make
float32 of float64 (a LeakyReLU slope once did).
"""

from __future__ import annotations

import pytest
import torch
from dense_reference import dense_blocks, dense_relative_flatness
from torch import nn

from invariance.core._errors import DataError, MeasureError, ModelError
from invariance.curvature import exact_curvature, hessian_diagonal, hessian_trace

RTOL = 1e-11


def randomised_norm(width, *, affine=True):
    norm = nn.BatchNorm1d(width, affine=affine, eps=1e-3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 2.0)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


ARCHITECTURES = {
    "linear": lambda: [nn.Linear(5, 4)],
    "no bias": lambda: [nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 4, bias=False)],
    "relu": lambda: [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)],
    "wide input": lambda: [nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4)],
    "narrow input": lambda: [nn.Linear(5, 90), nn.ReLU(), nn.Linear(90, 4)],
    "leaky": lambda: [nn.Linear(5, 6), nn.LeakyReLU(0.1), nn.Linear(6, 4)],
    "hardtanh": lambda: [nn.Linear(5, 6), nn.Hardtanh(-0.3, 0.4), nn.Linear(6, 4), nn.ReLU6()],
    "deep linear": lambda: [nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(3, 4)],
    "batch norm": lambda: [
        nn.Linear(5, 7),
        randomised_norm(7),
        nn.ReLU(),
        nn.Linear(7, 6),
        randomised_norm(6, affine=False),
        nn.ReLU(),
        nn.Linear(6, 4),
    ],
    "smooth": lambda: [nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)],
    "smooth deep": lambda: [
        nn.Linear(5, 6),
        nn.Tanh(),
        nn.Linear(6, 7),
        randomised_norm(7),
        nn.SiLU(inplace=True),
        nn.Linear(7, 5, bias=False),
        nn.Softplus(),
        nn.Linear(5, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
        nn.Sigmoid(),
    ],
    "norm first": lambda: [randomised_norm(5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)],
    "nested": lambda: [
        nn.Flatten(),
        nn.Sequential(nn.Linear(5, 6), nn.Identity(), nn.ReLU(inplace=True)),
        nn.Dropout(0.5),
        nn.Linear(6, 4),
    ],
}


def labels(kind):
    if kind == "regression":
        return torch.randn(23, 4, dtype=torch.float64)
    y = torch.randint(0, 4, (23,))
    if kind == "ignored":
        y[::5] = -100
    return y


LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), "labels"),
    "weighted": (
        nn.CrossEntropyLoss(
            weight=torch.tensor([0.2, 1.0, 3.0, 0.0], dtype=torch.float64), label_smoothing=0.1
        ),
        "ignored",
    ),
    "mse": (nn.MSELoss(), "regression"),
    "indefinite": (lambda f, y: (torch.sin(2 * f) * y).sum(1).mean(), "regression"),
}


def build(architecture, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(*ARCHITECTURES[architecture]()).double().eval()
        x = torch.randn(23, 5, dtype=torch.float64)
        data = {kind: labels(kind) for kind in ("labels", "ignored", "regression")}
    return model, x, data


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_block_matches_the_dense_hessian(architecture, loss_name):
    model, x, data = build(architecture)
    loss, kind = LOSSES[loss_name]
    blocks = dense_blocks(model, x, data[kind], loss)
    result = exact_curvature(
        model, x, data[kind], loss=loss, relative_flatness=True, diagonal=True, memory_budget=9000
    )
    assert list(result.traces) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        block = blocks[name, name]
        assert result.traces[name] == pytest.approx(block.trace().item(), rel=RTOL, abs=1e-13)
        torch.testing.assert_close(
            result.diagonal[name], block.diagonal().view_as(parameter), rtol=RTOL, atol=1e-13
        )
    for name, value in result.relative_flatness.items():
        module = model.get_submodule(name)
        expected = dense_relative_flatness(module, blocks[f"{name}.weight", f"{name}.weight"])
        assert value == pytest.approx(expected, rel=RTOL, abs=1e-13)
    plain = exact_curvature(model, x, data[kind], loss=loss)
    assert plain.traces == pytest.approx(dict(result.traces), rel=1e-12, abs=1e-14)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert list(result.relative_flatness) == linear


def test_softmax_regression_closed_form():
    # H = mean x~ x~^T (x) (diag p - p p^T), with x~ = (x, 1).
    model, x, data = build("linear")
    p = model(x).softmax(1).detach()
    per_class = p * (1 - p)
    result = exact_curvature(model, x, data["labels"], diagonal=True, relative_flatness=True)
    torch.testing.assert_close(result.diagonal["0.weight"], per_class.T @ x.square() / len(x))
    torch.testing.assert_close(result.diagonal["0.bias"], per_class.mean(0))
    # Theory: kappa of a last layer is mean |phi|^2 (sum_c p_c |w_c|^2 - |sum_c p_c w_c|^2).
    w = model[0].weight.detach()
    spread = p @ w.square().sum(1) - (p @ w).square().sum(1)
    expected = (x.square().sum(1) * spread).mean().item()
    assert result.relative_flatness["0"] == pytest.approx(expected, rel=RTOL)


def test_trace_keeps_its_digits_in_float32_when_the_network_is_confident():
    model, x, data = build("relu")
    with torch.no_grad():
        model[-1].weight.mul_(300)
    exact = hessian_trace(model, x, data["labels"])
    single = hessian_trace(model.float(), x.float(), data["labels"])
    assert float(single) == pytest.approx(float(exact), rel=2e-3)
    confident = torch.tensor([[0.0, 40.0]])
    from invariance.curvature.losses._resolve import softmax_root

    root = softmax_root(confident)  # p (1 - p) = 4.248e-18 is far below float32's epsilon
    assert float((root @ root.mT)[0, 1, 1]) == pytest.approx(4.2483542e-18, rel=1e-5)


def test_root_of_the_softmax_annihilates_constants_to_full_relative_precision():
    # Else a common offset of the last layer's rows would leak into its relative flatness.
    from invariance.curvature.losses._resolve import softmax_root

    logits = torch.tensor([[-30.0, 16.0, 0.0, -1.0]])  # 1 - p = 1.6e-7 in float32
    root = softmax_root(logits)
    assert (root.sum(-2).abs() <= 1e-5 * root.abs().sum(-2)).all()


def test_batches_are_weighted_by_mass_not_by_batch():
    model, x, data = build("relu")
    loss, kind = LOSSES["weighted"]
    y = data[kind]
    whole = exact_curvature(model, x, y, loss=loss)
    ragged = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    batched = exact_curvature(model, ragged, loss=loss)
    assert batched.trace == pytest.approx(whole.trace, rel=1e-13)
    assert batched.rows == 23


def test_second_derivatives_of_activations_enter_only_where_they_must():
    model, x, data = build("smooth deep")
    result = exact_curvature(model, x, data["labels"])
    assert not result.gauss_newton
    assert "recursion" in result.method
    head, x, data = build("smooth")
    assert exact_curvature(head, x, data["labels"], parameters=["2"]).gauss_newton
    assert not exact_curvature(head, x, data["labels"]).gauss_newton


def test_trace_does_not_depend_on_the_labels():
    model, x, data = build("relu")
    one = hessian_trace(model, x, data["labels"])
    two = hessian_trace(model, x, 3 - data["labels"])
    assert float(one) == float(two)


def test_layer_scaling_law():
    # Along one layer-scaling axis Tr H(a) = A / a^2 + C + B a^2.
    model, x, data = build("relu")
    before = exact_curvature(model, x, data["labels"]).traces
    a = 3.0
    with torch.no_grad():
        model[0].weight.mul_(a)
        model[0].bias.mul_(a)
        model[2].weight.div_(a)
    after = exact_curvature(model, x, data["labels"])
    scaled, following = before["0.weight"] + before["0.bias"], before["2.weight"]
    rest = sum(before.values()) - scaled - following
    assert after.trace == pytest.approx(scaled / a**2 + rest + following * a**2, rel=RTOL)


def test_parameters_selects_blocks_and_frozen_ones_are_left_out():
    model, x, data = build("relu")
    model[2].weight.requires_grad_(False)
    everything = exact_curvature(model, x, data["labels"], parameters=["0", "2", "4"])
    trainable = exact_curvature(model, x, data["labels"])
    assert "2.weight" not in trainable.traces
    assert "2.weight" in everything.traces
    last = exact_curvature(model, x, data["labels"], parameters=["4"], relative_flatness=True)
    assert dict(last.traces) == {k: everything.traces[k] for k in ("4.weight", "4.bias")}
    assert list(last.relative_flatness) == ["4"]


def test_nothing_of_the_model_is_touched():
    model, x, data = build("batch norm")
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    hessian_trace(model, x, data["labels"])
    hessian_diagonal(model, x, data["labels"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m, x, y: (m.train(), x, y), ModelError, "train mode"),
        (lambda m, x, y: (m, x[:0], y[:0]), DataError, "empty"),
        (lambda m, x, y: (m, x * float("nan"), y), DataError, "NaN"),
        (lambda m, x, y: (m, x, y + 3), DataError, "out of range"),
        (lambda m, x, y: (m, x, y.double()), DataError, "integers"),
        (lambda m, x, y: (m, x, y[:-1]), DataError, "rows"),
        (lambda m, x, y: (m, x[:, :4], y), DataError, "features"),
        (lambda m, x, y: (m, x, torch.full_like(y, -100)), DataError, "No row counts"),
        (lambda m, x, y: (m, iter([(x, y)]), None), DataError, "one-shot"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    model, x, data = build("batch norm")
    model, x, y = change(model, x, data["labels"])
    with pytest.raises(error, match=message):
        hessian_trace(model, x, y)


def test_diverged_parameters_are_refused_by_name():
    model, x, data = build("relu")
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"2\.weight"):
        hessian_trace(model, x, data["labels"])


def test_budget_must_be_positive():
    model, x, data = build("relu")
    with pytest.raises(MeasureError, match="memory_budget"):
        hessian_trace(model, x, data["labels"], memory_budget=0)
