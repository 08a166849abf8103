"""What a measure reads of a network, and the identities under which a map leaves that alone.

A measure is a function of one of these readings; if a map leaves the reading alone on a generic
network, it leaves every measure alone that is determined by it. Losses enter by the chain rule:
``H = J^T S J + sum_k r_k d^2 f_k`` with r and S functions of the logits (and labels), so what is
asked of J and ``d^2 f`` holds for every loss and, by linearity, for every mean over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement, product
from typing import Literal
from zlib import crc32

import sympy as sp

from invariance.atlas.symbolic._maps import SymbolicMap, maps_of
from invariance.atlas.symbolic._networks import Expr, Key, Network
from invariance.core._groups import ABOUT, Group


@dataclass(frozen=True)
class Identity:
    """One equation that has to hold for all values of all symbols.

    Attributes:
        label: Its name in words.
        left: The new network's quantity, in the old network's symbols.
        right: What it has to be.
    """

    label: str
    left: Expr
    right: Expr

    @cached_property
    def holds(self) -> bool:
        """Whether the two sides are one rational function."""
        if self.left == self.right:
            return True
        # A false equation shows at the first point, in exact arithmetic and at little cost.
        if _value(self.left) != _value(self.right):
            return False
        difference = sp.expand(self.left - self.right)
        if difference == 0:
            return True
        return bool(sp.expand(sp.fraction(sp.together(difference))[0]) == 0)


def _value(expression: Expr) -> Expr:
    """Evaluate at a point of primes, each symbol at its own."""
    symbols = sorted(sp.S(expression).free_symbols, key=str)
    point = {symbol: sp.Integer(_prime(str(symbol))) for symbol in symbols}
    return sp.S(expression).xreplace(point)


def _prime(name: str) -> int:
    return int(sp.prime(3 + crc32(name.encode()) % 400))


class NotReadError(Exception):
    """The map's form alone rules the reading out."""


Checks = Callable[[SymbolicMap], Iterator[Identity]]


@dataclass(frozen=True)
class Reading:
    """What some measures are a function of.

    Attributes:
        name: How measures refer to it.
        says: What is compared, in words.
        lemma: Why a measure that is determined by it does not move.
        checks: The identities for one map.
        kind: What follows: the value stays, or the stated law holds.
        of_function: Whether it is the same in any coordinates of the parameters: a property of
            the function and its units, not of the numbers that are differentiated by.
    """

    name: str
    says: str
    lemma: str
    checks: Checks
    kind: Literal["invariant", "law"] = "invariant"
    of_function: bool = False


def _shared(made: SymbolicMap, checks: Checks) -> list[Identity]:
    """Return what several readings ask of a map, so that it is checked once."""
    if checks not in made.shared:
        made.shared[checks] = list(checks(made))
    found: list[Identity] = made.shared[checks]
    return found


def _name(key: Key) -> str:
    return f"{key[0]}[{', '.join(map(str, key[1:]))}]"


def _head(values: list[Expr], head: tuple[int, ...]) -> Expr:
    return values[head[0]] - (values[head[1]] if len(head) > 1 else 0)


def _head_name(head: tuple[int, ...]) -> str:
    return f"f_{head[0]}" if len(head) == 1 else f"(f_{head[0]} - f_{head[1]})"


def _logits(made: SymbolicMap) -> Iterator[Identity]:
    for head in made.heads:
        yield Identity(
            f"{_head_name(head)}(x)", made.at(_head(made.new.logits, head)),
            _head(made.old.logits, head),
        )  # fmt: skip


def _raw(checks: Checks) -> Checks:
    """Refuse maps that move the logits themselves."""

    def strict(made: SymbolicMap) -> Iterator[Identity]:
        if not ABOUT[made.group].keeps_logits:
            raise NotReadError
        yield from checks(made)

    return strict


