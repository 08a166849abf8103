"""What people bring: every measure answers as for the plain form, or refuses by name.

Catches: a measure that reads only tensors, a wrapper whose inside is not found, an output that
is no tensor ending in an internal exception, several inputs that lose their pairing.
"""

import functools
import inspect
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import invariance as inv
from invariance.core._errors import DataError, ModelError
from invariance.core._intake import take
from invariance.measures._registry import all_measures, get_measure

NAMES = [name for name in all_measures() if not name.startswith("volume")]


@pytest.fixture(scope="module")
def data():
    draws = torch.Generator().manual_seed(3)
    x = torch.rand(24, 6, generator=draws, dtype=torch.float64)
    y = torch.randint(0, 3, (24,), generator=draws)
    unseen = torch.rand(5, 6, generator=draws, dtype=torch.float64)
    return {"x": x, "y": y, "x_train": x, "y_train": y, "x_unseen": unseen}


@pytest.fixture(scope="module")
def model():
    return inv.models.mlp([6, 8, 5, 3], dtype=torch.float64).eval()


def arguments(name, data):
    """The tensors that a measure needs, by name."""
    return {field: data[field] for field in get_measure(name).fields}


def plain(name, model, data):
    return float(get_measure(name).function(model, **arguments(name, data)))


@dataclass
class Output:
    logits: torch.Tensor


class Returns(nn.Module):
    """Returns its inside's output in some wrapping."""

    def __init__(self, inside, wrap):
        super().__init__()
        self.inside, self.wrap = inside, wrap

    def forward(self, x):
        return self.wrap(self.inside(x))


