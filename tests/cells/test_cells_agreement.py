"""Catches: a check and an assertion that judge one cell by different rules."""

import pytest
import torch

import invariance as inv
from invariance.cells import CellEngine, ComparisonPolicy, MappedNetwork
from invariance.core._groups import Group
from invariance.measures._registry import all_measures, as_measure, get_measure
from invariance.testing import BrokenTransformError, NotInvariantError

T = inv.transforms
MAPS = [
    T.LayerScaling([4.0, 0.25]),
    T.NeuronScaling(seed=1),
    T.Permutation(seed=1),
    T.LogitShift(seed=1),
    T.SplitUnits(1, seed=1),
    T.DormantUnits(1, seed=1),
]


@pytest.fixture(scope="module")
def task():
    drawn = torch.Generator().manual_seed(0)
    x = torch.rand(24, 4, generator=drawn)
    y = torch.arange(24) % 3
    return inv.data.Task("drawn", 3, x, y, x, y, x, y)


@pytest.fixture(scope="module")
def network(task):
    return inv.fit(inv.models.mlp([4, 5, 3]), task, lr=0.2, max_epochs=40).model


def checked(name, network, task, rtol=1e-6, **options):
    report = inv.check(network, task, transforms=MAPS, measures=[name], rtol=rtol, **options)
    rows = {row.label: abs(row.after - row.before) <= row.tolerance for row in report.rows}
    return rows, report


def asserted(measure, transform, network, task, **options):
    """Whether the value stays by the assertion; None where it declines to say."""
    data = {name: getattr(task, name) for name in ("x_unseen", "y_unseen", "x_train", "y_train")}
    try:
        inv.testing.assert_invariant(
            measure,
            network,
            task.x_train,
            task.y_train,
            transforms=[transform],
            data=data,
            dtype="float64",
            allow_constant=True,
            explain=False,
            **options,
        )
    except NotInvariantError:
        return False
    except inv.InvarianceError:
        return None
    return True


@pytest.mark.parametrize("name", all_measures())
def test_check_and_assertion_agree_on_every_registered_measure(name, network, task):
    rows, report = checked(name, network, task)
    assert report.contradictions == ()
    found = [t for t in MAPS if repr(t) in rows]
    unclear = any("not clear" in row.method for row in report.rows)
    for transform in found:
        stays = asserted(name, transform, network, task)
        estimated = get_measure(name).cost == "sampling" or unclear
        assert stays == rows[repr(transform)] or (stays is None and estimated), repr(transform)
    assert found or report.refused


@pytest.mark.parametrize(("change", "stays"), [(1e-8, True), (1e-5, False)])
def test_they_agree_where_a_value_moves_a_little(change, stays, network, task):
    """Between float error and rtol both look away; above it both see it; without rtol none does."""

    def almost(model, x, y):
        first = float(next(model.parameters()).detach().double().abs().mean())
        return 1 + change * first / 4

    transform, measure = MAPS[0], as_measure(almost, invariant_under=[Group.LAYER_SCALING])
    one = inv.check(network, task, transforms=[transform], measures=[measure], rtol=1e-6).rows[0]
    assert (one.verdict == "invariant") == stays
    assert asserted(measure, transform, network, task) == stays
    for exact in (
        inv.check(network, task, transforms=[transform], measures=[measure]).rows[0].verdict,
        "contradicts" if not asserted(measure, transform, network, task, rtol=0.0) else "stays",
    ):
        assert exact == "contradicts"


class Broken(T.Permutation):
    """A map that changes the function, and does not say so."""

    def apply(self, model, example_input=None):
        applied = super().apply(model, example_input)
        with torch.no_grad():
            next(applied.model.parameters()).mul_(1.01)
        return applied


def test_no_assertion_takes_a_map_that_changes_the_function(network, task):
    def field(model, x, y):
        return {name: p.detach() for name, p in model.named_parameters()}

    def noisy(model, x, y, seed):
        return float(inv.measures.path_norm(model))

    x, y = task.x_train, task.y_train
    with pytest.raises(BrokenTransformError, match="does not keep the function"):
        inv.testing.assert_covariant(field, network, x, y, degree=-1, transforms=[Broken()])
    with pytest.raises(BrokenTransformError, match="does not keep the function"):
        inv.testing.assert_equal_in_law(noisy, network, x, y, transforms=[Broken()])


def test_a_map_that_changes_the_function_is_refused_by_both(network, task):
    report = inv.check(network, task, transforms=[Broken()], measures=["path_norm"])
    assert report.rows == ()
    assert report.function[0].max_abs_logit_diff > 1e-4
    assert "does not keep the function" in report.refused[0].reason
    with pytest.raises(BrokenTransformError, match="does not keep the function"):
        inv.testing.assert_invariant(
            "path_norm", network, task.x_train, task.y_train, transforms=[Broken()]
        )


def test_round_off_excuses_no_more_than_a_thousandth_in_float32(task):
    """A difference of large numbers: all its digits are round-off in float32."""

    def cancelling(model, x):
        output = model(x).detach()
        return 1 + abs(float((1e5 * output + 1.0).sum() - 1e5 * output.sum()) - output.numel())

    network = inv.models.mlp([4, 5, 3])
    measure = as_measure(cancelling, invariant_under=[Group.NEURON_SCALING])
    moved = inv.check(
        network, task, transforms=[MAPS[1]], measures=[measure], dtype=torch.float32
    ).rows[0]
    assert moved.tolerance <= 1e-3 * abs(moved.before) * (1 + 1e-9)


def test_one_engine_tells_what_a_policy_asks_for(network, task):
    def squares(model):
        return sum(float(p.detach().square().sum()) for p in model.parameters())

    engine = CellEngine(
        as_measure(squares),
        MappedNetwork(network.double(), task.x_train.double()),
        {},
        ComparisonPolicy(),
    )
    cell = engine.cell(T.LayerScaling([2.0, 0.5]))
    by_hand = sum(
        factor**2 * float(p.detach().square().sum())
        for factor, p in zip((2.0, 2.0, 0.5, 1.0), network.parameters(), strict=True)
    )
    assert cell.row.after == pytest.approx(by_hand, rel=1e-12)
    assert cell.moved
    assert cell.row.verdict == "contradicts"
    network.float()