def _sourced(made: SymbolicMap) -> Mapping[Key, tuple[Key, Expr] | None]:
    if not made.sources:
        raise NotReadError
    return made.sources


def _first(made: SymbolicMap) -> Iterator[Identity]:
    """Every ``d_i f`` is its source's, up to the sign."""
    for head in made.heads:
        for key, (source, sign) in _signs(made).items():
            new, old = ([table[k] for table in n.first] for n, k in _pair(made, key, source))
            yield Identity(
                f"d{_head_name(head)}/d{_name(key)}", made.at(_head(new, head)),
                sign * _head(old, head),
            )  # fmt: skip


def _second(made: SymbolicMap) -> Iterator[Identity]:
    sources = _signs(made)
    outputs = range(made.old.sizes[-1])
    for head in made.heads:
        for a, b in combinations_with_replacement(sources, 2):
            (one, s), (two, t) = sources[a], sources[b]
            left = made.at(_head([made.new.entry(k, a, b) for k in outputs], head))
            right = s * t * _head([made.old.entry(k, one, two) for k in outputs], head)
            if left != 0 or right != 0:
                yield Identity(f"d2{_head_name(head)}/d{_name(a)} d{_name(b)}", left, right)


def _pair(made: SymbolicMap, new: Key, old: Key) -> tuple[tuple[Network, Key], ...]:
    return (made.new, new), (made.old, old)


def _signs(made: SymbolicMap) -> dict[Key, tuple[Key, Expr]]:
    """Each parameter's source, where the map is a signed permutation."""
    pairs = _sourced(made)
    found = {key: pair for key, pair in pairs.items() if pair is not None and pair[1] in (1, -1)}
    if not made.one_to_one or len(found) != len(pairs):
        raise NotReadError
    return found


def _derivatives(made: SymbolicMap) -> Iterator[Identity]:
    yield from _logits(made)
    yield from _first(made)
    yield from _second(made)


def _gradients(made: SymbolicMap) -> Iterator[Identity]:
    yield from _logits(made)
    yield from _first(made)


def _relative(made: SymbolicMap) -> Iterator[Identity]:
    if not made.one_to_one:
        raise NotReadError
    # theta_i d_i f carries no sign: the flips of theta and of the derivative cancel.
    for head in made.heads:
        for key, pair in _sourced(made).items():
            left = made.at(made.new.symbols[key] * _head([t[key] for t in made.new.first], head))
            right = sp.S.Zero
            if pair is not None:
                old = _head([t[pair[0]] for t in made.old.first], head)
                right = made.old.symbols[pair[0]] * old
            yield Identity(f"theta d{_head_name(head)}/d{_name(key)}", left, right)
    yield from _relative_second(made)


def _relative_second(made: SymbolicMap) -> Iterator[Identity]:
    sources = _sourced(made)
    for head in made.heads:
        for a, b in combinations_with_replacement(sources, 2):
            new, old = made.new, made.old
            entry = _head([new.entry(k, a, b) for k in range(len(new.logits))], head)
            left = made.at(new.symbols[a] * new.symbols[b] * entry)
            one, two = sources[a], sources[b]
            right = sp.S.Zero
            if one is not None and two is not None:
                before = _head([old.entry(k, one[0], two[0]) for k in range(len(old.logits))], head)
                right = old.symbols[one[0]] * old.symbols[two[0]] * before
            if left != 0 or right != 0:
                yield Identity(
                    f"theta theta d2{_head_name(head)}/d{_name(a)} d{_name(b)}", left, right
                )


def _diagonal_law(made: SymbolicMap) -> Iterator[Identity]:
    for head in made.heads:
        for key, pair in _sourced(made).items():
            if pair is None:
                raise NotReadError
            source, factor = pair
            new, old = made.new, made.old
            yield Identity(
                f"d{_head_name(head)}/d{_name(key)}",
                made.at(_head([table[key] for table in new.first], head)),
                factor * _head([table[source] for table in old.first], head),
            )
            yield Identity(
                f"d2{_head_name(head)}/d{_name(key)}^2",
                made.at(_head([new.entry(k, key, key) for k in range(len(new.logits))], head)),
                factor**2
                * _head([old.entry(k, source, source) for k in range(len(old.logits))], head),
            )


