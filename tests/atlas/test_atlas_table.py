"""Catches: a cell without evidence, a false proof, a counterexample that is none, a declaration
that its evidence contradicts."""

import json
import os
from dataclasses import replace
from types import MappingProxyType

import pytest
import sympy as sp

import invariance as inv
from invariance.atlas import _counterexamples as counterexamples
from invariance.atlas import _theorems
from invariance.atlas._atlas import cell_of
from invariance.atlas._cells import AtlasError
from invariance.atlas._knowledge import KNOWLEDGE
from invariance.atlas.symbolic import _maps
from invariance.atlas.symbolic._identities import Identity
from invariance.atlas.symbolic._networks import perceptron
from invariance.atlas.symbolic._readings import READINGS, prove_reading
from invariance.cli._main import main
from invariance.core._groups import Group
from invariance.measures._registry import all_measures, get_measure


@pytest.fixture(scope="module")
def atlas():
    return inv.atlas.build()


def test_every_shipped_measure_stands_in_it_with_evidence_in_every_cell(atlas):
    # Other tests register measures of their own.
    shipped = {name for name in all_measures() if name in inv.measures.__all__}
    assert shipped == set(KNOWLEDGE) == {entry.name for entry in atlas.measures}
    for entry in atlas.measures:
        assert [cell.group for cell in entry.cells] == [group.value for group in Group]
        assert entry.source
        assert entry.cost in ("cheap", "solver", "sampling")
        for cell in entry.cells:
            assert cell.evidence, (entry.name, cell.group)
            assert (cell.proof == "counterexample") == (cell.declared == "varies")


def test_most_of_what_is_claimed_is_proved_by_algebra(atlas):
    claimed = [c for e in atlas.measures for c in e.cells if c.declared in ("invariant", "law")]
    assert sum(cell.proof == "symbolic" for cell in claimed) > 0.5 * len(claimed)


@pytest.mark.parametrize("name", sorted(KNOWLEDGE))
def test_every_counterexample_still_moves_its_measure(name):
    measure = get_measure(name)
    cells = list(counterexamples.stored().get(name, {}).items())
    if measure.cost == "sampling":  # seconds each
        cells = cells[:1]
    for group, example in cells:
        assert example.made().groups == (Group(group),)
        before, after = counterexamples.evaluate(measure, example)
        assert before == pytest.approx(example.before, rel=1e-6, abs=1e-12), group
        assert (after is None) == (example.after is None), group
        if after is not None:
            assert after == pytest.approx(example.after, rel=1e-6, abs=1e-12), group
        assert counterexamples.moves(before, after)


MUTATIONS = [
    ("hessian_trace", "add", Group.LAYER_SCALING),
    ("hessian_trace", "drop", Group.PERMUTATION),
    ("hessian_trace", "drop law", Group.LAYER_SCALING),
    ("relative_flatness", "add", Group.NEURON_SCALING),
    ("path_norm", "drop", Group.DORMANT_UNITS),
    ("pair_proxy", "add", Group.DORMANT_UNITS),
    ("fisher_rao_norm", "drop", Group.LINEAR_MIXING),
    ("free_parameters", "drop law", Group.UNIT_SPLIT),
    ("parameter_norm", "law", Group.LOGIT_SHIFT),
    ("adaptive_trace", "law", Group.LAYER_SCALING),
]


@pytest.mark.parametrize(("name", "kind", "group"), MUTATIONS)
def test_a_changed_declaration_is_caught(name, kind, group):
    found = get_measure(name)
    fixed, laws = set(found.invariant_under), dict(found.laws)
    if kind == "add":
        laws.pop(group, None)
        fixed.add(group)
    elif kind == "drop":
        fixed.remove(group)
    elif kind == "drop law":
        del laws[group]
    else:
        fixed.discard(group)
        laws[group] = lambda setting: 0.0
    mutated = replace(found, invariant_under=frozenset(fixed), laws=MappingProxyType(laws))
    cell_of(found, group)
    with pytest.raises(AtlasError, match=f"{name} under {group.value}"):
        cell_of(mutated, group)


def test_silence_is_undeclared_and_never_guessed():
    quiet = replace(get_measure("path_norm"), considered=frozenset({Group.PERMUTATION}))
    cell = cell_of(quiet, Group.UNIT_SPLIT)
    assert (cell.declared, cell.proof) == ("undeclared", None)


def test_a_false_identity_does_not_hold():
    a, b = sp.symbols("a b")
    assert Identity("", (a + b) ** 2, a**2 + 2 * a * b + b**2).holds
    assert Identity("", a / (a * b), 1 / b).holds
    assert not Identity("", (a + b) ** 2, a**2 + b**2).holds


