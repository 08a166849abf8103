"""The maps, on generic networks: the new network and every new parameter as an expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import sympy as sp

from invariance.atlas.symbolic._networks import Expr, Key, Network, perceptron
from invariance.core._groups import ABOUT, Group


@dataclass(frozen=True)
class SymbolicMap:
    """A function-preserving map from one generic network to another.

    Attributes:
        group: Its kind.
        title: What is done, as a reader would say it.
        old: The network before.
        new: The network after, with symbols of its own.
        values: Every new parameter as an expression in the old ones.
        sources: New parameter to ``(old parameter, c)``: an entry moves the outputs ``c`` times
            what its source did. ``None`` for an entry without a counterpart.
        written: The map's formulas, for the board.
        shared: A scratch dictionary for identities that several readings ask for.
    """

    group: Group
    title: str
    old: Network
    new: Network
    values: Mapping[Key, Expr]
    sources: Mapping[Key, tuple[Key, Expr] | None]
    written: tuple[str, ...]
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def replacing(self) -> dict[Expr, Expr]:
        """New symbol to its value."""
        return {self.new.symbols[key]: value for key, value in self.values.items()}

    def at(self, expression: Expr) -> Expr:
        """Read an expression of the new network in the old parameters."""
        return sp.S(expression).xreplace(self.replacing)

    @property
    def heads(self) -> tuple[tuple[int, ...], ...]:
        """Outputs to compare: each one, or under a logit shift the differences only."""
        if ABOUT[self.group].keeps_logits:
            return tuple((k,) for k in range(self.new.sizes[-1]))
        return tuple((k, 0) for k in range(1, self.new.sizes[-1]))

    @cached_property
    def one_to_one(self) -> bool:
        """Whether every old parameter has exactly one new entry, beside entries without source."""
        used = [pair[0] for pair in self.sources.values() if pair is not None]
        return sorted(used, key=str) == sorted(self.old.symbols, key=str)


def _scaled(
    group: Group, title: str, factors: Callable[[int, int], Expr], written: tuple[str, ...]
) -> SymbolicMap:
    """Scale hidden units: ``factors(layer, unit)``."""
    old, new = perceptron((2, 2, 2, 2)), perceptron((2, 2, 2, 2), prefix="t_")
    values: dict[Key, Expr] = {}
    sources: dict[Key, tuple[Key, Expr] | None] = {}
    for key, symbol in old.symbols.items():
        layer, unit = int(key[0][1:]), key[1]
        made = factors(layer, unit) if layer < old.depth else sp.S.One
        reads = factors(layer - 1, key[2]) if key[0][0] == "W" and layer > 1 else sp.S.One
        values[key] = symbol * made / reads
        sources[key] = (key, reads / made)
    return SymbolicMap(group, title, old, new, values, sources, written)


def _layer_scaling() -> list[SymbolicMap]:
    a = sp.symbols("a1 a2", positive=True)
    return [
        _scaled(
            Group.LAYER_SCALING,
            "every hidden layer l of a 2-2-2-2 ReLU perceptron times a_l > 0",
            lambda layer, unit: a[layer - 1],
            ("W_l' = (a_l / a_(l-1)) W_l", "b_l' = a_l b_l", "a_0 = a_L = 1"),
        )
    ]


def _neuron_scaling() -> list[SymbolicMap]:
    return [
        _scaled(
            Group.NEURON_SCALING,
            "every hidden unit of a 2-2-2-2 ReLU perceptron times its own a > 0",
            lambda layer, unit: sp.Symbol(f"a{layer}_{unit}", positive=True),
            ("row j of (W_l, b_l) times a_j", "column j of W_(l+1) divided by a_j"),
        )
    ]


def _permutation() -> list[SymbolicMap]:
    old = perceptron((2, 2, 2, 2))
    base = perceptron((2, 2, 2, 2), prefix="t_")
    new = Network(base.sizes, tuple(tuple(reversed(layer)) for layer in base.slopes), prefix="t_")
    values: dict[Key, Expr] = {}
    sources: dict[Key, tuple[Key, Expr] | None] = {}
    for key in old.symbols:
        layer = int(key[0][1:])
        place = list(key)
        if layer < old.depth:
            place[1] = 1 - key[1]
        if key[0][0] == "W" and layer > 1:
            place[2] = 1 - key[2]
        values[key], sources[key] = old.symbols[tuple(place)], (tuple(place), sp.S.One)
    return [
        SymbolicMap(
            Group.PERMUTATION,
            "the two units of each hidden layer of a 2-2-2-2 ReLU perceptron change places",
            old, new, values, sources,
            ("W_l' = P_l W_l P_(l-1)^T", "b_l' = P_l b_l"),
        )
    ]  # fmt: skip


def _sign_flip() -> list[SymbolicMap]:
    found = []
    for batch_norm in (False, True):
        options = {"batch_norm": True} if batch_norm else {"activation": "odd"}
        sizes = (2, 2, 2) if batch_norm else (1, 2, 2)
        old = perceptron(sizes, **options)
        base = perceptron(sizes, prefix="t_", **options)
        statistics = tuple(((-layer[0][0], layer[0][1]), *layer[1:]) for layer in base.statistics)
        new = Network(base.sizes, base.slopes, base.activation, statistics, "t_")
        values, sources = {}, {}
        flipped = ("W1", "b1", "gamma1") if batch_norm else ("W1", "b1")
        for key, symbol in old.symbols.items():
            turn = key[0] in flipped and key[1] == 0
            if not batch_norm:
                turn = turn or (key[0] == "W2" and key[2] == 0)
            sign = sp.Integer(-1 if turn else 1)
            values[key], sources[key] = sign * symbol, (key, sign)
        title = (
            "one hidden unit in front of an eval-mode BatchNorm: W, b, mu and gamma times -1"
            if batch_norm
            else "one hidden unit of a 1-2-2 perceptron with an odd activation: in and out times -1"
        )
        found.append(
            SymbolicMap(Group.SIGN_FLIP, title, old, new, values, sources, ("D has entries 1, -1",))
        )
    return found


def _linear_mixing() -> list[SymbolicMap]:
    old = perceptron((2, 2, 2), activation="identity")
    new = perceptron((2, 2, 2), prefix="t_", activation="identity")
    mix = sp.Matrix(2, 2, sp.symbols("A00 A01 A10 A11"))
    weight, bias = sp.Matrix(old.matrix(1)), sp.Matrix(2, 1, [old.symbols["b1", s] for s in (0, 1)])
    first, shifted, last = mix * weight, mix * bias, sp.Matrix(old.matrix(2)) * mix.inv()
    values: dict[Key, Expr] = {}
    for key, symbol in old.symbols.items():
        table = {"W1": first, "b1": shifted, "W2": last}.get(key[0])
        values[key] = symbol if table is None else table[key[1], key[2] if len(key) > 2 else 0]
    return [
        SymbolicMap(
            Group.LINEAR_MIXING,
            "an invertible A between two layers with nothing nonlinear between (2-2-2)",
            old, new, values, {}, ("W_1' = A W_1", "b_1' = A b_1", "W_2' = W_2 A^-1"),
        )
    ]  # fmt: skip


def _logit_shift() -> list[SymbolicMap]:
    old, new = perceptron((2, 2, 2, 2)), perceptron((2, 2, 2, 2), prefix="t_")
    v, c = sp.symbols("v0 v1"), sp.Symbol("c")
    values: dict[Key, Expr] = {}
    for key, symbol in old.symbols.items():
        extra = v[key[2]] if key[0] == "W3" else c if key[0] == "b3" else sp.S.Zero
        values[key] = symbol + extra
    return [
        SymbolicMap(
            Group.LOGIT_SHIFT,
            "the same row v and constant c added to every row of the last layer (2-2-2-2)",
            old, new, values, {key: (key, sp.S.One) for key in old.symbols},
            ("W_L' = W_L + 1 v^T", "b_L' = b_L + c 1"),
        )
    ]  # fmt: skip


def _batchnorm_fold() -> list[SymbolicMap]:
    old, new = perceptron((2, 2, 2), batch_norm=True), perceptron((2, 2, 2), prefix="t_")
    weight, bias = old.folded(1)
    values: dict[Key, Expr] = {}
    sources: dict[Key, tuple[Key, Expr] | None] = {}
    for key in new.symbols:
        scale = sp.S.One
        if key[0] in ("W1", "b1"):
            scale = 1 / (old.symbols["gamma1", key[1]] * old.statistics[0][key[1]][1])
            values[key] = weight[key[1]][key[2]] if key[0] == "W1" else bias[key[1]]
        else:
            values[key] = old.symbols[key]
        sources[key] = (key, scale)
    return [
        SymbolicMap(
            Group.BATCHNORM_FOLD,
            "an eval-mode BatchNorm of a 2-2-2 ReLU perceptron folded into the layer before it",
            old, new, values, sources,
            ("s = gamma / sqrt(v + eps)", "W' = diag(s) W", "b' = beta + s (b - mu)",
             "the BatchNorm is replaced by the identity"),
        )
    ]  # fmt: skip


def _batchnorm_scaling() -> list[SymbolicMap]:
    old = perceptron((2, 2, 2), batch_norm=True)
    base = perceptron((2, 2, 2), prefix="t_", batch_norm=True)
    a = sp.Symbol("a", positive=True)
    layer = tuple((a * mean, scale / a) for mean, scale in base.statistics[0])
    new = Network(base.sizes, base.slopes, base.activation, (layer,), "t_")
    values: dict[Key, Expr] = {}
    sources: dict[Key, tuple[Key, Expr] | None] = {}
    for key, symbol in old.symbols.items():
        factor = a if key[0] in ("W1", "b1") else sp.S.One
        values[key], sources[key] = factor * symbol, (key, 1 / factor)
    return [
        SymbolicMap(
            Group.BATCHNORM_SCALING,
            "the weight in front of an eval-mode BatchNorm times a > 0 (2-2-2)",
            old, new, values, sources,
            ("W' = a W, b' = a b, mu' = a mu", "v' = a^2 (v + eps) - eps, so sqrt(v' + eps) = a "
             "sqrt(v + eps) exactly"),
        )
    ]  # fmt: skip


def _wider(extra_slopes: Callable[[Network, int], Expr]) -> tuple[Network, Network]:
    old = perceptron((2, 2, 2, 2))
    slopes = tuple((*layer, extra_slopes(old, n)) for n, layer in enumerate(old.slopes))
    return old, Network((2, 3, 3, 2), slopes, prefix="t_")


def _unit_split() -> list[SymbolicMap]:
    old, new = _wider(lambda network, layer: network.slopes[layer][1])
    share = sp.Symbol("lambda")
    values: dict[Key, Expr] = {}
    sources: dict[Key, tuple[Key, Expr] | None] = {}
    for key in new.symbols:
        layer, place, factor, influence = int(key[0][1:]), list(key), sp.S.One, sp.S.One
        if layer < new.depth and key[1] >= 1:
            place[1], influence = 1, share if key[1] == 1 else 1 - share
        if key[0][0] == "W" and layer > 1 and key[2] >= 1:
            place[2], factor = 1, share if key[2] == 1 else 1 - share
        values[key] = old.symbols[tuple(place)] * factor
        sources[key] = (tuple(place), influence)
    return [
        SymbolicMap(
            Group.UNIT_SPLIT,
            "the last unit of each hidden layer of a 2-2-2-2 ReLU perceptron split in two",
            old, new, values, sources,
            ("two copies of the row (w, b)", "outgoing columns lambda u and (1 - lambda) u"),
        )
    ]  # fmt: skip


def _dormant_units() -> list[SymbolicMap]:
    old, new = _wider(lambda network, layer: sp.Symbol(f"m{layer + 1}_2"))
    values: dict[Key, Expr] = {}
    sources: dict[Key, tuple[Key, Expr] | None] = {}
    for key in new.symbols:
        layer = int(key[0][1:])
        if key[0][0] == "W" and layer > 1 and key[2] == 2:
            values[key], sources[key] = sp.S.Zero, None
        elif layer < new.depth and key[1] == 2:
            values[key], sources[key] = sp.Symbol("d_" + "_".join(map(str, key))), None
        else:
            values[key], sources[key] = old.symbols[key], (key, sp.S.One)
    return [
        SymbolicMap(
            Group.DORMANT_UNITS,
            "a unit with any incoming and no outgoing weights in each hidden layer (2-2-2-2)",
            old, new, values, sources, ("the new unit's outgoing column is zero",),
        )
    ]  # fmt: skip


def _coordinates() -> list[SymbolicMap]:
    old = perceptron((2, 2, 2))
    made = perceptron((2, 2, 2), prefix="t_")
    return [
        SymbolicMap(
            Group.COORDINATES,
            "the same point of a 2-2-2 ReLU perceptron, found from other coordinates by g",
            old, made, dict(old.symbols), {}, ("theta = g(eta), g a diffeomorphism",),
        )
    ]  # fmt: skip


_MAKERS: Mapping[Group, Callable[[], list[SymbolicMap]]] = {
    Group.LAYER_SCALING: _layer_scaling,
    Group.NEURON_SCALING: _neuron_scaling,
    Group.PERMUTATION: _permutation,
    Group.SIGN_FLIP: _sign_flip,
    Group.LINEAR_MIXING: _linear_mixing,
    Group.LOGIT_SHIFT: _logit_shift,
    Group.BATCHNORM_FOLD: _batchnorm_fold,
    Group.BATCHNORM_SCALING: _batchnorm_scaling,
    Group.UNIT_SPLIT: _unit_split,
    Group.DORMANT_UNITS: _dormant_units,
    Group.COORDINATES: _coordinates,
}


@cache
def maps_of(group: Group) -> tuple[SymbolicMap, ...]:
    """Return the generic maps that a proof about a kind of map has to go through."""
    return tuple(_MAKERS[group]()) if group in _MAKERS else ()