def _along_theta(made: SymbolicMap) -> Iterator[Identity]:
    yield from _logits(made)
    for head in made.heads:
        yield Identity(
            f"(theta . grad) {_head_name(head)}", made.at(_along(made.new, head)),
            _along(made.old, head),
        )  # fmt: skip
        yield Identity(
            f"(theta . grad)^2 {_head_name(head)}", made.at(_twice_along(made.new, head)),
            _twice_along(made.old, head),
        )  # fmt: skip


def _along(network: Network, head: tuple[int, ...]) -> Expr:
    return sum(
        symbol * _head([table[key] for table in network.first], head)
        for key, symbol in network.symbols.items()
    )


def _twice_along(network: Network, head: tuple[int, ...]) -> Expr:
    return sum(
        (1 if a == b else 2) * network.symbols[a] * network.symbols[b]
        * _head([table[a, b] for table in network.second], head)
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
    for key, pair in _sourced(made).items():
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
            f"{_head_name(head)} at theta + e",
            _head(new, head),
            _head(old, head),
        )


def _ball(relative: bool, aligned: bool = False) -> Checks:
    return lambda made: _moved(made, relative, aligned)


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


def _path(made: SymbolicMap) -> Iterator[Identity]:
    yield Identity("sum over paths of prod w^2", made.at(_paths(made.new)), _paths(made.old))


def _unit_order(made: SymbolicMap, layer: int) -> list[int]:
    """The old unit that each new unit of a layer came from."""
    if made.group is Group.PERMUTATION and 0 < layer < made.old.depth:
        return [1, 0]
    if made.old.sizes != made.new.sizes:
        raise NotReadError
    return list(range(made.old.sizes[layer]))


def _layer_matrices(made: SymbolicMap) -> Iterator[Identity]:
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


def _preactivations(made: SymbolicMap) -> Iterator[Identity]:
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


def _patterns_and_width(made: SymbolicMap) -> Iterator[Identity]:
    if made.old.sizes != made.new.sizes:
        raise NotReadError
    yield from _preactivations(made)


def _matched(made: SymbolicMap, layer: int, width: int, before: int) -> list[int]:
    if made.group is Group.PERMUTATION:
        return [1, 0]
    if made.group is Group.UNIT_SPLIT:
        return [0, 1, 1]
    if width != before:
        raise NotReadError
    return list(range(width))


def _features(made: SymbolicMap) -> Iterator[Identity]:
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


def _rotated_features(made: SymbolicMap) -> Iterator[Identity]:
    if made.group is Group.LINEAR_MIXING:
        raise NotReadError
    for identity in _features(made):
        if sp.cancel(identity.left / identity.right) != 1:
            raise NotReadError
        yield identity
    new, old = [made.at(entry) for entry in made.new.features], made.old.features
    if len(new) != len(old):
        raise NotReadError
    yield Identity("|phi|^2", sum(e**2 for e in new), sum(e**2 for e in old))


def _last_layer(made: SymbolicMap) -> Iterator[Identity]:
    yield from _logits(made)
    yield Identity("|phi|^2 |w_a - w_b|^2", made.at(_gap(made.new)), _gap(made.old))


def _gap(network: Network) -> Expr:
    rows = network.matrix(network.depth)
    length = sum(entry**2 for entry in network.features)
    return length * sum((a - b) ** 2 for a, b in zip(rows[0], rows[1], strict=True))


