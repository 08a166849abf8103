"""Catches: silence about a kind of map that is read as the claim that a value varies."""

import torch

import invariance as inv
from invariance.core._groups import Group
from invariance.measures._registry import CONSIDERED, all_measures, as_measure, get_measure
from invariance.reporting._words import cell

T = inv.transforms


def squares(model):
    return sum(float(p.detach().double().square().sum()) for p in model.parameters())


def task():
    x = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 3
    return inv.data.Task("drawn", 3, x, y, x, y, x, y)


def test_every_registered_measure_speaks_about_every_kind_there_is_now():
    for name in all_measures():
        entry = get_measure(name)
        assert entry.claims(Group), name
        assert entry.invariant_under | set(entry.laws) <= entry.considered


def test_a_kind_nobody_has_considered_is_not_claimed():
    """As after adding a kind: a registered measure with one kind fewer."""
    from dataclasses import replace

    known = replace(get_measure("path_norm"), considered=CONSIDERED - {Group.UNIT_SPLIT})
    assert not known.claims([Group.PERMUTATION, Group.UNIT_SPLIT])
    report = inv.check(
        inv.models.mlp([4, 5, 3]), task(), measures=[known],
        transforms=[T.SplitUnits(1), T.Permutation()],
    )  # fmt: skip
    split, permuted = report.rows
    assert (split.claimed, permuted.claimed) == (False, True)
    assert split.note.startswith("Not claimed")
    assert split.declared == "varies"  # the format knows three words
    assert split.to_dict()["claimed"] is False
    assert cell(split).endswith(" ?")
    assert cell(permuted) == "="
    assert "not claimed" in report.to_html()
    assert "not claimed" in report.to_markdown()


def test_a_plain_function_claims_nothing_and_can_say_that_it_varies():
    network, scaling = inv.models.mlp([4, 5, 3]), T.LayerScaling([2.0, 0.5])
    plain = as_measure(squares)
    said = as_measure(squares, varies_under=[Group.LAYER_SCALING])
    (silent,) = inv.check(network, task(), measures=[plain], transforms=[scaling]).rows
    (spoken,) = inv.check(network, task(), measures=[said], transforms=[scaling]).rows
    assert cell(silent) == cell(spoken) + " ?"
    assert silent.verdict == spoken.verdict == "varies"
    assert spoken.claimed
    assert spoken.note == ""


def test_a_description_says_nothing_of_what_is_not_claimed():
    x, y = task().x_train, task().y_train
    from dataclasses import replace

    known = replace(get_measure("path_norm"), considered=frozenset({Group.PERMUTATION}))
    found = inv.testing.describe(
        known, inv.models.mlp([4, 5, 3]), x, y, groups=["permutation", "unit_split"]
    )
    assert found["permutation"].declared == "invariant"
    assert found["unit_split"].declared is None