def test_a_map_that_breaks_the_function_proves_nothing():
    """Biases scaled like weights of their layer alone, as published code does."""
    (right,) = _maps.maps_of(Group.LAYER_SCALING)
    wrong = dict(right.values)
    wrong["b2", 0] = right.old.symbols["b2", 0]
    broken = replace(right, values=wrong, shared={})
    for name in ("logits", "relative", "along_theta", "paths"):
        assert all(identity.holds for identity in READINGS[name].checks(right))
        assert not all(identity.holds for identity in READINGS[name].checks(broken))


def test_the_symbolic_network_is_the_network():
    """The polynomial at given numbers is what torch computes, derivatives included."""
    import torch

    model = inv.models.from_weights(
        [[[1.0, 2.0], [-1.0, 1.0]], [[2.0, 1.0], [1.0, -3.0]]], [[0.5, 1.0], [1.0, 0.0]]
    )
    x = torch.tensor([[1.0, 0.5]]).double()
    generic = perceptron((2, 2, 2))
    values = dict(zip(sp.symbols("x0 x1"), x[0].tolist(), strict=True))
    state = dict(model.named_parameters())
    for key, symbol in generic.symbols.items():
        kind = "weight" if key[0][0] == "W" else "bias"
        values[symbol] = float(state[f"linear{key[0][1:]}.{kind}"][key[1:]].detach())
    hidden = (x @ state["linear1.weight"].T + state["linear1.bias"])[0] > 0
    values |= {m: float(on) for m, on in zip(generic.slopes[0], hidden, strict=True)}
    got = [float(f.xreplace(values)) for f in generic.logits]
    assert got == pytest.approx(model(x)[0].tolist())
    (gradient,) = torch.autograd.grad(model(x)[0, 1], state["linear1.weight"])
    for key, derivative in generic.first[1].items():
        if key[0] == "W1":
            assert float(derivative.xreplace(values)) == pytest.approx(float(gradient[key[1:]]))


@pytest.mark.parametrize("name", sorted(READINGS))
def test_a_reading_tells_maps_apart(name):
    held = [group for group in Group if prove_reading(name, group) is not None]
    assert held
    assert name == "softmax" or len(held) < len(Group)


@pytest.mark.parametrize("theorem", _theorems.THEOREMS, ids=lambda theorem: theorem.name)
def test_theorems(theorem):
    assert len(theorem.board()) > 3
    assert set(theorem.measures) <= set(KNOWLEDGE)


def test_a_false_theorem_is_refused():
    with pytest.raises(_theorems.FalseTheoremError):
        _theorems._equal(sp.Symbol("a"), sp.Symbol("b"), "a = b")


def test_command_line(tmp_path, capsys, atlas):
    kinds = ("json", "html", "markdown", "latex")
    paths = {kind: tmp_path / "new" / f"atlas.{kind}" for kind in kinds}
    arguments = [part for kind in kinds for part in (f"--{kind}", str(paths[kind]))]
    assert main(["atlas", *arguments]) == 0
    assert "new; it will be made" in capsys.readouterr().err
    found = json.loads(paths["json"].read_text())
    assert set(found["measures"][0]) >= {"name", "source", "cost", "cells"}
    assert set(found["measures"][0]["cells"][0]) == {"group", "declared", "proof", "evidence"}
    page = paths["html"].read_text()
    assert "http:" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "https:" not in page
    assert page.count("<button") == len(atlas.measures + atlas.algorithms) * len(Group)
    assert "| path_norm |" in paths["markdown"].read_text()
    assert "path\\_norm &" in paths["latex"].read_text()
    assert main(["prove", "hessian_trace"]) == 0
    out = capsys.readouterr().out
    assert "Tr H(a) = A/a^2 + C + B a^2" in out
    assert "QED" in out


@pytest.mark.parametrize("name", ["path_norm", "NeuronScaling", "batchnorm_fold", "Compose"])
def test_explain(name, capsys):
    assert main(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(name)


@pytest.mark.parametrize("command", ["prove", "explain"])
def test_misspelt_names_get_a_suggestion(command, capsys):
    assert main([command, "pathnorm"]) == 2
    assert "Did you mean 'path_norm'?" in capsys.readouterr().err


def test_json_is_small_and_has_no_machine_path():
    text = counterexamples.STORE.read_text()
    assert os.path.expanduser("~") not in text or os.path.expanduser("~") == "/"
    assert len(text) < 200_000