def _last_rows(made: SymbolicMap) -> Iterator[Identity]:
    yield from _logits(made)
    for row in range(made.old.sizes[-1]):
        new, old = (
            sum(e**2 for e in network.features)
            * sum(w**2 for w in network.matrix(network.depth)[row])
            for network in (made.new, made.old)
        )
        yield Identity(f"|phi|^2 |w_{row}|^2", made.at(new), old)


def _tensorwise(made: SymbolicMap) -> Iterator[Identity]:
    """Within each tensor one factor: ``W_l' = t_l W_l`` and derivatives times ``1 / t_l``."""
    if not made.one_to_one or any(pair is None for pair in _sourced(made).values()):
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
    yield from _logits(made)
    yield from _shared(made, _relative)


def _weights_tensorwise(made: SymbolicMap) -> Iterator[Identity]:
    """As :func:`_tensorwise`, for measures that read weight matrices and no biases."""
    if not made.one_to_one or any(pair is None for pair in _sourced(made).values()):
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
    yield from _logits(made)
    yield from _shared(made, _relative)


def _orbit(made: SymbolicMap) -> Iterator[Identity]:
    """``Tr H`` along the orbit: ``H_ii`` and ``theta_i^2`` move by one member's factors."""
    if made.group not in (Group.LAYER_SCALING, Group.NEURON_SCALING, Group.PERMUTATION,
                          Group.SIGN_FLIP, Group.LOGIT_SHIFT):  # fmt: skip
        raise NotReadError
    for key, pair in _sourced(made).items():
        assert pair is not None
        if made.group is not Group.LOGIT_SHIFT:
            yield Identity(
                f"theta c of {_name(key)}", made.values[key] * pair[1], made.old.symbols[pair[0]]
            )
    yield from _shared(made, _diagonal_law)


def _units_orbit(made: SymbolicMap) -> Iterator[Identity]:
    yield from _orbit(made)


def _layers_orbit(made: SymbolicMap) -> Iterator[Identity]:
    if made.group is Group.NEURON_SCALING:
        raise NotReadError
    yield from _orbit(made)


def _tangent(made: SymbolicMap) -> Iterator[Identity]:
    """Every old derivative is a new one times a factor that is not zero."""
    sources = _sourced(made)
    used = {pair[0] for pair in sources.values() if pair is not None}
    if used != set(made.old.symbols):
        raise NotReadError
    yield from _logits(made)
    for head in made.heads:
        for key, pair in sources.items():
            if pair is None:
                raise NotReadError
            yield Identity(
                f"d{_head_name(head)}/d{_name(key)}",
                made.at(_head([table[key] for table in made.new.first], head)),
                pair[1] * _head([table[pair[0]] for table in made.old.first], head),
            )


def _parameters(made: SymbolicMap) -> Iterator[Identity]:
    """The multiset of absolute values of the parameters."""
    if not made.one_to_one or any(pair is None for pair in _sourced(made).values()):
        raise NotReadError
    for key, pair in made.sources.items():
        assert pair is not None
        if pair[1] not in (1, -1):
            raise NotReadError
        yield Identity(f"|theta| at {_name(key)}", made.values[key] ** 2,
                       made.old.symbols[pair[0]] ** 2)  # fmt: skip


def _shape(made: SymbolicMap) -> Iterator[Identity]:
    yield Identity("number of parameters", sp.Integer(len(made.new.symbols)),
                   sp.Integer(len(made.old.symbols)))  # fmt: skip


def _input_jacobian(made: SymbolicMap) -> Iterator[Identity]:
    yield from _logits(made)
    for head in made.heads:
        for symbol in sp.symbols("x0 x1"):
            yield Identity(
                f"d{_head_name(head)}/d{symbol}",
                made.at(sp.diff(_head(made.new.logits, head), symbol)),
                sp.diff(_head(made.old.logits, head), symbol),
            )


_CHAIN = "By the chain rule H = J^T S J + sum_k r_k d^2 f_k, with r and S functions of the logits."

