"""Outputs of any shape and losses of any reduction, against torch's own loss in dense autograd.

Catches: a mean over rows where torch's is over positions that count, classes taken from the wrong
dimension, a sum or a weighted mean of a user's taken for a mean, targets that are broadcast.
"""

import contextlib
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import invariance as inv
from invariance.core._errors import DataError, MeasureError

ROWS, STEPS, CLASSES = 5, 4, 3


class Tokens(nn.Module):
    """``(n, T, 2)`` to ``(n, T, C)``, or ``(n, C, T)``."""

    def __init__(self, first=False):
        super().__init__()
        self.inner, self.head, self.first = nn.Linear(2, 4), nn.Linear(4, CLASSES), first

    def forward(self, x):
        out = self.head(torch.relu(self.inner(x)))
        return out.movedim(-1, 1) if self.first else out


def pixels():
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, CLASSES, 1))


def one_output():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))


def labels(*shape, ignored=True):
    y = torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(1))
    if ignored:
        y[0, :2] = -100
        y[2] = -100
    return y


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


WEIGHTS = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
LAST = lambda f: f.movedim(-1, 1)  # noqa: E731  torch wants the classes second
SAME = lambda f: f  # noqa: E731

#: name: (model, x, y, loss that is passed, reference of (outputs, y))
CASES = {
    "tokens": (
        Tokens,
        rand(ROWS, STEPS, 2),
        labels(ROWS, STEPS),
        "cross_entropy",
        lambda f, y: F.cross_entropy(LAST(f), y),
    ),
    "tokens-first-weighted-smooth": (
        lambda: Tokens(first=True),
        rand(ROWS, STEPS, 2),
        labels(ROWS, STEPS),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    ),
    "pixels": (pixels, rand(ROWS, 1, 4, 3), labels(ROWS, 3, 2), "cross_entropy", F.cross_entropy),
    "pixels-sum": (
        pixels,
        rand(ROWS, 1, 4, 3),
        labels(ROWS, 3, 2),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="sum"),
    ),
    "pixels-callable-ignoring": (
        pixels,
        rand(ROWS, 1, 4, 3),
        labels(ROWS, 3, 2),
        lambda f, y: F.cross_entropy(f, y) + 0,
        F.cross_entropy,
    ),
    "tokens-probabilities": (
        Tokens,
        rand(ROWS, STEPS, 2),
        rand(ROWS, STEPS, CLASSES).softmax(-1),
        "cross_entropy",
        lambda f, y: F.cross_entropy(LAST(f), LAST(y)),
    ),
    "regression-one": (one_output, rand(ROWS, 3), rand(ROWS), "mse", F.mse_loss),
    "regression-several": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        rand(ROWS, 3),
        rand(ROWS, 2),
        nn.MSELoss(reduction="sum"),
        nn.MSELoss(reduction="sum"),
    ),
    "yes-or-no": (
        one_output,
        rand(ROWS, 3),
        rand(ROWS).round(),
        nn.BCEWithLogitsLoss(),
        F.binary_cross_entropy_with_logits,
    ),
    "counts": (
        one_output,
        rand(ROWS, 3),
        (3 * rand(ROWS)).round(),
        F.poisson_nll_loss,
        F.poisson_nll_loss,
    ),
    "log-probabilities": (
        lambda: nn.Sequential(nn.Linear(3, CLASSES), nn.LogSoftmax(1)),
        rand(ROWS, 3),
        labels(ROWS, 1, ignored=False)[:, 0],
        nn.NLLLoss(weight=WEIGHTS),
        nn.NLLLoss(weight=WEIGHTS),
    ),
    "batchmean": (
        lambda: nn.Sequential(nn.Linear(3, CLASSES), nn.LogSoftmax(1)),
        rand(ROWS, 3),
        rand(ROWS, CLASSES).softmax(1),
        nn.KLDivLoss(reduction="batchmean"),
        nn.KLDivLoss(reduction="batchmean"),
    ),
    "callable-weighted": (
        lambda: nn.Sequential(nn.Linear(3, CLASSES)),
        rand(ROWS, 3),
        labels(ROWS, 1, ignored=False)[:, 0],
        lambda f, y: F.cross_entropy(f, y, weight=WEIGHTS, ignore_index=1),
        lambda f, y: F.cross_entropy(f, y, weight=WEIGHTS, ignore_index=1),
    ),
    "callable-sum": (
        one_output,
        rand(ROWS, 3),
        rand(ROWS),
        lambda f, y: (f - y).pow(4).sum(),
        lambda f, y: (f - y).pow(4).sum(),
    ),
    "partial": (
        lambda: nn.Sequential(nn.Linear(3, CLASSES)),
        rand(ROWS, 3),
        labels(ROWS, 1, ignored=False)[:, 0],
        functools.partial(F.cross_entropy, weight=WEIGHTS, reduction="sum", label_smoothing=0.2),
        functools.partial(F.cross_entropy, weight=WEIGHTS, reduction="sum", label_smoothing=0.2),
    ),
}


