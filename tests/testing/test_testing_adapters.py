"""Would catch: an adapter that hands over the wrong thing, or a statistical test that lies."""

from __future__ import annotations

import sys
import types

import numpy as np
import planted_measures as planted
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.testing import FaultyMeasureError, adapters, assert_equal_in_law, assert_invariant
from invariance.testing.adapters import _pyhessian as pyhessian
from invariance.testing.gate._assert_equal_in_law import NotEqualInLawError, compare_draws
from invariance.transforms import LayerScaling, NeuronScaling

SCALING = [LayerScaling([4.0, 0.25])]


@pytest.fixture(scope="module")
def net():
    model = inv.models.mlp((4, 5, 3), seed=1).eval()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=source)
    return model, x, torch.randint(0, 3, (10,), generator=source)


# -- other signatures --------------------------------------------------------------------


def test_other_names_and_fixed_arguments(net):
    def evaluate(targets, network, inputs, *, scale):
        return scale * float(F.cross_entropy(network(inputs), targets).detach())

    measure = adapters.adapt(evaluate, model="network", x="inputs", y="targets", scale=2.0)
    assert measure.__name__ == "evaluate"
    assert measure(*net) == pytest.approx(2 * float(planted.loss(*net)))
    assert_invariant(measure, *net)


def test_batches_and_losses(net):
    def peer(net_, data_loader, criterion):
        return sum(float(criterion(net_(a), b).detach()) for a, b in data_loader)

    measure = adapters.adapt(peer, model="net_", batches="data_loader", loss="criterion")
    assert measure(*net) == pytest.approx(float(planted.loss(*net)))
    one = adapters.adapt(lambda m, pair: float(m(pair[0]).sum().detach()), model="m", batch="pair")
    assert one(*net) == pytest.approx(float(net[0](net[1]).sum().detach()))


def test_wrong_names_are_refused():
    with pytest.raises(inv.UsageError, match="no argument 'network'"):
        adapters.adapt(planted.loss, model="network")


def test_function_of_predictions(net):
    accuracy = adapters.of_predictions(lambda z, y: (z.argmax(1) == y).float().mean())
    assert_invariant(accuracy, *net, allow_constant=True)


# -- libraries, by fakes of the same interface -------------------------------------------


class FakeHessian:
    """PyHessian's interface: leaves gradients and eval mode behind, draws globally."""

    def __init__(self, model, criterion, data=None, dataloader=None, cuda=True):
        assert not cuda
        self.model, self.data, self.criterion = model.eval(), data, criterion
        loss = criterion(model(data[0]), data[1])
        loss.backward()

    def trace(self, maxIter=100, tol=1e-3):
        assert tol == float("-inf")  # its stopping rule quits early under any other
        exact = planted.hessian_trace(self.model, *self.data)
        return [exact * (1 + 0.1 * float(torch.randn(()))) for _ in range(maxIter)]

    def eigenvalues(self, maxIter=100, tol=1e-3, top_n=1):
        hessian, _, _ = planted.dense_hessian(self.model, *self.data)
        return [float(torch.linalg.eigvalsh(hessian)[-1])], None


@pytest.fixture
def fake_pyhessian(monkeypatch):
    module = types.ModuleType("pyhessian")
    module.hessian = FakeHessian
    monkeypatch.setitem(sys.modules, "pyhessian", module)


def test_pyhessian_trace_is_not_invariant(net, fake_pyhessian):
    with pytest.raises(inv.testing.NotInvariantError):
        assert_invariant(adapters.pyhessian_trace(probes=4), *net, transforms=SCALING)


def test_pyhessian_leaves_no_trace_and_repeats(net, fake_pyhessian):
    state = torch.get_rng_state()
    measure = adapters.pyhessian_trace(probes=3)
    assert measure(*net) == measure(*net)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net[0].parameters())
    top = adapters.pyhessian_eigenvalue()(*net)
    assert top == pytest.approx(
        float(torch.linalg.eigvalsh(planted.dense_hessian(*net)[0])[-1]), rel=1e-4
    )


def test_pyhessian_noisy_sees_the_scaling(net, fake_pyhessian):
    with pytest.raises(NotEqualInLawError):
        assert_equal_in_law(
            adapters.pyhessian_trace_noisy(probes=2), *net, transforms=SCALING, draws=16
        )


