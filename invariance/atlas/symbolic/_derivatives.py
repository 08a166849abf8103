"""Readings of derivatives: by the parameters, along them, in balls around them, by the input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import sympy as sp

from invariance.atlas.symbolic._identities import (
    Checks,
    Identity,
    NotReadError,
    head_name,
    head_of,
    logits,
    of_both,
    parameter_name,
    shared,
    signs,
    sourced,
)
from invariance.atlas.symbolic._maps import SymbolicMap
from invariance.atlas.symbolic._networks import Expr, Network
from invariance.core._groups import Group


def _first(made: SymbolicMap) -> Iterator[Identity]:
    """Every ``d_i f`` is its source's, up to the sign."""
    for head in made.heads:
        for key, (source, sign) in signs(made).items():
            new, old = ([table[k] for table in n.first] for n, k in of_both(made, key, source))
            yield Identity(
                f"d{head_name(head)}/d{parameter_name(key)}", made.at(head_of(new, head)),
                sign * head_of(old, head),
            )  # fmt: skip


def _second(made: SymbolicMap) -> Iterator[Identity]:
    sources = signs(made)
    outputs = range(made.old.sizes[-1])
    for head in made.heads:
        for a, b in combinations_with_replacement(sources, 2):
            (one, s), (two, t) = sources[a], sources[b]
            left = made.at(head_of([made.new.entry(k, a, b) for k in outputs], head))
            right = s * t * head_of([made.old.entry(k, one, two) for k in outputs], head)
            if left != 0 or right != 0:
                yield Identity(
                    f"d2{head_name(head)}/d{parameter_name(a)} d{parameter_name(b)}", left, right
                )


def derivatives(made: SymbolicMap) -> Iterator[Identity]:
    yield from logits(made)
    yield from _first(made)
    yield from _second(made)


def gradients(made: SymbolicMap) -> Iterator[Identity]:
    yield from logits(made)
    yield from _first(made)


def relative(made: SymbolicMap) -> Iterator[Identity]:
    if not made.one_to_one:
        raise NotReadError
    # theta_i d_i f carries no sign: the flips of theta and of the derivative cancel.
    for head in made.heads:
        for key, pair in sourced(made).items():
            left = made.at(made.new.symbols[key] * head_of([t[key] for t in made.new.first], head))
            right = sp.S.Zero
            if pair is not None:
                old = head_of([t[pair[0]] for t in made.old.first], head)
                right = made.old.symbols[pair[0]] * old
            yield Identity(f"theta d{head_name(head)}/d{parameter_name(key)}", left, right)
    yield from _relative_second(made)


def _relative_second(made: SymbolicMap) -> Iterator[Identity]:
    sources = sourced(made)
    for head in made.heads:
        for a, b in combinations_with_replacement(sources, 2):
            new, old = made.new, made.old
            entry = head_of([new.entry(k, a, b) for k in range(len(new.logits))], head)
            left = made.at(new.symbols[a] * new.symbols[b] * entry)
            one, two = sources[a], sources[b]
            right = sp.S.Zero
            if one is not None and two is not None:
                before = head_of(
                    [old.entry(k, one[0], two[0]) for k in range(len(old.logits))], head
                )
                right = old.symbols[one[0]] * old.symbols[two[0]] * before
            if left != 0 or right != 0:
                yield Identity(
                    f"theta theta d2{head_name(head)}/d{parameter_name(a)} d{parameter_name(b)}",
                    left,
                    right,
                )


def diagonal_law(made: SymbolicMap) -> Iterator[Identity]:
    for head in made.heads:
        for key, pair in sourced(made).items():
            if pair is None:
                raise NotReadError
            source, factor = pair
            new, old = made.new, made.old
            yield Identity(
                f"d{head_name(head)}/d{parameter_name(key)}",
                made.at(head_of([table[key] for table in new.first], head)),
                factor * head_of([table[source] for table in old.first], head),
            )
            yield Identity(
                f"d2{head_name(head)}/d{parameter_name(key)}^2",
                made.at(head_of([new.entry(k, key, key) for k in range(len(new.logits))], head)),
                factor**2
                * head_of([old.entry(k, source, source) for k in range(len(old.logits))], head),
            )


def along_theta(made: SymbolicMap) -> Iterator[Identity]:
    yield from logits(made)
    for head in made.heads:
        yield Identity(
            f"(theta . grad) {head_name(head)}", made.at(_along(made.new, head)),
            _along(made.old, head),
        )  # fmt: skip
        yield Identity(
            f"(theta . grad)^2 {head_name(head)}", made.at(_twice_along(made.new, head)),
            _twice_along(made.old, head),
        )  # fmt: skip


def _along(network: Network, head: tuple[int, ...]) -> Expr:
    return sum(
        symbol * head_of([table[key] for table in network.first], head)
        for key, symbol in network.symbols.items()
    )


def _twice_along(network: Network, head: tuple[int, ...]) -> Expr:
    return sum(
        (1 if a == b else 2) * network.symbols[a] * network.symbols[b]
        * head_of([table[a, b] for table in network.second], head)
        for a, b in network.second[0]
    )  # fmt: skip


