"""SAM and adaptive SAM against a plain rendering of their papers, and against their laws.

Catches: a norm taken over the whole ensemble or over one layer, unscaled biases, an eta that
hides in the climb, weights that drift when they are put back, decay inside the climb,
BatchNorm statistics of the perturbed pass, other dropout masks in the second pass.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_reference import assert_same_model, blobs, same_bits

from invariance.core._errors import UsageError
from invariance.core._rng import generator
from invariance.data import Task
from invariance.models import cnn, mlp
from invariance.training import Options, fit, fit_ensemble
from invariance.training._sam import climb
from invariance.transforms import NeuronScaling

SEEDS = [0, 3, 11]


def naive(model, task, seed, *, epochs, batch_size, rho, adaptive=False, eta=0.0, optim):
    """Two networks a step: a copy is climbed with, and lends its gradient."""
    model = copy.deepcopy(model).double().train()
    optimizer = optim(list(model.parameters()))
    x, y, order = task.x_train.double(), task.y_train, generator(seed, "order")
    for _ in range(epochs):
        permutation = torch.randperm(len(y), generator=order)
        if batch_size is None or batch_size >= len(y):
            permutation = torch.arange(len(y))
        for batch in permutation.split(batch_size or len(y)):
            uphill = copy.deepcopy(model)
            gradients = torch.autograd.grad(
                F.cross_entropy(model(x[batch]), y[batch]), list(model.parameters())
            )
            scale = [w.detach().abs() + eta if adaptive else 1.0 for w in model.parameters()]
            scaled = [s * g for s, g in zip(scale, gradients, strict=True)]
            norm = torch.cat([g.flatten() for g in scaled]).norm()
            with torch.no_grad():
                for w, s, g in zip(uphill.parameters(), scale, scaled, strict=True):
                    w.add_(rho * s * g / norm)
            F.cross_entropy(uphill(x[batch]), y[batch]).backward()
            for w, above in zip(model.parameters(), uphill.parameters(), strict=True):
                w.grad = above.grad
            optimizer.step()
    return model.eval()


RULES = {
    "sgd": ({"lr": 0.2}, lambda p: torch.optim.SGD(p, 0.2)),
    "decay": (
        {"lr": 0.1, "weight_decay": 0.05},
        lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.05),
    ),
    "momentum-decay": (
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02},
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.02),
    ),
    "adam": ({"lr": 0.01, "optimizer": "adam"}, lambda p: torch.optim.Adam(p, 0.01)),
}
FORMS = {
    "sam": {"sam_rho": 0.3},
    "adaptive": {"sam_rho": 0.8, "sam_adaptive": True},
    "adaptive-eta": {"sam_rho": 0.8, "sam_adaptive": True, "sam_eta": 0.05},
}


def compare(build, task, form, rule, *, batch_size=8, epochs=3, vectorize=None):
    options, optim = RULES[rule]
    fits = fit_ensemble(
        build,
        task,
        seeds=SEEDS,
        max_epochs=epochs,
        target_accuracy=None,
        dtype=torch.float64,
        batch_size=batch_size,
        vectorize=vectorize,
        **options,
        **FORMS[form],
    )
    for seed, found in zip(SEEDS, fits, strict=True):
        expected = naive(
            build(seed),
            task,
            seed,
            epochs=epochs,
            batch_size=batch_size,
            optim=optim,
            rho=FORMS[form]["sam_rho"],
            adaptive="sam_adaptive" in FORMS[form],
            eta=FORMS[form].get("sam_eta", 0.0),
        )
        assert_same_model(found.model, expected)
    return fits


@pytest.mark.parametrize("batch_norm", [False, True], ids=["", "batch-norm"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_perceptrons_step_for_step(rule, form, batch_norm):
    # A bias in front of BatchNorm has no gradient but noise, by which Adam would divide.
    bias = not (batch_norm and rule == "adam")
    compare(
        lambda seed: mlp((9, 7, 5, 4), batch_norm=batch_norm, bias=bias, seed=seed),
        blobs(),
        form,
        rule,
    )


@pytest.mark.parametrize("batch_size", [5, 26, None])
@pytest.mark.parametrize("points", [26, 11])
def test_batch_sizes(batch_size, points):
    compare(lambda s: mlp((9, 6, 4), seed=s), blobs(points), "sam", "sgd", batch_size=batch_size)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "momentum-decay"])
@pytest.mark.parametrize("form", ["sam", "adaptive"])
def test_convolutions_step_for_step_one_by_one_and_all_at_once(form, rule, vectorize):
    def build(seed):
        return cnn(
            image_size=4, widths=(3,), hidden=5, n_classes=4, batch_norm=True, flat_input=True,
            seed=seed,
        )  # fmt: skip

    compare(build, blobs(20, 16), form, rule, vectorize=vectorize, epochs=2)


def test_frozen_parameters_stay_and_do_not_count():
    def build(seed):
        net = mlp((9, 7, 4), seed=seed)
        net[0].weight.requires_grad_(False)
        return net

    task = blobs()
    for vectorize in (False, True):
        found = fit_ensemble(
            build, task, seeds=[1], max_epochs=1, batch_size=None, vectorize=vectorize,
            dtype=torch.float64, target_accuracy=None, sam_rho=0.4, lr=0.3,
        )[0].model  # fmt: skip
        expected = build(1).double()
        free = [w for w in expected.parameters() if w.requires_grad]
        x = task.x_train.double()
        g = torch.autograd.grad(F.cross_entropy(expected(x), task.y_train), free)
        norm = torch.cat([entry.flatten() for entry in g]).norm()
        above = copy.deepcopy(expected)
        with torch.no_grad():
            for w, entry in zip([w for w in above.parameters() if w.requires_grad], g, strict=True):
                w.add_(0.4 * entry / norm)
        F.cross_entropy(above(x), task.y_train).backward()
        with torch.no_grad():
            for w, up in zip(expected.parameters(), above.parameters(), strict=True):
                if up.grad is not None:
                    w.sub_(0.3 * up.grad)
        assert_same_model(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{"sam_rho": 0.05}, {"sam_rho": 0.5, "sam_adaptive": True, "momentum": 0.9, "lr": 0.02}],
    ids=["sam", "adaptive"],
)
@pytest.mark.parametrize("augmentation", [None, ("shift", "flip", "rotate")])
def test_any_ensemble_gives_the_same_network(options, dtype, augmentation):
    task = blobs(150, 64, 10, n_test=4, spread=1.5)
    options = {**options, "dtype": dtype, "augmentation": augmentation, "max_epochs": 6}

    def build(seed):
        return mlp((64, 33, 9, 10), batch_norm=True, seed=seed)

    alone = [fit_ensemble(build, task, seeds=[seed], **options)[0] for seed in SEEDS]
    many = fit_ensemble(build, task, seeds=[*range(100, 117), *SEEDS, 50], **options)
    for one, other in zip(alone, many[17:20], strict=True):
        assert one.history == other.history
        assert same_bits(one.model, other.model)


def test_networks_of_any_kind_are_the_same_in_any_ensemble():
    task = blobs(40, 64, 10, n_test=4)

    def build(seed):
        return cnn(image_size=8, widths=(3,), hidden=5, flat_input=True, seed=seed)

    options = {"sam_rho": 0.1, "augmentation": "rotate", "max_epochs": 3, "batch_size": 16}
    alone = fit_ensemble(build, task, seeds=[5], **options)[0]
    crowd = fit_ensemble(build, task, seeds=[8, 5, 2], **options)[1]
    assert same_bits(alone.model, crowd.model)


def step(model, task, **options):
    """The change that one full-batch step makes to each parameter."""
    found = fit(
        model, task, lr=0.1, max_epochs=1, batch_size=None, dtype=torch.float64,
        target_accuracy=None, **options,
    )  # fmt: skip
    pairs = zip(found.model.named_parameters(), model.parameters(), strict=True)
    return {name: after.detach() - before.detach() for (name, after), before in pairs}


def law_is_kept(task, **options) -> bool:
    """Whether rescaling by D before a step of plain descent turns the step by 1 / D."""
    model = mlp((9, 7, 5, 4), seed=2, dtype=torch.float64)
    scaled = NeuronScaling(spread=8.0, seed=1)(model)
    plain, turned = step(model, task, **options), step(scaled, task, **options)
    ratios = {
        name: after.detach() / before.detach()
        for (name, after), before in zip(scaled.named_parameters(), model.parameters(), strict=True)
    }
    return all(
        torch.allclose(turned[name] * ratios[name], plain[name], rtol=1e-7, atol=1e-11)
        for name in plain
    )


def test_the_adaptive_climb_sees_the_function_alone():
    task = blobs()
    assert law_is_kept(task)  # descent alone
    assert law_is_kept(task, sam_rho=0.7, sam_adaptive=True)
    assert not law_is_kept(task, sam_rho=0.7, sam_adaptive=True, sam_eta=0.01)
    assert not law_is_kept(task, sam_rho=0.7)


def test_the_climb_has_the_length_that_was_asked_for():
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 4, 2, generator=draw), torch.randn(3, 5, generator=draw)]
    gradients = [torch.randn(w.shape, generator=draw) * 1e-3 for w in weights]
    kept = [g.clone() for g in gradients]
    moves = climb(weights, gradients, Options(sam_rho=0.25))
    length = torch.cat([m.flatten(1) for m in moves], 1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((3,), 0.25))
    moves = climb(weights, gradients, Options(sam_rho=0.25, sam_adaptive=True))
    relative = [m / w for m, w in zip(moves, weights, strict=True)]
    length = torch.cat([m.flatten(1) for m in relative], 1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((3,), 0.25))
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))


def test_a_network_whose_gradient_is_zero_stays_where_it_is():
    x = torch.rand((6, 4), generator=torch.Generator().manual_seed(0))
    y = torch.zeros(6, dtype=torch.int64)
    task = Task("one class", 2, x, y, x[:0], y[:0], x[:0], y[:0])

    def build(seed):
        net = mlp((4, 3, 2), seed=seed)
        if seed == 1:  # so sure of itself that the softmax is exactly one
            with torch.no_grad():
                net[-1].bias += torch.tensor([1e4, 0.0])
        return net

    for form in FORMS.values():
        for vectorize in (None, False, True):
            still, moving = fit_ensemble(
                build, task, seeds=[1, 2], max_epochs=3, target_accuracy=None, batch_size=4,
                vectorize=vectorize, **form,
            )  # fmt: skip
            assert same_bits(still.model, build(1))
            assert not same_bits(moving.model, build(2))
            assert all(bool(torch.isfinite(w).all()) for w in moving.model.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vectorize", [None, False, True])
def test_weights_come_back_bit_for_bit(form, vectorize):
    # A rate so small that no float32 moves: whatever changes is what the climb left behind.
    start = mlp((9, 7, 4), seed=3)
    found = fit(
        start, blobs(), lr=1e-30, max_epochs=5, target_accuracy=None, vectorize=vectorize,
        **FORMS[form],
    )  # fmt: skip
    assert same_bits(found.model, start)


def test_both_passes_draw_the_same_dropout_masks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))
    options = {"max_epochs": 3, "target_accuracy": None, "dtype": torch.float64, "batch_size": 8}
    plain = fit(net, blobs(), **options)
    barely = fit(net, blobs(), sam_rho=1e-12, **options)
    assert_same_model(barely.model, plain.model, rtol=1e-8, atol=1e-9)
    assert not same_bits(barely.model, plain.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sam_rho": -0.1}, "sam_rho must be 0 or more"),
        ({"sam_rho": float("nan")}, "sam_rho must be 0 or more"),
        ({"sam_adaptive": True}, "set sam_rho too"),
        ({"sam_rho": 0.1, "sam_eta": 0.01}, "belongs to sam_adaptive"),
        ({"sam_rho": 0.1, "sam_adaptive": True, "sam_eta": -1.0}, "sam_eta must be 0 or more"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        fit(mlp((9, 4)), blobs(), **options)