def test_unused_parameters_are_frozen_for_pyhessian(net):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    ready = pyhessian._with_used_parameters(Half(), net[1])
    assert [p.requires_grad for p in ready.parameters()] == [True, True, False, False]


class FakeOperator:
    """curvlinops' interface: shape, dtype, device, @, to_scipy."""

    def __init__(self, model, loss, params, data):
        (pair,) = data
        self.matrix = planted.dense_hessian(model, *pair)[0]
        self.shape, self.dtype, self.device = self.matrix.shape, self.matrix.dtype, "cpu"
        torch.rand(())  # the determinism probe

    def __matmul__(self, other):
        return self.matrix @ other

    def to_scipy(self):
        from scipy.sparse.linalg import aslinearoperator

        return aslinearoperator(self.matrix.numpy())


def test_curvlinops_reductions(net):
    model, x, y = net[0].double(), net[1].double(), net[2]
    dense = planted.dense_hessian(model, x, y)[0]
    expected = {
        "trace": dense.trace(),
        "frobenius": dense.norm(),
        "top_eigenvalue": torch.linalg.eigvalsh(dense)[-1],
    }
    for name, value in expected.items():
        measure = adapters.curvlinops_measure(name, operator=FakeOperator)
        assert measure(model, x, y) == pytest.approx(float(value), rel=1e-9)
    with pytest.raises(inv.testing.NotInvariantError):
        assert_invariant(
            adapters.curvlinops_measure("trace", operator=FakeOperator),
            model, x, y, transforms=SCALING,
        )  # fmt: skip
    with pytest.raises(inv.UsageError, match="top_eigenvalue"):
        adapters.curvlinops_measure("spectrum")
    net[0].float()


class FakeMetric:
    """torchmetrics' interface: state gathers between calls until reset."""

    def __init__(self):
        self.right = self.seen = 0.0

    def reset(self):
        self.right = self.seen = 0.0

    def update(self, predictions, target):
        self.right += float(predictions.max(1).values.sum())
        self.seen += len(target)

    def compute(self):
        return torch.tensor(self.right / self.seen)


@pytest.mark.parametrize("factory", [FakeMetric, FakeMetric()], ids=["factory", "object"])
def test_metric_state_does_not_leak(net, factory):
    measure = adapters.torchmetrics_metric(factory, predictions=lambda z: z.softmax(-1))
    assert measure(*net) == measure(*net)
    assert_invariant(measure, *net)


def fake_llc(model, loader, evaluate, seed, num_chains=1, isotropic=True):
    """An estimate whose mean depends on the scaling, as isotropic SGLD's does."""
    batch = next(iter(loader))
    loss, _ = evaluate(model, batch)
    scale = sum(float(p.detach().square().sum()) for p in model.parameters()) if isotropic else 1.0
    noise = float(torch.randn((), generator=torch.Generator().manual_seed(seed)))
    return {"llc/mean": float(loss.detach()) * scale + 0.01 * noise}


def test_devinterp_estimate_depends_on_the_scaling(net):
    wrong = adapters.devinterp_estimate(fake_llc, num_chains=2)
    with pytest.raises(NotEqualInLawError, match="False alarms"):
        assert_equal_in_law(wrong, *net, transforms=SCALING, draws=16)
    right = adapters.devinterp_estimate(fake_llc, isotropic=False)
    assert_equal_in_law(right, *net, draws=16)
    with pytest.raises(inv.MeasureError, match="llc/mean"):
        adapters.devinterp_estimate(fake_llc, key="nope")(*net, 0)


def test_missing_library_says_what_to_install(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    with pytest.raises(inv.MeasureError, match="pip install PyHessian"):
        adapters.pyhessian_trace()(*net)
    monkeypatch.setitem(sys.modules, "devinterp", None)
    with pytest.raises(inv.MeasureError, match="pip install devinterp"):
        adapters.devinterp_estimate()(*net, 0)


# -- noise -------------------------------------------------------------------------------


def sam_like(model, x, y, seed):
    """Loss under Gaussian noise proportional to |theta|: its law is scaling invariant."""
    source = torch.Generator().manual_seed(seed)
    from invariance.core._modules import clone

    copied = clone(model)
    with torch.no_grad():
        for p in copied.parameters():
            p.add_(0.05 * p.abs() * torch.randn(p.shape, generator=source, dtype=p.dtype))
        return float(F.cross_entropy(copied(x), y))


def isotropic(model, x, y, seed):
    source = torch.Generator().manual_seed(seed)
    from invariance.core._modules import clone

    copied = clone(model)
    with torch.no_grad():
        for p in copied.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=source, dtype=p.dtype))
        return float(F.cross_entropy(copied(x), y))