def _moved(made: SymbolicMap, relative: bool, aligned: bool) -> Iterator[Identity]:
    """``f'(theta' + e')`` is ``f(theta + e)``, e' carried along by the map."""
    if not made.one_to_one:
        raise NotReadError
    new_at, old_at = {}, {}
    for key, symbol in made.old.symbols.items():
        e = sp.Symbol("v_" + "_".join(map(str, key)))
        old_at[key] = symbol * (1 + e) if relative else symbol + e
    for key, pair in sourced(made).items():
        value = made.values[key]
        e = sp.Symbol("w_" + "_".join(map(str, key)))
        if pair is not None:
            if aligned and pair[0] != key:
                raise NotReadError
            e = sp.Symbol("v_" + "_".join(map(str, pair[0])))
            if not relative:
                if pair[1] not in (1, -1) or (aligned and pair[1] != 1):
                    raise NotReadError
                e = e * pair[1]
        elif not relative or aligned:
            raise NotReadError
        new_at[key] = value * (1 + e) if relative else value + e
    new, old = made.new.run(new_at)[0][-1], made.old.run(old_at)[0][-1]
    for head in made.heads:
        yield Identity(
            f"{head_name(head)} at theta + e",
            head_of(new, head),
            head_of(old, head),
        )


def ball(relative: bool, aligned: bool = False) -> Checks:
    return lambda made: _moved(made, relative, aligned)


def tensorwise(made: SymbolicMap) -> Iterator[Identity]:
    """Within each tensor one factor: ``W_l' = t_l W_l`` and derivatives times ``1 / t_l``."""
    if not made.one_to_one or any(pair is None for pair in sourced(made).values()):
        raise NotReadError
    factors: dict[str, Expr] = {}
    for key, pair in made.sources.items():
        assert pair is not None
        size = pair[1] if pair[1] not in (1, -1) else sp.S.One
        if sp.cancel(factors.setdefault(key[0], size) / size) != 1:
            raise NotReadError
        ratio = sp.cancel(made.values[key] * pair[1] / made.old.symbols[pair[0]])
        if ratio != 1:
            raise NotReadError
    yield from logits(made)
    yield from shared(made, relative)


def weights_tensorwise(made: SymbolicMap) -> Iterator[Identity]:
    """As :func:`tensorwise`, for measures that read weight matrices and no biases."""
    if not made.one_to_one or any(pair is None for pair in sourced(made).values()):
        raise NotReadError
    factors: dict[str, Expr] = {}
    for key, pair in made.sources.items():
        assert pair is not None
        if key[0][0] != "W":
            continue
        size = pair[1] if pair[1] not in (1, -1) else sp.S.One
        if sp.cancel(factors.setdefault(key[0], size) / size) != 1:
            raise NotReadError
        if sp.cancel(made.values[key] * pair[1] / made.old.symbols[pair[0]]) != 1:
            raise NotReadError
    yield from logits(made)
    yield from shared(made, relative)


def _orbit(made: SymbolicMap) -> Iterator[Identity]:
    """``Tr H`` along the orbit: ``H_ii`` and ``theta_i^2`` move by one member's factors."""
    if made.group not in (Group.LAYER_SCALING, Group.NEURON_SCALING, Group.PERMUTATION,
                          Group.SIGN_FLIP, Group.LOGIT_SHIFT):  # fmt: skip
        raise NotReadError
    for key, pair in sourced(made).items():
        assert pair is not None
        if made.group is not Group.LOGIT_SHIFT:
            yield Identity(
                f"theta c of {parameter_name(key)}",
                made.values[key] * pair[1],
                made.old.symbols[pair[0]],
            )
    yield from shared(made, diagonal_law)


def units_orbit(made: SymbolicMap) -> Iterator[Identity]:
    yield from _orbit(made)


def layers_orbit(made: SymbolicMap) -> Iterator[Identity]:
    if made.group is Group.NEURON_SCALING:
        raise NotReadError
    yield from _orbit(made)


def tangent(made: SymbolicMap) -> Iterator[Identity]:
    """Every old derivative is a new one times a factor that is not zero."""
    sources = sourced(made)
    used = {pair[0] for pair in sources.values() if pair is not None}
    if used != set(made.old.symbols):
        raise NotReadError
    yield from logits(made)
    for head in made.heads:
        for key, pair in sources.items():
            if pair is None:
                raise NotReadError
            yield Identity(
                f"d{head_name(head)}/d{parameter_name(key)}",
                made.at(head_of([table[key] for table in made.new.first], head)),
                pair[1] * head_of([table[pair[0]] for table in made.old.first], head),
            )


def input_jacobian(made: SymbolicMap) -> Iterator[Identity]:
    yield from logits(made)
    for head in made.heads:
        for symbol in sp.symbols("x0 x1"):
            yield Identity(
                f"d{head_name(head)}/d{symbol}",
                made.at(sp.diff(head_of(made.new.logits, head), symbol)),
                sp.diff(head_of(made.old.logits, head), symbol),
            )
