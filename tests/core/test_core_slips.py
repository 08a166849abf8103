"""Catches: beginners' slips that end in a traceback, or in another thing than was meant."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import invariance as inv
from invariance.cli._main import _sentence
from invariance.core._errors import unknown_name
from invariance.core._rng import generator, numpy_generator, torch_seed

T = inv.transforms


@pytest.fixture(scope="module")
def data():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(10, 3, generator=source, dtype=torch.float64)
    return x, torch.randint(0, 2, (10,), generator=source)


@pytest.fixture(scope="module")
def net():
    return inv.models.mlp((3, 4, 5), seed=1, dtype=torch.float64).eval()


def test_one_map_and_one_measure_need_no_list(net, data):
    one = inv.check(net, data, transforms=T.LayerScaling([2.0, 0.5]), measures="parameter_norm")
    listed = inv.check(
        net, data, transforms=[T.LayerScaling([2.0, 0.5])], measures=["parameter_norm"]
    )
    assert one.to_dict()["rows"] == listed.to_dict()["rows"]
    assert len(one.rows) == 1
    own = inv.check(net, data, transforms=T.Permutation(), measures=inv.measures.parameter_norm)
    assert own.rows[0].verdict == "invariant"
    assert repr(T.Compose(T.Permutation())) == repr(T.Compose([T.Permutation()]))


def test_the_data_itself_stands_for_a_task(net, data):
    x, y = data
    options = {"transforms": T.Permutation(), "measures": "hessian_trace"}
    pair = inv.check(net, (x, y), **options).rows[0]
    assert pair.before == pytest.approx(float(inv.measures.hessian_trace(net, x, y)), rel=1e-12)
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x.reshape(10, 3, 1), y), batch_size=4)
    assert inv.check(net, loader, **options).rows[0].before == pytest.approx(pair.before)
    assert inv.check(net, [(x[:7], y[:7]), (x[7:], y[7:])], **options).rows[0] == pair
    assert torch.equal(torch.get_rng_state(), before)
    # The network has five classes, though no label says so.
    found = inv.fit(net, loader, max_epochs=1, target_accuracy=None)
    assert found.epochs == 1
    assert found.test_accuracy != found.test_accuracy  # there are no test points


def test_a_name_stands_for_a_task():
    sizes = (64, 4, 10)
    options = {"max_epochs": 1, "target_accuracy": None, "batch_size": None}
    named = inv.fit(inv.models.mlp(sizes), "digits", **options)
    given = inv.fit(inv.models.mlp(sizes), inv.load_task("digits"), **options)
    assert named.train_loss == pytest.approx(given.train_loss, rel=1e-5)
    with pytest.raises(inv.UsageError, match="Did you mean 'digits'"):
        inv.fit(inv.models.mlp(sizes), "digit")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (3, "needs a Task.*Got int"),
        ([], "needs a Task"),
        ([1, 2], "needs a Task"),
        ((torch.rand(3, 3), torch.rand(3)), "integers from 0"),
        ((torch.rand(3, 3), torch.zeros(2).long()), "one label per point"),
        ((torch.rand(3, 3), torch.tensor([0, -1, 1])), "outside"),
    ],
)
def test_what_is_no_data_is_said(net, task, message):
    with pytest.raises(inv.InvarianceError, match=message):
        inv.check(net, task)


def test_a_fit_passed_as_a_model_is_told_where_its_model_is(net, data):
    found = inv.fit(net, data, max_epochs=1, target_accuracy=None)
    with pytest.raises(inv.UsageError, match=r"Got Fit; take its \.model"):
        inv.check(found, data)


SEEDS = [0, -1, 2**32, -(2**63) - 1, 2**64, -(10**40), 10**1000]


def test_seeds_of_any_size_are_seeds_of_their_own():
    for make in (
        lambda seed: generator(seed).initial_seed(),
        torch_seed,
        lambda seed: numpy_generator(seed).integers(2**60),
        lambda seed: inv.models.mlp((3, 4, 2), seed=seed)[0].weight.sum().item(),
        lambda seed: inv.load_task("digits", n_train=9, seed=seed).x_train.sum().item(),
    ):
        values = [make(seed) for seed in SEEDS]
        assert values == [make(seed) for seed in SEEDS]
        assert len(set(values)) == len(SEEDS)
    assert torch_seed(7) == 7  # what torch takes is left as it is
    with pytest.raises(inv.UsageError, match="bits"):
        torch_seed(10**5000)  # Python does not print it


@pytest.mark.parametrize("seed", [-3, 10**30])
def test_a_seed_of_any_size_goes_all_the_way(net, data, seed):
    inv.fit_ensemble((3, 4, 2), data, seeds=[seed], max_epochs=1, target_accuracy=None)
    found = inv.check(
        net, data, seed=seed, transforms=T.NeuronScaling(seed=seed), measures="hessian_trace"
    )
    assert found.rows[0].verdict == "law"
    ranks = inv.stats.spearman([1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 4.0], seed=seed)
    assert ranks.rho == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["bias", "batch_norm"])
def test_a_word_is_no_flag(name):
    with pytest.raises(inv.UsageError, match=f"{name} must be True or False. Got 'no'"):
        inv.models.mlp((3, 4, 2), **{name: "no"})


@pytest.mark.parametrize(
    ("kind", "plural"),
    [
        ("key", "keys"), ("study", "studies"), ("loss", "losses"), ("batch", "batches"),
        ("size of this study", "sizes of this study"), ("task", "tasks"), ("matrix", "matrixes"),
        ("geometry of units", "geometries of units"),
    ],
)  # fmt: skip
def test_the_known_names_are_counted_in_english(kind, plural):
    assert f"Known {plural}: a." in str(unknown_name(kind, "b", ["a"]))


@pytest.mark.parametrize(
    "given", ["HessianTrace", "hessian-trace", "hesian_trace", "Hessian_Trace"]
)
def test_a_misspelt_name_gets_a_suggestion(given):
    with pytest.raises(inv.UsageError, match=r"Did you mean 'hessian_\w+'"):
        unknown = unknown_name("measure", given, ["path_norm", "hessian_trace", "hessian_norm"])
        raise unknown


def test_what_the_machine_refuses_is_a_sentence():
    assert "Out of memory" in _sentence(MemoryError())
    assert "ulimit -u" in _sentence(RuntimeError("can't start new thread"))
    assert "ulimit -u" in _sentence(BlockingIOError(11, "Resource temporarily unavailable"))
    assert _sentence(FileNotFoundError(2, "No such file", "a.py")) == (
        "The system refused: No such file (a.py)."
    )
    assert _sentence(ZeroDivisionError("a defect")) is None  # a defect of ours keeps its traceback