def test_noise_relative_to_the_weights_passes_and_isotropic_noise_fails(net):
    outcomes = assert_equal_in_law(sam_like, *net, groups=["layer_scaling", "neuron_scaling"])
    assert all(o.p_mean == 1.0 for o in outcomes)  # common random numbers: the same draw by draw
    strong = [LayerScaling([64.0, 1 / 64])]
    with pytest.raises(NotEqualInLawError, match="replay") as caught:
        assert_equal_in_law(isotropic, *net, transforms=strong)
    assert "NeuronScaling" not in str(caught.value)


def test_equal_in_law_but_not_draw_by_draw_passes(net):
    """A permutation reorders the draws' use: only the distribution is kept."""
    outcomes = assert_equal_in_law(sam_like, *net, groups=["permutation"], draws=48)
    assert any(0 < o.p_mean < 1 for o in outcomes)


def test_same_seed_two_values_is_reported(net):
    with pytest.raises(FaultyMeasureError, match="Seed 0"):
        assert_equal_in_law(lambda m, x, y, seed: float(np.random.default_rng().random()), *net)


def test_global_draws_are_seeded_around_the_call(net):
    def draws_globally(model, x, y):
        return float(F.cross_entropy(model(x), y).detach()) + float(torch.rand(()))

    state = torch.get_rng_state()
    wrapped = adapters.noisy(draws_globally)
    assert wrapped(*net, 3) == wrapped(*net, 3)
    assert wrapped(*net, 3) != wrapped(*net, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert_equal_in_law(wrapped, *net, transforms=[NeuronScaling()], draws=8)
    assert_invariant(adapters.averaged(wrapped), *net, groups=["neuron_scaling"])


def test_change_of_spread_alone_is_seen():
    source = np.random.default_rng(0)
    before, after = source.normal(size=200), 5 * source.normal(size=200)
    outcome = compare_draws(before, after, error_rate=1e-3)
    assert not outcome.equal
    assert outcome.p_distribution < 1e-4


def test_constant_shift_is_seen():
    draws = np.random.default_rng(0).normal(size=16)
    assert not compare_draws(draws, draws + 1.0).equal
    assert compare_draws(draws, draws).equal


@pytest.mark.slow
def test_false_alarms_stay_below_the_stated_rate():
    """2,000 comparisons of equal laws at 5 %: the binomial count must not exceed its bound."""
    source, alarms, trials = np.random.default_rng(1), 0, 2_000
    for _ in range(trials):
        common = source.normal(size=24)
        pair = common + 0.3 * source.normal(size=(2, 24))
        alarms += not compare_draws(pair[0], pair[1], error_rate=0.05).equal
    assert alarms <= 0.05 * trials + 4 * (0.05 * 0.95 * trials) ** 0.5
    assert alarms >= 0.01 * trials  # and the test is no sham: it does use its error rate


@pytest.mark.parametrize("options", [{"error_rate": 0.7}, {"error_rate": 0}])
def test_bad_rates_are_refused(options):
    with pytest.raises(inv.UsageError):
        compare_draws(np.zeros(8), np.zeros(8), **options)
    with pytest.raises(inv.UsageError, match="at least 8"):
        compare_draws(np.zeros(4), np.zeros(4))


# -- the real libraries ------------------------------------------------------------------


@pytest.mark.peers
def test_real_pyhessian(net):
    pytest.importorskip("pyhessian")
    value = adapters.pyhessian_trace(probes=400)(*net)
    assert value == pytest.approx(planted.hessian_trace(*net), rel=0.2)
    with pytest.raises(AssertionError):
        assert_invariant(adapters.pyhessian_trace(), *net, transforms=SCALING, dtype="float32")


@pytest.mark.peers
def test_real_curvlinops(net):
    pytest.importorskip("curvlinops")
    measure = adapters.curvlinops_measure("trace")
    assert measure(*net) == pytest.approx(planted.hessian_trace(*net), rel=1e-3)
    with pytest.raises(inv.testing.NotInvariantError):
        assert_invariant(measure, *net, transforms=SCALING)