class Named(nn.Module):
    """Reads two named tensors, whose sum is the input."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, first, second):
        return {"logits": self.inside(first + second)}


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_their_rows(name, model, data):
    given = arguments(name, data)
    source = next((field for field in given if field in ("x", "x_train")), None)
    if source is None:
        pytest.skip("reads parameters alone")
    targets = "y" + source[1:]
    loader = DataLoader(TensorDataset(data[source], data["y"]), batch_size=7)
    rest = {k: v for k, v in given.items() if k not in (source, targets)}
    value = float(get_measure(name).function(model, **{source: loader}, **rest))
    assert value == pytest.approx(plain(name, model, data), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", [Output, lambda out: {"logits": out, "more": None}])
def test_an_object_with_logits_is_its_logits(name, wrap, model, data):
    wrapped = Returns(model, wrap).eval()
    if "path_norm" in name:
        pytest.skip("defined for perceptrons")
    assert plain(name, wrapped, data) == pytest.approx(plain(name, model, data), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", ["hessian_trace", "relative_flatness", "pair_proxy"])
def test_several_named_inputs(name, model, data):
    whole = arguments(name, data)
    halves = {
        field: {"first": value / 4, "second": 3 * value / 4} if field[0] == "x" else value
        for field, value in whole.items()
    }
    found = float(get_measure(name).function(Named(model).eval(), **halves))
    assert found == pytest.approx(plain(name, model, data), rel=1e-9)


def test_batches_of_named_inputs_carry_their_labels(model, data):
    x, y = data["x"], data["y"]
    batches = [{"first": x[:10], "second": 0 * x[:10], "labels": y[:10]}]
    batches += [{"first": x[10:], "second": 0 * x[10:], "labels": y[10:]}]
    found = inv.measures.hessian_trace(Named(model).eval(), batches)
    assert float(found) == pytest.approx(plain("hessian_trace", model, data))


def test_a_name_that_not_every_batch_has_is_refused(model, data):
    x, y = data["x"], data["y"]
    batches = [
        {"first": x[:10], "second": x[:10], "labels": y[:10]},
        {"first": x[10:], "second": x[10:], "third": x[10:], "labels": y[10:]},
    ]
    with pytest.raises(DataError, match=r"do not fit together .*third"):
        inv.measures.hessian_trace(Named(model).eval(), batches)


def test_rows_are_numbered_beyond_what_half_precision_counts(data):
    half = Named(inv.models.mlp([6, 4, 3], dtype=torch.bfloat16)).eval()
    batch = {"first": data["x"].repeat(12, 1), "second": data["x"].repeat(12, 1)}  # 288 > 256
    found = inv.measures.hessian_trace(half, batch, data["y"].repeat(12))
    whole = inv.measures.hessian_trace(half.inside, 2 * data["x"], data["y"])
    assert float(found) == pytest.approx(float(whole), rel=1e-5)


def test_rows_are_not_numbered_beyond_what_a_dtype_counts(data):
    half = inv.models.mlp([6, 4, 3], dtype=torch.bfloat16).eval()
    batch = {"first": data["x"].repeat(12, 1), "second": data["x"].repeat(12, 1)}
    held, found = take(Named(half.float()), {"x": batch})
    with pytest.raises(ModelError, match="cannot count 288"):
        held.bfloat16()(found["x"].bfloat16())


def test_arrays_are_tensors(model, data):
    found = inv.measures.hessian_trace(model, data["x"].numpy(), data["y"].numpy())
    assert float(found) == plain("hessian_trace", model, data)


def test_compiled_and_parallel_models_are_what_they_hold(model, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, as it wraps
        wrappings = (torch.compile(model), nn.DataParallel(model))
    for wrapped in wrappings:
        found = inv.measures.hessian_trace(wrapped, data["x"], data["y"])
        assert float(found) == plain("hessian_trace", model, data)


def test_the_users_model_and_data_stay_as_they_are(model, data):
    named = Named(model).eval()
    before = dict(vars(named))
    batch = {"first": data["x"], "second": 0 * data["x"]}
    inv.measures.adaptive_trace(named, batch, data["y"])
    assert type(named) is Named
    assert vars(named) == before
    assert set(batch) == {"first", "second"}


def test_with_output_chooses(model, data):
    pair = Returns(model, lambda out: (out, "more")).eval()
    chosen = inv.models.with_output(pair, lambda out: out[0])
    assert float(inv.measures.hessian_trace(chosen, data["x"], data["y"])) == pytest.approx(
        plain("hessian_trace", model, data)
    )
    assert [name for name, _ in chosen.named_parameters()] == [
        name for name, _ in pair.named_parameters()
    ]


class Fit:
    model = nn.Linear(6, 3)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))


def mixed():
    model = inv.models.mlp([6, 4, 3])
    model.linear1.double()
    return model


REFUSED = {
    "a class": (lambda: nn.Linear, "Got the class Linear; call it"),
    "a function": (functools.partial(getattr, torch, "relu"), "must be a torch.nn.Module"),
    "a fit": (Fit, "take its .model"),
    "lazy": (lambda: nn.LazyLinear(3), "has no shape yet"),
    "meta": (lambda: nn.Linear(6, 3, device="meta"), "meta device"),
    "complex": (Complex, "is complex"),
    "mixed dtypes": (mixed, "several dtypes"),
    "a tuple": (
        lambda: Returns(nn.Linear(6, 3), lambda out: (out, 1)).eval(),
        "inv.models.with_output",
    ),
    "a mapping without logits": (
        lambda: Returns(nn.Linear(6, 3), lambda out: {"scores": out}).eval(),
        "scores",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["hessian_trace", "sam_sharpness", "minimum_sharpness"])
def test_what_cannot_be_read_is_refused_by_name(kind, name):
    make, words = REFUSED[kind]
    with pytest.raises(ModelError, match=words):
        getattr(inv.measures, name)(make(), torch.rand(4, 6), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ({"a": torch.rand(3, 2), "b": torch.rand(4, 2)}, "as many rows each"),
        ({}, "empty"),
        ({"a": "text"}, r"x\['a'\] must be a tensor"),
        ([{"a": torch.rand(2, 2)}, "text"], "carries its own targets"),
    ],
)
def test_data_that_is_no_rows_is_refused_by_name(x, words):
    with pytest.raises(DataError, match=words):
        inv.measures.sam_sharpness(nn.Linear(2, 3).eval(), x, torch.tensor([0, 1, 2]))


def test_every_measure_goes_through_the_door():
    for name in NAMES:
        assert "take" in inspect.getclosurevars(get_measure(name).function).globals, name


def test_the_door_leaves_random_state_alone(model, data):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the user's
    expected = torch.rand(1)
    torch.manual_seed(5)
    loader = DataLoader(TensorDataset(data["x"], data["y"]), batch_size=5, shuffle=True)
    inv.measures.minimum_sharpness(model, loader)
    assert torch.equal(torch.rand(1), expected)
