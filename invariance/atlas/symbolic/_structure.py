"""Readings of what stands inside a network: paths, matrices, units, features, parameters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import sympy as sp

from invariance.atlas.symbolic._identities import (
    Identity,
    NotReadError,
    logits,
    parameter_name,
    sourced,
)
from invariance.atlas.symbolic._maps import SymbolicMap
from invariance.atlas.symbolic._networks import Expr, Network
from invariance.core._groups import Group


def _paths(network: Network) -> Expr:
    """Sum over paths of the squared product, biases as extra paths, BatchNorm folded."""
    signal: list[Expr] = [sp.S.One] * network.sizes[0]
    for layer in range(1, network.depth + 1):
        weight, bias = network.folded(layer)
        signal = [
            sp.expand(b**2 + sum(w**2 * a for w, a in zip(row, signal, strict=True)))
            for row, b in zip(weight, bias, strict=True)
        ]
    return sum(signal)


def path(made: SymbolicMap) -> Iterator[Identity]:
    yield Identity("sum over paths of prod w^2", made.at(_paths(made.new)), _paths(made.old))


def _unit_order(made: SymbolicMap, layer: int) -> list[int]:
    """The old unit that each new unit of a layer came from."""
    if made.group is Group.PERMUTATION and 0 < layer < made.old.depth:
        return [1, 0]
    if made.old.sizes != made.new.sizes:
        raise NotReadError
    return list(range(made.old.sizes[layer]))


def layer_matrices(made: SymbolicMap) -> Iterator[Identity]:
    """Every folded matrix is the old one times a constant and signs; the constants give 1."""
    product_of = sp.S.One
    for layer in range(1, made.old.depth + 1):
        new, old = made.new.folded(layer)[0], made.old.folded(layer)[0]
        rows, columns = _unit_order(made, layer), _unit_order(made, layer - 1)
        scale = sp.cancel(made.at(new[0][0]) / old[rows[0]][columns[0]])
        if scale.could_extract_minus_sign():
            scale = -scale
        product_of *= scale
        table = {
            (s, j): sp.cancel(made.at(new[s][j]) / (scale * old[rows[s]][columns[j]]))
            for s, j in product(range(len(rows)), range(len(columns)))
        }
        if any(sign not in (1, -1) for sign in table.values()):
            raise NotReadError
        for (s, j), sign in table.items():
            yield Identity(
                f"W_{layer}[{s}, {j}] in units of the layer", made.at(new[s][j]) / scale,
                sign * old[rows[s]][columns[j]],
            )  # fmt: skip
            if len(rows) == len(columns) == 2:  # rows' and columns' signs, no other
                yield Identity(
                    "signs are those of rows and columns",
                    table[0, 0] * table[1, 1], table[0, 1] * table[1, 0],
                )  # fmt: skip
    yield Identity("product of the layers' constants", product_of, sp.S.One)


def preactivations(made: SymbolicMap) -> Iterator[Identity]:
    """Every new unit is an old one times a positive factor, and none is lost."""
    if made.group is Group.SIGN_FLIP and made.old.activation == "odd":
        return  # a bit means the side of a kink, and an odd activation with one is linear
    for layer, (new, old) in enumerate(
        zip(made.new.preactivations, made.old.preactivations, strict=True), 1
    ):
        sources = _matched(made, layer, len(new), len(old))
        for unit, entry in enumerate(new):
            value, base = made.at(entry), old[sources[unit]]
            factor = sp.cancel(value / base)
            if not factor.is_positive:
                raise NotReadError
            yield Identity(f"pre-activation {unit} of layer {layer}", value, factor * base)


def patterns_and_width(made: SymbolicMap) -> Iterator[Identity]:
    if made.old.sizes != made.new.sizes:
        raise NotReadError
    yield from preactivations(made)


def _matched(made: SymbolicMap, layer: int, width: int, before: int) -> list[int]:
    if made.group is Group.PERMUTATION:
        return [1, 0]
    if made.group is Group.UNIT_SPLIT:
        return [0, 1, 1]
    if width != before:
        raise NotReadError
    return list(range(width))


def features(made: SymbolicMap) -> Iterator[Identity]:
    """``phi'(x) = M phi(x)`` with M of full column rank that does not depend on x."""
    new, old = [made.at(entry) for entry in made.new.features], made.old.features
    if made.group is Group.LINEAR_MIXING:
        mix = sp.Matrix(2, 2, sp.symbols("A00 A01 A10 A11"))
        wanted = mix * sp.Matrix(old)
        for unit, entry in enumerate(new):
            yield Identity(f"feature {unit} = (A phi)_{unit}", entry, wanted[unit])
        return
    sources = _matched(made, made.old.depth - 1, len(new), len(old))
    for unit, entry in enumerate(new):
        factor = sp.cancel(entry / old[sources[unit]])
        if factor.free_symbols & _data_and_pattern(made) or factor == 0:
            raise NotReadError
        yield Identity(f"feature {unit}", entry, factor * old[sources[unit]])


def _data_and_pattern(made: SymbolicMap) -> set[Expr]:
    found = {symbol for key, symbol in made.old.symbols.items()}
    for layer in made.old.slopes:
        for slope in layer:
            found |= set(sp.Tuple(slope).free_symbols)
    return found | set(sp.symbols("x0 x1"))


def rotated_features(made: SymbolicMap) -> Iterator[Identity]:
    if made.group is Group.LINEAR_MIXING:
        raise NotReadError
    for identity in features(made):
        if sp.cancel(identity.left / identity.right) != 1:
            raise NotReadError
        yield identity
    new, old = [made.at(entry) for entry in made.new.features], made.old.features
    if len(new) != len(old):
        raise NotReadError
    yield Identity("|phi|^2", sum(e**2 for e in new), sum(e**2 for e in old))


def last_layer(made: SymbolicMap) -> Iterator[Identity]:
    yield from logits(made)
    yield Identity("|phi|^2 |w_a - w_b|^2", made.at(_gap(made.new)), _gap(made.old))


def _gap(network: Network) -> Expr:
    rows = network.matrix(network.depth)
    length = sum(entry**2 for entry in network.features)
    return length * sum((a - b) ** 2 for a, b in zip(rows[0], rows[1], strict=True))


def last_rows(made: SymbolicMap) -> Iterator[Identity]:
    yield from logits(made)
    for row in range(made.old.sizes[-1]):
        new, old = (
            sum(e**2 for e in network.features)
            * sum(w**2 for w in network.matrix(network.depth)[row])
            for network in (made.new, made.old)
        )
        yield Identity(f"|phi|^2 |w_{row}|^2", made.at(new), old)


def parameters(made: SymbolicMap) -> Iterator[Identity]:
    """The multiset of absolute values of the parameters."""
    if not made.one_to_one or any(pair is None for pair in sourced(made).values()):
        raise NotReadError
    for key, pair in made.sources.items():
        assert pair is not None
        if pair[1] not in (1, -1):
            raise NotReadError
        yield Identity(f"|theta| at {parameter_name(key)}", made.values[key] ** 2,
                       made.old.symbols[pair[0]] ** 2)  # fmt: skip


def shape(made: SymbolicMap) -> Iterator[Identity]:
    yield Identity("number of parameters", sp.Integer(len(made.new.symbols)),
                   sp.Integer(len(made.old.symbols)))  # fmt: skip
