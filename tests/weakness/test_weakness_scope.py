"""What weakness is invariant under, and what it is not; before and after the repair.

Networks trained on real digits, transforms of EVERY hidden layer. The counts must stay
under scaling, permutation, folding and splitting; under dormant units the function stays
and the plain counts move; the repaired ones stay. A net is also made to have
a dormant unit first, and that unit is moved.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from invariance.core._errors import MeasureError, UsageError
from invariance.core._groups import Group
from invariance.data import load_task
from invariance.measures._registry import Setting, get_measure
from invariance.models import mlp
from invariance.transforms import FoldBatchNorm, LayerScaling, NeuronScaling, Permutation
from invariance.transforms._dormant_units import DormantUnits
from invariance.transforms._logit_shift import LogitShift
from invariance.transforms._split_units import SplitUnits
from invariance.weakness._features import frozen_features
from invariance.weakness.patterns._patterns import activation_patterns
from invariance.weakness.patterns._regions import (
    free_parameters,
    free_regions,
    region_class_weakness,
)
from invariance.weakness.patterns._repaired import (
    reduced_network,
    repaired_activation_patterns,
    repaired_free_regions,
)
from invariance.weakness.separability._conditioning import default_rank_tolerance
from invariance.weakness.separability._pair_proxy import pair_proxy
from invariance.weakness.separability._repaired_pair_proxy import (
    function_features,
    repaired_pair_proxy,
    used_features,
)

N_TRAIN, N_UNSEEN, N_PROBES = 80, 200, 16


@pytest.fixture(scope="module")
def task():
    return load_task("digits", n_train=N_TRAIN, n_unseen=N_UNSEEN, seed=0)


def trained(task, seed, batch_norm=False, sizes=(64, 16, 6, 10)):
    """Memorises the training points; float64, eval mode."""
    model = mlp(sizes, batch_norm=batch_norm, seed=seed).double()
    x, y = task.x_train.double(), task.y_train
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(1500):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        if loss < 1e-3:
            break
    model.zero_grad()
    model.eval()
    assert (model(x).argmax(1) == y).all()
    return model


@pytest.fixture(scope="module")
def networks(task):
    """Name to a trained network."""
    plain = {f"plain {seed}": trained(task, seed) for seed in range(2)}
    return plain | {"batch norm": trained(task, 3, batch_norm=True)}


def weakness(model, task):
    x, y, u = task.x_train.double(), task.y_train, task.x_unseen.double()
    pairs = pair_proxy(model, x, y, u[:N_PROBES])
    assert pairs.exact
    assert pairs.detail["policy_feasible"]
    return {
        "pair proxy": float(pairs),
        "patterns 0": float(activation_patterns(model, u, 0)),
        "patterns -1": float(activation_patterns(model, u)),
        "free regions": float(free_regions(model, x, u)),
        "region classes": float(region_class_weakness(model, x, u)),
    }


def repaired(model, task):
    x, y, u = task.x_train.double(), task.y_train, task.x_unseen.double()
    return {
        "used": float(repaired_pair_proxy(model, x, y, u[:N_PROBES])),
        "function": float(repaired_pair_proxy(model, x, y, u[:N_PROBES], features="function")),
        "patterns 0": float(repaired_activation_patterns(model, u, 0)),
        "patterns -1": float(repaired_activation_patterns(model, u)),
        "free regions": float(repaired_free_regions(model, x, u)),
    }


@pytest.fixture(scope="module")
def before(networks, task):
    """Name to the plain and the repaired counts of each network, computed once."""
    return {name: (weakness(net, task), repaired(net, task)) for name, net in networks.items()}


KEEP = {
    "layer scaling": LayerScaling([3.7, 0.21, 1 / (3.7 * 0.21)]),
    "neuron scaling": NeuronScaling(spread=20.0, seed=1),
    "permutation": Permutation(seed=2),
    "unit splitting": SplitUnits(3, seed=3),
    "logit shift": LogitShift(seed=4),
    "fold": FoldBatchNorm(),
}


@pytest.mark.parametrize("name", KEEP)
def test_weakness_stays_under_every_map_that_keeps_the_features(networks, task, before, name):
    x = task.x_train.double()
    for label, model in networks.items():
        if name == "fold" and label != "batch norm":
            continue
        moved = KEEP[name](model, x)
        if name in ("layer scaling", "neuron scaling"):
            # Every hidden layer is scaled, the last one included: the features change.
            last = (frozen_features(net, x).values[0] for net in (model, moved))
            ratio = np.divide(*(np.linalg.norm(part) for part in last))
            assert abs(np.log(ratio)) > 0.05
        assert (weakness(moved, task), repaired(moved, task)) == before[label]


def test_a_dormant_unit_keeps_the_function_and_moves_weakness(networks, task, before):
    x, u = task.x_train.double(), task.x_unseen.double()
    rises = dict.fromkeys(before["plain 0"][0], 0.0)
    for label, model in networks.items():
        wider = DormantUnits(3, seed=5)(model, x)
        # Sums over more terms may be split in another way: equal to round-off, not in every bit.
        torch.testing.assert_close(wider(u), model(u), rtol=0, atol=1e-12, msg=label)
        after = weakness(wider, task)
        for key, value in before[label][0].items():
            assert after[key] >= value  # a wider span, a longer pattern: never fewer
            rises[key] += after[key] - value
        assert repaired(wider, task) == before[label][1]
    assert all(rise > 0 for rise in rises.values())


def test_moving_a_dormant_unit_keeps_the_architecture_and_moves_weakness(networks, task, before):
    x, u = task.x_train.double(), task.x_unseen.double()
    changed = dict.fromkeys(before["plain 0"][0], 0)
    for label, model in networks.items():
        home = DormantUnits(2, seed=6)(model, x)
        one = weakness(home, task)
        for seed in range(2):
            away = DormantUnits(2, seed=7 + seed, move=True)(home, x)
            assert [p.shape for p in away.parameters()] == [p.shape for p in home.parameters()]
            assert torch.equal(away(u), home(u))
            two = weakness(away, task)
            for key in changed:
                changed[key] += one[key] != two[key]
            assert repaired(away, task) == before[label][1]
    assert changed["pair proxy"] >= 2
    assert changed["patterns -1"] >= 2
    assert changed["free regions"] >= 2


def test_repairs_equal_the_plain_counts_where_nothing_is_spare(before):
    for label, (plain, fixed) in before.items():
        assert plain["pair proxy"] == fixed["used"], label
        # Six features, nine class differences: the last layer reads them all.
        assert plain["pair proxy"] == fixed["function"], label
        for key in ("patterns 0", "patterns -1", "free regions"):
            assert plain[key] == fixed[key], label


def test_fewer_directions_leave_fewer_pairs():
    """Seven features, of which three classes read two directions; two more are dormant."""
    draw = torch.Generator().manual_seed(0)
    x, u, weight = (torch.randn(s, generator=draw).double() for s in ((30, 7), (20, 7), (3, 7)))
    weight[:, 5:] = 0.0
    model = nn.Linear(7, 3, dtype=torch.float64).eval()
    with torch.no_grad():
        model.weight.copy_(weight)
        y = model(x).argmax(1)
        logits = [model(part) for part in (x, u)]
    function = repaired_pair_proxy(model, x, y, u, features="function")
    used = repaired_pair_proxy(model, x, y, u)
    plain = pair_proxy(model, x, y, u)
    assert float(function) < float(used) < float(plain)
    assert function.detail["features"] == 2
    assert used.detail["features"] == 5
    assert used.detail["width"] == 7
    # The function repair reads the logits' differences and nothing else: take those as features.
    reader = nn.Linear(2, 3, dtype=torch.float64).eval()
    one, two = (part[:, 1:] - part[:, :1] for part in logits)
    np.testing.assert_array_equal(
        pair_proxy(reader, one, y, two).detail["status"], function.detail["status"]
    )
    # The used repair is the proxy of the five features.
    five = nn.Linear(5, 3, dtype=torch.float64).eval()
    np.testing.assert_array_equal(
        pair_proxy(five, x[:, :5], y, u[:, :5]).detail["status"], used.detail["status"]
    )


def test_a_logit_shift_does_not_hide_a_dormant_unit(networks, task, before):
    model = networks["plain 1"]
    x = task.x_train.double()
    wider = DormantUnits(3, seed=5)(model, x)
    unseen = task.x_unseen.double()
    assert float(activation_patterns(wider, unseen)) > float(activation_patterns(model, unseen))
    shifted = LogitShift(seed=3)(wider, x)
    last = [module for module in shifted.modules() if isinstance(module, nn.Linear)][-1]
    assert last.weight.abs().sum(0).min() > 0  # no column is zero any more
    assert repaired(shifted, task) == before["plain 1"][1]


def test_cancelling_duplicates_are_not_used(networks, task, before):
    """Two equal units with opposite outgoing weights are as unused as a dormant one."""
    model = copy.deepcopy(networks["plain 0"])
    u = task.x_unseen.double()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hidden, last = linears[-2], linears[-1]
    wide_hidden = nn.Linear(hidden.in_features, hidden.out_features + 2, dtype=torch.float64)
    wide_last = nn.Linear(last.in_features + 2, 10, dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        incoming = torch.randn(1, hidden.in_features, generator=draw).double()
        # Active on about half of the points: the threshold is the median over them.
        seen = nn.Sequential(*list(model.children())[:2])(u) @ incoming[0]
        threshold = -seen.median().reshape(1)
        wide_hidden.weight.copy_(torch.cat([hidden.weight, incoming, 2 * incoming]))
        wide_hidden.bias.copy_(torch.cat([hidden.bias, threshold, 2 * threshold]))
        out = torch.randn(10, 1, generator=draw).double()
        wide_last.weight.copy_(torch.cat([last.weight, out, -out / 2], dim=1))
        wide_last.bias.copy_(last.bias)
    replaced = {hidden: wide_hidden, last: wide_last}
    wider = nn.Sequential(*(replaced.get(module, module) for module in model.children())).eval()
    torch.testing.assert_close(wider(u), model(u))
    assert weakness(wider, task)["pair proxy"] > before["plain 0"][0]["pair proxy"]
    assert repaired(wider, task) == before["plain 0"][1]


def test_used_features_by_hand():
    random = np.random.default_rng(0)
    a, b, c = random.standard_normal((3, 20))
    rows = np.stack([a, b, 3 * a, c, np.zeros(20), -b], axis=1)
    weight = np.zeros((3, 6))
    weight[:, 0], weight[:, 2] = [3, 0, 0], [-1, 0, 0]  # cancel: a is not used
    weight[:, 1], weight[:, 5] = [1, 2, 3], [1, 2, 3]  # b and -b: cancel, not used
    weight[:, 3] = 5.0  # the same for all classes: a logit shift
    weight[:, 4] = [1, 0, 0]  # never active
    assert used_features(rows, weight, tolerance=1e-11).size == 0
    weight[2, 5] += 1.0  # leave (0, 0, -1) on b
    np.testing.assert_array_equal(used_features(rows, weight, tolerance=1e-11), [1])
    weight[0, 3] += 1e-6  # small, but far above round-off: used
    np.testing.assert_array_equal(used_features(rows, weight, tolerance=1e-11), [1, 3])
    assert default_rank_tolerance(torch.finfo(torch.float64).eps) == 1e-11


def test_a_point_that_the_function_maps_to_zero_stays_the_origin():
    """Without biases such a point is no direction; a dormant unit that it activates is none."""
    train = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.3, 0.1, 0.2], [0.5, 0.7, 0.0]])
    unseen = torch.tensor([[1.1, 0.4, 0.3], [1.2, 0.6, 0.2]])
    labels = torch.tensor([2, 2, 0, 0])
    weight = torch.tensor([[0.35, 0.67], [-0.79, -0.16], [-0.08, 0.45]])
    counts = []
    for width in (2, 3):  # without the dormant feature, and with it
        reader = nn.Linear(width, 3, bias=False).double()
        with torch.no_grad():
            reader.weight.zero_()
            reader.weight[:, :2] = weight
        model = nn.Sequential(nn.Flatten(), reader).eval()
        points = [rows[:, :width].double() for rows in (train, unseen)]
        counts.append(repaired_pair_proxy(model, points[0], labels, points[1], features="function"))
    assert counts[0].detail["policy_feasible"] is False
    assert [float(count) for count in counts] == [0.0, 0.0]


def test_the_origin_is_one_for_the_function_whatever_the_units_are():
    """A decomposition of all points leaves round-off where a point is exactly zero."""
    train = [[0.0, 0.0], [0.2870650832549898, 0.0], [0.0, 0.29775510640642516]]
    rows = np.array([*train, [0.35441041808090107, 0.02051467008535111], [0.24, 0.14], [0.0, 0.0]])
    weight = np.array([[0.4, -0.3], [-0.6, 0.2], [0.1, 0.5], [0.3, 0.7]])
    for factors in ([1.0, 1.0], [0.11, 4.97], [3e4, 1e-5]):
        found = function_features(
            rows * factors, weight / factors, bias=False, tolerance=default_rank_tolerance(1e-16)
        )
        assert found.shape == (6, 2)
        assert (found[[0, 5]] == 0).all()
        assert (np.linalg.norm(found[1:5], axis=1) > 1e-3).all()


def test_free_parameters_follow_their_law_under_splitting(networks, task):
    x, u = task.x_train.double(), task.x_unseen.double()
    model = networks["plain 0"]
    wider = SplitUnits(2, seed=1)(model, x)
    one, two = free_parameters(model, x, u), free_parameters(wider, x, u)
    units = 8
    expected = sum(max(0, units * 10 + 10 - n) for n in one.detail["train_counts"])
    expected += one.detail["free_regions"] * (units * 10 + 10)
    assert two.detail["units"] == units
    assert float(two) == expected > float(one)
    applied = SplitUnits(2, seed=1).apply(model, x)
    law = get_measure("free_parameters").laws[Group.UNIT_SPLIT]
    setting = Setting(model, applied, {"x_train": x, "x_unseen": u}, one)
    assert law(setting) == expected


def test_declarations_say_what_was_shown():
    for name in ("pair_proxy", "activation_patterns", "free_regions", "region_class_weakness"):
        entry = get_measure(name)
        assert set(Group) - entry.invariant_under == {Group.DORMANT_UNITS}
    for name in (
        "repaired_pair_proxy",
        "function_pair_proxy",
        "repaired_activation_patterns",
        "repaired_free_regions",
    ):
        assert get_measure(name).invariant_under == set(Group)
    assert get_measure("free_parameters").declared([Group.UNIT_SPLIT]) == "law"
    assert get_measure("volume_weakness").declared([Group.NEURON_SCALING]) == "invariant"
    assert get_measure("volume_weakness_raw").declared([Group.NEURON_SCALING]) == "varies"
    assert get_measure("volume_weakness_raw").declared([Group.PERMUTATION]) == "invariant"


def test_repairs_touch_nothing_and_refuse_clearly(networks, task):
    x, y, u = task.x_train.double(), task.y_train, task.x_unseen.double()
    model = networks["plain 0"]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    repaired(model, task)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(entry.requires_grad and entry.grad is None for entry in model.parameters())
    with pytest.raises(UsageError, match="features 'all'"):
        repaired_pair_proxy(model, x, y, u, features="all")
    constant = copy.deepcopy(model)
    last = [module for module in constant.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.constant_(last.weight, 0.5)
    for features in ("used", "function"):
        with pytest.raises(MeasureError, match="uses no feature"):
            repaired_pair_proxy(constant, x, y, u, features=features)


def test_reduced_networks_are_the_same_softmax(networks, task):
    x, u = task.x_train.double(), task.x_unseen.double()
    wider = DormantUnits(2, seed=4)(networks["batch norm"], x)
    reduced = reduced_network(wider, x)
    torch.testing.assert_close(reduced(u).softmax(1), wider(u).softmax(1))
    assert sum(p.numel() for p in reduced.parameters()) == sum(
        p.numel() for p in networks["batch norm"].parameters()
    )
