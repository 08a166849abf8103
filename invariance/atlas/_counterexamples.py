"""Smallest counterexamples: a tiny network with whole or simple rational numbers, and a map.

``counterexamples.json`` holds one for every declared cell that is not invariant: the network, the
map, and the value before and after. The networks are tried from the smallest up, so the first one
that moves a value is kept; ``python -m invariance.atlas._counterexamples`` finds them again.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import invariance.transforms as T
from invariance.core._errors import InvarianceError
from invariance.core._files import write_atomically
from invariance.core._groups import Group
from invariance.measures._registry import Measure, all_measures, get_measure
from invariance.models import from_weights, mlp
from invariance.transforms._base import Transform

STORE = Path(__file__).with_name("counterexamples.json")

#: A value has to move by this much of itself before it counts as moved.
MOVED = 1e-6

#: Networks from the smallest up: weights, biases, activation, BatchNorm, inputs, labels.
#: Where BatchNorm stands, one tuple per hidden layer: gamma, beta, mean, variance.
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "relu 1-1-2": {
        "weights": [[["2"]], [["1"], ["-1"]]],
        "biases": [["1"], ["0", "1/2"]],
        "x": [["1"]],
        "y": [0],
        "unseen": [["-1"], ["2"]],
    },
    "relu 1-2-2": {
        "weights": [[["2"], ["-1"]], [["1", "1/2"], ["-1", "2"]]],
        "biases": [["1", "2"], ["0", "1/2"]],
        "x": [["1"], ["3"]],
        "y": [0, 1],
        "unseen": [["-1"], ["2"], ["4"]],
    },
    "relu 2-2-2-3": {
        "weights": [
            [["1", "-1/2"], ["1/2", "2"]],
            [["1", "1/2"], ["-1", "2"]],
            [["1", "-1"], ["1/2", "1"], ["-1", "3/2"]],
        ],
        "biases": [["1/2", "1"], ["1", "1/4"], ["0", "1/2", "-1/2"]],
        "x": [["1", "0"], ["1/2", "1"], ["-1", "1"], ["1", "-1"]],
        "y": [0, 1, 2, 0],
        "unseen": [["-1", "2"], ["2", "1/2"], ["-2", "-1"], ["0", "3"]],
    },
    "relu 1-2-2, twelve rows": {
        "weights": [[["2"], ["-1"]], [["1", "1/2"], ["-1", "2"]]],
        "biases": [["1", "2"], ["0", "1/2"]],
        "x": [[f"{number}/4"] for number in range(-6, 6)],
        "y": [0, 1, 1, 0, 1, 0] * 2,
        "unseen": [["-1"], ["2"]],
    },
    "tanh 1-2-2": {
        "weights": [[["1"], ["-1/2"]], [["1", "1/2"], ["-1", "2"]]],
        "biases": [["1/2", "1"], ["0", "1/2"]],
        "activation": "tanh",
        "x": [["1"], ["-1/2"]],
        "y": [0, 1],
        "unseen": [["-1"], ["2"]],
    },
    "linear 1-2-2": {
        "weights": [[["2"], ["-1"]], [["1", "1/2"], ["-1", "2"]]],
        "biases": [["1", "2"], ["0", "1/2"]],
        "activation": "identity",
        "x": [["1"], ["3"]],
        "y": [0, 1],
        "unseen": [["-1"], ["2"], ["4"]],
    },
    "linear 2-2-3": {
        "weights": [[["1", "-1/2"], ["1/2", "2"]], [["1", "-1"], ["1/2", "1"], ["-1", "3/2"]]],
        "biases": [["1/2", "1"], ["0", "1/2", "-1/2"]],
        "activation": "identity",
        "x": [["1", "0"], ["1/2", "1"], ["-1", "1"], ["1", "-1"]],
        "y": [0, 1, 2, 0],
        "unseen": [["-1", "2"], ["2", "1/2"], ["-2", "-1"]],
    },
    "batch norm 1-2-2": {
        "weights": [[["2"], ["1"]], [["1", "1/2"], ["-1", "2"]]],
        "biases": [["1", "2"], ["0", "1/2"]],
        "norms": [[["2", "3/2"], ["1", "1/2"], ["1", "1/2"], ["4", "1/4"]]],
        "x": [["1"], ["3"]],
        "y": [0, 1],
        "unseen": [["-1"], ["2"], ["4"]],
    },
}

#: The members of each kind that are tried, simplest first; written so that they can be shown.
MEMBERS: Mapping[Group, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    Group.LAYER_SCALING: (
        ("LayerScaling", {"factors": [2.0, 0.5]}),
        ("LayerScaling", {"factors": [2.0, 0.5, 1.0]}),
    ),
    Group.NEURON_SCALING: (
        ("NeuronScaling", {"factors": [2.0]}),
        ("NeuronScaling", {"factors": [[2.0, 1.0]]}),
        ("NeuronScaling", {"factors": [[2.0, 1.0], [1.0, 4.0]]}),
    ),
    Group.PERMUTATION: (("Permutation", {"seed": 1}), ("Permutation", {"seed": 2})),
    Group.SIGN_FLIP: tuple(("SignFlip", {"seed": seed}) for seed in range(3)),
    Group.LINEAR_MIXING: (("LinearMixing", {"seed": 0}), ("LinearMixing", {"seed": 1})),
    Group.LOGIT_SHIFT: (("LogitShift", {"seed": 0}),),
    Group.BATCHNORM_FOLD: (("FoldBatchNorm", {}),),
    Group.BATCHNORM_SCALING: (("BatchNormScaling", {"factor": 2.0}),),
    Group.UNIT_SPLIT: (
        ("SplitUnits", {"count": 1, "seed": 0}),
        ("SplitUnits", {"count": 1, "seed": 1}),
    ),
    Group.DORMANT_UNITS: tuple(
        ("DormantUnits", {"count": count, "seed": seed}) for count in (1, 3) for seed in range(8)
    ),
    Group.COORDINATES: (
        ("Reparametrize", {"coordinates": "exp"}),
        ("Reparametrize", {"coordinates": "weight_norm"}),
        ("Reparametrize", {"coordinates": "dinh"}),
    ),
}


@dataclass(frozen=True)
class Counterexample:
    """A network, a map that keeps its function, and the values that differ.

    Attributes:
        network: Name in :data:`NETWORKS`.
        transform: Class name of the map.
        arguments: Its arguments.
        before: Value of the measure before.
        after: Value after; ``None`` where the measure refuses the image, so that it has no value
            that could be the same.
    """

    network: str
    transform: str
    arguments: Mapping[str, Any]
    before: float
    after: float | None

    def made(self) -> Transform:
        """Return the map."""
        found: Transform = getattr(T, self.transform)(**self.arguments)
        return found

    def __str__(self) -> str:
        written = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        what = f"{self.transform}({written}) on the network {self.network!r}"
        if self.after is None:
            return f"{what} leaves a network that it refuses to measure (before: {self.before:.6g})"
        return f"{what} takes it from {self.before:.6g} to {self.after:.6g}"


def rational(numbers: Any) -> Any:
    """Turn nested texts such as ``"3/2"`` into numbers."""
    if isinstance(numbers, list):
        return [rational(entry) for entry in numbers]
    return float(Fraction(numbers))


@cache
def network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build one of the small networks, in float64, with its data by task field."""
    recipe = NETWORKS[name]
    weights, biases = rational(recipe["weights"]), rational(recipe["biases"])
    model: nn.Module = from_weights(
        weights, biases, activation=recipe.get("activation", "relu"), dtype=torch.float64
    )
    if norms := recipe.get("norms"):
        sizes = [len(weights[0][0]), *(len(matrix) for matrix in weights)]
        plain, model = model, mlp(sizes, batch_norm=True, dtype=torch.float64).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            for number, values in enumerate(rational(norms), 1):
                norm = model.get_submodule(f"norm{number}")
                targets = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                for target, value in zip(targets, values, strict=True):
                    assert isinstance(target, Tensor)
                    target.copy_(torch.tensor(value))
    x = torch.tensor(rational(recipe["x"]), dtype=torch.float64)
    y = torch.tensor(recipe["y"])
    unseen = torch.tensor(rational(recipe["unseen"]), dtype=torch.float64)
    labels = torch.zeros(len(unseen), dtype=torch.int64)
    data = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    return model, data | {"x_unseen": unseen, "y_unseen": labels}


