"""Generic small networks with symbolic weights, one row of symbolic inputs, any pattern.

A ReLU is multiplied out as ``m z`` with a symbol m for its side of the kink (0 or 1), so one
polynomial stands for every activation pattern. An odd activation is ``p z + q z^3 + r z^5`` with
symbols p, q, r, which give any value, slope and curvature at a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any, Literal

import sympy as sp

Expr = Any
#: A parameter's place: its tensor's name and its indices.
Key = tuple[Any, ...]

INPUTS = sp.symbols("x0 x1")


@dataclass(frozen=True)
class Network:
    """A perceptron as polynomials in its parameters.

    Attributes:
        sizes: Inputs, hidden widths, outputs.
        slopes: One symbol (or, for odd activations, three) per hidden unit and layer.
        activation: What stands between the layers.
        statistics: For eval-mode BatchNorm, per hidden layer the means and the reciprocal
            deviations ``1 / sqrt(v + eps)``.
        prefix: What the parameters' symbols begin with.
    """

    sizes: tuple[int, ...]
    slopes: tuple[tuple[Expr, ...], ...]
    activation: Literal["relu", "odd", "identity"] = "relu"
    statistics: tuple[tuple[tuple[Expr, Expr], ...], ...] = ()
    prefix: str = ""
    symbols: Mapping[Key, Expr] = field(init=False)

    def __post_init__(self) -> None:
        made: dict[Key, Expr] = {}
        for number, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            keys: list[Key] = [
                (f"W{number + 1}", s, j) for s in range(fan_out) for j in range(fan_in)
            ]
            keys += [(f"b{number + 1}", s) for s in range(fan_out)]
            if self.statistics and number < len(self.sizes) - 2:
                keys += [(f"{n}{number + 1}", s) for n in ("gamma", "beta") for s in range(fan_out)]
            for key in keys:
                name = self.prefix + "_".join(map(str, key))
                made[key] = sp.Symbol(name)
        object.__setattr__(self, "symbols", made)

    @property
    def depth(self) -> int:
        """Number of weight layers."""
        return len(self.sizes) - 1

    def matrix(self, layer: int) -> list[list[Expr]]:
        """Return the weight matrix of a layer, counted from one."""
        rows, columns = self.sizes[layer], self.sizes[layer - 1]
        return [[self.symbols[f"W{layer}", s, j] for j in range(columns)] for s in range(rows)]

    def folded(self, layer: int) -> tuple[list[list[Expr]], list[Expr]]:
        """Return a layer's weight and bias with the BatchNorm behind it folded in."""
        weight = self.matrix(layer)
        bias = [self.symbols[f"b{layer}", s] for s in range(self.sizes[layer])]
        if not self.statistics or layer == self.depth:
            return weight, bias
        for s, (mean, scale) in enumerate(self.statistics[layer - 1]):
            factor = self.symbols[f"gamma{layer}", s] * scale
            weight[s] = [factor * entry for entry in weight[s]]
            bias[s] = self.symbols[f"beta{layer}", s] + factor * (bias[s] - mean)
        return weight, bias

    @cached_property
    def _forward(self) -> tuple[list[list[Expr]], list[list[Expr]]]:
        return self.run(self.symbols)

    def run(self, at: Mapping[Key, Expr]) -> tuple[list[list[Expr]], list[list[Expr]]]:
        """Return every layer's pre-activations and what each layer reads, at given parameters."""
        values = dict(zip(self.symbols.values(), (at[key] for key in self.symbols), strict=True))
        signal: list[Expr] = list(INPUTS[: self.sizes[0]])
        before, read = [], [signal]
        for layer in range(1, self.depth + 1):
            weight, bias = self.folded(layer)
            z = [
                sp.expand(sp.S(b).xreplace(values) + sum(
                    sp.S(w).xreplace(values) * a for w, a in zip(row, signal, strict=True)
                ))
                for row, b in zip(weight, bias, strict=True)
            ]  # fmt: skip
            before.append(z)
            if layer < self.depth:
                signal = [self._activate(layer, s, entry) for s, entry in enumerate(z)]
                read.append(signal)
        return before, read

    def _activate(self, layer: int, unit: int, z: Expr) -> Expr:
        if self.activation == "identity":
            return z
        slope = self.slopes[layer - 1][unit]
        if self.activation == "relu":
            return sp.expand(slope * z)
        p, q, r = slope
        return sp.expand(p * z + q * z**3 + r * z**5)

    @property
    def logits(self) -> list[Expr]:
        """The outputs as polynomials."""
        return self._forward[0][-1]

    @property
    def preactivations(self) -> list[list[Expr]]:
        """What every hidden layer's activation is applied to."""
        return self._forward[0][:-1]

    @property
    def features(self) -> list[Expr]:
        """What the last layer reads."""
        return self._forward[1][-1]

    @cached_property
    def first(self) -> list[dict[Key, Expr]]:
        """First derivatives of every output."""
        return [
            {key: sp.diff(f, symbol) for key, symbol in self.symbols.items()} for f in self.logits
        ]

    @cached_property
    def second(self) -> list[dict[tuple[Key, Key], Expr]]:
        """Second derivatives of every output, one of each symmetric pair."""
        return [
            {(a, b): sp.diff(slopes[a], self.symbols[b])
             for a, b in combinations_with_replacement(self.symbols, 2)}
            for slopes in self.first
        ]  # fmt: skip

    def entry(self, output: int, a: Key, b: Key) -> Expr:
        """Return one second derivative."""
        table = self.second[output]
        return table[a, b] if (a, b) in table else table[b, a]


def perceptron(
    sizes: Sequence[int],
    *,
    prefix: str = "",
    activation: Literal["relu", "odd", "identity"] = "relu",
    batch_norm: bool = False,
) -> Network:
    """Build a generic network of the given sizes with symbols of its own."""
    hidden = sizes[1:-1]
    slopes = tuple(
        tuple(
            sp.Symbol(f"m{layer}_{s}")
            if activation != "odd"
            else sp.symbols(f"p{layer}_{s} q{layer}_{s} r{layer}_{s}")
            for s in range(width)
        )
        for layer, width in enumerate(hidden, 1)
    )
    statistics = tuple(
        tuple(
            (sp.Symbol(f"mu{layer}_{s}"), sp.Symbol(f"sigma{layer}_{s}", positive=True))
            for s in range(width)
        )
        for layer, width in enumerate(hidden, 1)
    )
    return Network(
        tuple(sizes), slopes, activation, statistics if batch_norm else (), prefix=prefix
    )