def built(name):
    make, x, y, loss, reference = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = make().double().eval()
    return model, x, y, loss, reference


def dense(model, x, y, reference):
    """The Hessian, the gradient and the mean loss as a function, by autograd alone."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def value(theta):
        parts = zip(named, theta.split(sizes), strict=True)
        state = {name: part.view_as(named[name]) for name, part in parts}
        return reference(torch.func.functional_call(model, state, (x,)), y)

    hessian = torch.autograd.functional.hessian(value, flat)
    return hessian, flat, value


@pytest.mark.parametrize("name", CASES)
def test_measures_are_those_of_torchs_own_loss(name):
    model, x, y, loss, reference = built(name)
    hessian, flat, value = dense(model, x, y, reference)
    measures = inv.measures

    def close(found, expected):
        assert float(found) == pytest.approx(float(expected), rel=1e-8, abs=1e-10)

    close(measures.hessian_trace(model, x, y, loss=loss), hessian.trace())
    close(inv.curvature.hessian_trace(model, x, y, loss=loss, method="exact"), hessian.trace())
    eigenvalues = torch.linalg.eigvalsh(hessian)
    close(measures.hessian_eigenvalues(model, x, y, loss=loss), eigenvalues[-1])
    close(measures.hessian_norm(model, x, y, loss=loss), hessian.norm())
    close(measures.adaptive_trace(model, x, y, loss=loss), (flat.square() * hessian.diag()).sum())
    gradient = torch.func.grad(value)(flat)
    moved = flat + 0.05 * gradient / gradient.norm()
    close(measures.sam_sharpness(model, x, y, rho=0.05, loss=loss), value(moved) - value(flat))


@pytest.mark.parametrize("name", ["tokens", "pixels-sum", "yes-or-no"])
def test_sampled_columns_average_to_the_exact_trace(name):
    model, x, y, loss, _ = built(name)
    exact = inv.curvature.hessian_trace(model, x, y, loss=loss)
    found = inv.curvature.hessian_trace(model, x, y, loss=loss, method="sampled", rtol=0.05)
    assert abs(float(found) - float(exact)) <= 5 * found.stderr + 1e-12


@pytest.mark.parametrize("name", ["tokens", "pixels"])
def test_batches_weigh_by_positions_that_count(name):
    model, x, y, loss, reference = built(name)
    hessian, _, _ = dense(model, x, y, reference)
    batches = [(x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:])]
    found = inv.measures.hessian_trace(model, batches, loss=loss)
    assert float(found) == pytest.approx(float(hessian.trace()), rel=1e-10)


def test_batches_of_other_lengths():
    model, x, y, _, _ = built("tokens")
    whole = inv.measures.hessian_trace(model, x, y)
    padded = torch.cat([x[3:], x[3:, :2]], dim=1)
    more = torch.cat([y[3:], torch.full((2, 2), -100)], dim=1)
    found = inv.measures.hessian_trace(model, [(x[:3], y[:3]), (padded, more)])
    assert float(found) == pytest.approx(float(whole), rel=1e-10)


@pytest.mark.parametrize(
    ("name", "information"),
    [
        ("tokens", lambda p: torch.diag(p) - torch.outer(p, p)),
        ("yes-or-no", lambda f: f.sigmoid() * (1 - f.sigmoid())),
        ("counts", torch.exp),
        ("log-probabilities", lambda f: torch.diag(f.exp())),
    ],
)
def test_fisher(name, information):
    """``theta^T F theta`` and the matrix itself from the dense Jacobian."""
    model, x, y, loss, _ = built(name)
    named = dict(model.named_parameters())
    jacobian = torch.func.jacrev(lambda s: torch.func.functional_call(model, s, (x,)))(named)
    outputs = model(x).detach()
    single = outputs.ndim == 1
    depth = outputs.ndim
    parts = [part.flatten(depth) for part in jacobian.values()]
    columns = torch.cat(parts, dim=-1).detach()
    if single:
        expected = torch.einsum("ni,n,nj->ij", columns, information(outputs), columns) / len(x)
    else:
        keep = (y != -100).flatten()
        weights = torch.ones(len(keep), dtype=torch.float64)
        if name == "log-probabilities":
            weights = WEIGHTS[y]
        expected, mass = 0.0, 0.0
        for j, f, kept, w in zip(
            columns.flatten(0, depth - 2),
            outputs.flatten(0, depth - 2),
            keep,
            weights,
            strict=True,
        ):
            middle = information(f.softmax(0) if name == "tokens" else f)
            if kept:
                expected, mass = expected + w * j.T @ middle @ j, mass + w
        expected = expected / mass
    operator = inv.curvature.FisherOperator(model, x, y, loss=loss)
    torch.testing.assert_close(operator.to_dense(), expected)
    theta = torch.cat([p.detach().flatten() for p in named.values()])
    found = inv.measures.fisher_rao_norm(model, x, y, loss=loss)
    assert float(found) == pytest.approx(float(theta @ expected @ theta), rel=1e-9)


@pytest.mark.parametrize("name", inv.measures.__all__)
def test_no_measure_ends_in_an_internal_exception_on_tokens(name):
    from invariance.measures._registry import get_measure

    if name not in inv.measures._registry.all_measures() or name.startswith("volume"):
        pytest.skip("draws samples, or is no registered measure")
    model, x, _, _, _ = built("tokens")
    y = labels(ROWS, STEPS, ignored=False)
    given = {"x": x, "y": y, "x_train": x, "y_train": y, "x_unseen": x[:2] / 2}
    entry = get_measure(name)
    with contextlib.suppress(inv.InvarianceError):  # a refusal, and no other exception
        assert np.isfinite(float(entry.function(model, **{f: given[f] for f in entry.fields})))


def test_what_cannot_be_told_apart_is_refused():
    model = Tokens().double()
    square = rand(2, CLASSES, 2)
    with pytest.raises(DataError, match="which dimension holds the classes"):
        inv.measures.hessian_trace(model, square, labels(2, CLASSES, ignored=False))
    with pytest.raises(DataError, match="one class a position"):
        inv.measures.hessian_trace(model, rand(2, 4, 2), labels(2, 1, ignored=False)[:, 0])
    head = nn.Linear(3, 1).double()
    with pytest.raises(DataError, match=r"use y\[:, None\]"):
        inv.measures.hessian_trace(head, rand(ROWS, 3), rand(ROWS), loss="mse")
    with pytest.raises(DataError, match="BCEWithLogitsLoss"):
        inv.measures.hessian_trace(one_output().double(), rand(ROWS, 3), labels(ROWS, 1)[:, 0])
    with pytest.raises(MeasureError, match="'mean' or 'sum'"):
        loss = nn.CrossEntropyLoss(reduction="none")
        inv.measures.hessian_trace(head, rand(ROWS, 3), labels(ROWS, 1)[:, 0], loss=loss)


def test_parameters_by_name_pattern_and_module():
    """Each way to say it covers the entries of the dense Hessian that it names."""
    model, x, y, loss, reference = built("pixels")
    hessian, _, _ = dense(model, x, y, reference)
    spans, start = {}, 0
    for name, p in model.named_parameters():
        spans[name], start = range(start, start + p.numel()), start + p.numel()
    for given, names in (
        (["0.weight"], ["0.weight"]),
        ("*.bias", ["0.bias", "2.bias"]),
        (["[02].weight", "0.bias"], ["0.weight", "0.bias", "2.weight"]),
        (model[2], ["2.weight", "2.bias"]),
        ([model[0], "2.bias"], ["0.weight", "0.bias", "2.bias"]),
    ):
        chosen = [i for name in names for i in spans[name]]
        found = inv.measures.hessian_trace(model, x, y, loss=loss, parameters=given)
        assert list(found.parts) == names
        assert float(found) == pytest.approx(float(hessian.diag()[chosen].sum()), rel=1e-9)
    with pytest.raises(MeasureError, match="no module of this"):
        inv.measures.hessian_trace(model, x, y, parameters=nn.Linear(2, 2))
    parts = [
        float(inv.measures.fisher_rao_norm(model, x, y, parameters=name)) for name in ("0", "2")
    ]
    assert all(part > 0 for part in parts)


def test_a_loss_that_is_linear_in_many_outputs_has_no_curvature_there():
    model = inv.models.mlp([3, 4, 200], dtype=torch.float64)
    y = torch.arange(ROWS) * 40
    assert float(inv.measures.hessian_trace(model, rand(ROWS, 3), y, loss=nn.NLLLoss())) == 0.0