def inputs_of(measure: Measure, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect what a measure asks for."""
    return {argument: data[field] for argument, field in measure.fields.items()}


def evaluate(measure: Measure, example: Counterexample) -> tuple[float, float | None]:
    """Compute the measure on a counterexample's network and on its image."""
    model, data = network(example.network)
    inputs = inputs_of(measure, data)
    moved = example.made()(model, data["x_train"])
    before = float(measure(model, **inputs))
    try:
        return before, float(measure(moved, **inputs))
    except InvarianceError:
        return before, None


def moves(before: float, after: float | None) -> bool:
    """Whether two values are a counterexample to invariance."""
    if after is None:
        return True
    return abs(after - before) > MOVED * max(abs(before), abs(after), 1e-9)


@cache
def stored() -> Mapping[str, Mapping[str, Counterexample]]:
    """Return all kept counterexamples, by measure and group."""
    content = json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}
    return {
        name: {group: Counterexample(**entry) for group, entry in cells.items()}
        for name, cells in content.items()
    }


def search(measure: Measure, group: Group) -> Counterexample | None:
    """Return the first of the small networks on which a map of a kind moves a measure."""
    refused = None
    for place in NETWORKS:
        model, data = network(place)
        try:
            before = float(measure(model, **inputs_of(measure, data)))
        except InvarianceError:
            continue
        for title, arguments in MEMBERS[group]:
            example = Counterexample(place, title, arguments, before, before)
            try:
                _, after = evaluate(measure, example)
            except InvarianceError:  # the map does not apply here
                continue
            found = replace(example, after=after)
            if after is None:
                refused = refused or found
            elif moves(before, after):
                return found
    return refused


def main(names: Sequence[str]) -> None:
    """Find what is missing of the given measures, or of all, and keep it."""
    importlib.import_module("invariance.measures")
    result = {name: dict(cells) for name, cells in stored().items()}
    for name in names or all_measures():
        measure, cells = get_measure(name), result.setdefault(name, {})
        for group in Group:
            if measure.declared([group]) == "invariant":
                cells.pop(group.value, None)
            elif group.value not in cells:
                example = search(measure, group)
                if example is None:
                    sys.stdout.write(f"no counterexample: {name} under {group.value}\n")
                else:
                    cells[group.value] = example
    written = {name: {g: vars(e) for g, e in cells.items()} for name, cells in result.items()}
    write_atomically(STORE, (json.dumps(written, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