READINGS: Mapping[str, Reading] = {
    entry.name: entry
    for entry in (
        Reading(
            "logits", "the logits, for all inputs and weights",
            "A function of the logits and labels is the same number wherever these are.",
            _raw(_logits), of_function=True,
        ),
        Reading(
            "softmax", "the differences of the logits",
            "The softmax, every loss on it and every margin are functions of logit differences.",
            _logits, of_function=True,
        ),
        Reading(
            "input_jacobian", "the logits' derivatives by the input",
            "The derivative by x of one function is one function.", _raw(_input_jacobian),
            of_function=True,
        ),
        Reading(
            "derivatives", "J and d^2 f, entry by entry up to order and sign",
            f"{_CHAIN} So H is conjugated by a signed permutation (or not moved at all), which "
            "keeps its trace, eigenvalues and norm.",
            _derivatives,
        ),
        Reading(
            "gradients", "J, entry by entry up to order and sign",
            "Gradients of the rows are J^T r and the Fisher matrix is J^T S J: a signed "
            "permutation keeps lengths, inner products and traces.",
            _gradients,
        ),
        Reading(
            "raw_gradients", "J of the logits themselves, up to order and sign",
            "The tangent kernel is J J^T: a signed permutation of J's columns keeps it.",
            _raw(_gradients),
        ),
        Reading(
            "relative", "theta_i d_i f and theta_i theta_j d_i d_j f, entry by entry",
            f"{_CHAIN} So D H D and D J^T with D = diag(theta) keep every entry (up to order), "
            "and an entry without a source is zero.",
            lambda made: iter(_shared(made, _relative)),
        ),
        Reading(
            "along_theta", "first and second derivatives of f along theta",
            "theta^T H theta = u^T S u + sum_k r_k q_k with u = (theta . grad) f and "
            "q = (theta . grad)^2 f; theta^T F theta = E u^T S u.",
            _along_theta,
        ),
        Reading(
            "diagonal_law", "d_i f and d_i^2 f, each c_i and c_i^2 times its source's",
            f"{_CHAIN} So H'_ii = c_i^2 H_jj, and sums over the diagonal follow.",
            _diagonal_law, "law",
        ),
        Reading(
            "relative_ball", "f(theta + theta * v) for every v",
            "The ball or cloud of perturbations |e_i / theta_i| is carried onto itself (v is only "
            "put in another order), and the loss on it is the same function of v.",
            _ball(relative=True),
        ),
        Reading(
            "relative_draws", "f(theta + theta * v) for every v, in the same order",
            "With the same random numbers v the perturbed losses are the same, one by one.",
            _ball(relative=True, aligned=True),
        ),
        Reading(
            "plain_ball", "f(theta + e) for every e",
            "The Euclidean ball is carried onto itself, and the loss on it is the same function.",
            _ball(relative=False),
        ),
        Reading(
            "plain_draws", "f(theta + e) for every e, in the same order",
            "With the same random numbers e the perturbed losses are the same, one by one.",
            _ball(relative=False, aligned=True),
        ),
        Reading(
            "paths", "the sum over paths of squared products, biases as paths",
            "The path norm is its square root; other orders p cancel alike.", _path,
        ),
        Reading(
            "paths_and_margins", "path norm and logit differences",
            "A margin is a difference of logits, divided here by the path norm.",
            lambda made: iter([*_path(made), *_raw(_logits)(made)]),
        ),
        Reading(
            "layer_matrices", "each folded weight matrix up to one constant, signs and order",
            "Orthogonally invariant norms ignore signs and order of rows and columns, and a "
            "product of norms ignores constants whose product is 1.",
            _layer_matrices, of_function=True,
        ),
        Reading(
            "layer_matrices_and_margins", "weight matrices as above, and logit differences",
            "As for the products; a margin is a difference of logits.",
            lambda made: iter([*_layer_matrices(made), *_raw(_logits)(made)]),
        ),
        Reading(
            "preactivations", "every unit's pre-activation up to a positive factor",
            "A pattern is the set of signs; positive factors, order and copies do not change "
            "which inputs share one.",
            _preactivations, of_function=True,
        ),
        Reading(
            "patterns_and_width", "pre-activations up to positive factors, and the layers' widths",
            "The count is a function of the regions, their rows and the width of the layer.",
            _patterns_and_width, of_function=True,
        ),
        Reading(
            "features", "the last features up to an invertible map",
            "Whether a linear layer on phi (with bias) classifies given points as given depends "
            "on the span of phi alone: a row u on phi is the row u M^-1 on M phi.",
            _features, of_function=True,
        ),
        Reading(
            "rotated_features", "the last features up to order",
            "Solid angles in the weights of the last layer ignore an orthogonal map of phi.",
            _rotated_features, of_function=True,
        ),
        Reading(
            "last_layer", "|phi|^2 |w_a - w_b|^2 for every pair of classes",
            "kappa = |phi|^2 tr(W^T S W) = |phi|^2 sum_(a<b) p_a p_b |w_a - w_b|^2.", _last_layer,
        ),
        Reading(
            "last_rows", "|phi|^2 |w_s|^2 for every row",
            "sum_s |w_s|^2 Tr H_ss = sum_s |w_s|^2 |phi|^2 S_ss, S a function of the logits.",
            _last_rows,
        ),
        Reading(
            "tensorwise", "one factor for each tensor, inverse in its derivatives",
            "|W_l|_F takes the factor that the derivatives lose, so |W_l|_F |W_m|_F H_lm stays.",
            _tensorwise,
        ),
        Reading(
            "weights_tensorwise", "one factor for each weight matrix, inverse in its derivatives",
            "|W_l|_F^2 takes the factor that the block's trace loses.", _weights_tensorwise,
        ),
        Reading(
            "units_orbit", "the diagonal of H along the orbit of all rescalings",
            "Rescaling by exp(u) after a member with factors a is rescaling by exp(u + log a): the "
            "infimum runs over the same networks. sum_i H_ii exp(-2 (D u)_i) is convex in u.",
            _units_orbit,
        ),
        Reading(
            "layers_orbit", "the diagonal of H along the orbit of layer rescalings",
            "Rescaling by exp(u) after a member with factors a is rescaling by exp(u + log a): the "
            "infimum runs over the same networks.",
            _layers_orbit,
        ),
        Reading(
            "tangent", "the span of the derivatives",
            "A projection onto the range of the score matrix depends on the span of its columns; "
            "columns times factors that are not zero, and repeated columns, span the same.",
            _tangent,
        ),
        Reading(
            "parameters", "the absolute values of the parameters up to order",
            "A norm of the vector of parameters ignores order and signs.", _parameters,
        ),
        Reading("shape", "the number of parameters", "It is a count.", _shape),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """A reading, checked under every generic map of one kind.

    Attributes:
        reading: What was shown to stay, or to follow its law.
        group: The kind of map.
        identities: All equations, each of them true.
        titles: The maps, in words.
        written: Their formulas.
    """

    reading: Reading
    group: Group
    identities: tuple[Identity, ...]
    titles: tuple[str, ...]
    written: tuple[str, ...]


@cache
def prove_reading(name: str, group: Group) -> Proof | None:
    """Prove by algebra that a kind of map leaves a reading alone; ``None`` if it does not."""
    reading = READINGS[name]
    found: list[Identity] = []
    maps = maps_of(group)
    if not maps or (group is Group.COORDINATES and not reading.of_function):
        return None
    try:
        for made in maps:
            for identity in reading.checks(made):
                if not identity.holds:
                    return None
                found.append(identity)
    except NotReadError:
        return None
    return Proof(
        reading,
        group,
        tuple(found),
        tuple(made.title for made in maps),
        tuple(line for made in maps for line in made.written),
    )
