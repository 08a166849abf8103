"""Catches: a measure that answers bad data with a number, or with torch's own error.

Every registered measure meets every bad input of its kind; each must raise an error of the
package that names what is wrong.
"""

import pytest
import torch

import invariance.curvature as curvature
import invariance.measures  # noqa: F401 - importing fills the registry
from invariance import measures as M
from invariance import transforms as T
from invariance.core._arguments import as_integer
from invariance.core._errors import InvarianceError, UsageError
from invariance.core._rng import generator
from invariance.data import load_task
from invariance.measures._registry import all_measures, get_measure
from invariance.models import mlp

ROWS, FEATURES, CLASSES = 12, 5, 3


def good():
    source = generator(0, "bad input")
    x = torch.randn(ROWS, FEATURES, generator=source)
    y = torch.arange(ROWS) % CLASSES
    return {
        "x_train": x,
        "y_train": y,
        "x_test": x.clone(),
        "y_test": y.clone(),
        "x_unseen": torch.randn(4, FEATURES, generator=source),
        "y_unseen": y[:4],
    }


def first_entry(value):
    def spoil(tensor):
        spoiled = tensor.clone()
        spoiled.view(-1)[0] = value
        return spoiled

    return spoil


#: What is wrong: which tensors, how they are spoiled, and what the message must say.
POINTS, LABELS = "x", "y"
CASES = {
    "wrong width": (POINTS, lambda x: torch.cat([x, x], 1), r"x\w* of shape \(.*10\)"),
    "NaN": (POINTS, first_entry(float("nan")), r"x\w* (contains|holds) NaN"),
    "infinity": (POINTS, first_entry(float("inf")), r"x\w* (contains|holds) NaN or infini"),
    "no rows": (POINTS, lambda x: x[:0], r"x\w* (is empty|has shape \(0, 5\)|must be .* row)"),
    "no tensor": (POINTS, lambda x: "points", r"x\w* (must be a|is a)|data must be|str"),
    "label too high": (LABELS, first_entry(CLASSES), "out of range|must lie in 0..2"),
    "negative label": (LABELS, first_entry(-1), "out of range|must lie in 0..2"),
    "float labels": (LABELS, torch.Tensor.float, "must .*integer"),
    "bool labels": (LABELS, torch.Tensor.bool, "must .*integer"),
    "labels in a column": (LABELS, lambda y: y[:, None], "must have shape"),
    "too few labels": (LABELS, lambda y: y[:-1], "rows|must have shape"),
}


def combinations():
    for name in all_measures():
        sources = set(get_measure(name).fields.values())
        for case, (kind, _, _) in CASES.items():
            if any(source.startswith(kind) for source in sources):
                yield pytest.param(name, case, id=f"{name}-{case.replace(' ', '_')}")


@pytest.mark.parametrize(("name", "case"), list(combinations()))
def test_bad_data_is_refused_by_name(name, case):
    kind, spoil, message = CASES[case]
    entry = get_measure(name)
    model = mlp((FEATURES, 6, CLASSES), seed=0).eval()
    data = good()
    for source in data:
        if source.startswith(kind):
            data[source] = spoil(data[source])
    inputs = {argument: data[source] for argument, source in entry.fields.items()}
    with pytest.raises(InvarianceError, match=message):
        entry(model, **inputs)


@pytest.mark.parametrize("k", [0, -1, 1.5, "a", None, 10_000])
@pytest.mark.parametrize("function", [curvature.hessian_eigenvalues, M.hessian_eigenvalues])
def test_the_number_of_eigenvalues_is_a_number(function, k):
    data, model = good(), mlp((FEATURES, 6, CLASSES), seed=0).eval()
    with pytest.raises(InvarianceError, match=r"k must .*Got "):
        function(model, data["x_train"], data["y_train"], k=k)


SEEDED = {
    "Permutation": lambda seed: T.Permutation(seed=seed),
    "SignFlip": lambda seed: T.SignFlip(seed=seed),
    "NeuronScaling": lambda seed: T.NeuronScaling(seed=seed),
    "LogitShift": lambda seed: T.LogitShift(seed=seed),
    "LinearMixing": lambda seed: T.LinearMixing(seed=seed),
    "SplitUnits": lambda seed: T.SplitUnits(1, seed=seed),
    "DormantUnits": lambda seed: T.DormantUnits(1, seed=seed),
    "mlp": lambda seed: mlp((3, 2), seed=seed),
    "load_task": lambda seed: load_task("digits", n_train=9, seed=seed),
    "generator": lambda seed: generator(seed, "any"),
    **{
        name: lambda seed, name=name: getattr(M, name)(
            mlp((FEATURES, 6, CLASSES), seed=0).eval(),
            good()["x_train"],
            good()["y_train"],
            seed=seed,
        )
        for name in (
            "hessian_eigenvalues",
            "adaptive_eigenvalue",
            "normalized_eigenvalue",
            "hessian_norm",
            "gaussian_sharpness",
            "worst_case_sharpness",
        )
    },
    "extension_count": lambda seed: M.extension_count(
        mlp((FEATURES, 6, CLASSES), seed=0).eval(),
        good()["x_train"],
        good()["y_train"],
        good()["x_unseen"],
        seed=seed,
    ),
    "hessian_trace": lambda seed: curvature.hessian_trace(
        mlp((FEATURES, 6, CLASSES), seed=0).eval(), good()["x_train"], good()["y_train"], seed=seed
    ),
}


@pytest.mark.parametrize("seed", ["a", 1.5, None, float("nan")])
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_an_integer(name, seed):
    with pytest.raises(UsageError, match=r"seed must be an integer. Got "):
        SEEDED[name](seed)


@pytest.mark.parametrize("seed", ["a", 1.5])
def test_the_seed_of_unseen_points_is_an_integer(seed):
    with pytest.raises(UsageError, match=r"unseen_seed must be an integer. Got "):
        load_task("digits", n_train=9, unseen_seed=seed)


def test_integers_of_other_libraries_are_integers():
    import numpy as np

    assert as_integer(np.int64(3), "k") == 3
    assert as_integer(torch.tensor(3), "k") == 3
    with pytest.raises(UsageError, match=r"k must be an integer of at least 1. Got 0"):
        as_integer(0, "k", low=1)


def test_a_shape_error_of_the_model_names_model_rows_and_dtype():
    data = good()
    model = mlp((FEATURES, 6, CLASSES), seed=0).eval()
    with pytest.raises(InvarianceError, match=r"Sequential does not accept x .*dtype int64"):
        curvature.hessian_eigenvalues(model, data["x_train"].long(), data["y_train"])
