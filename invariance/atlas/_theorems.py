"""Theorems about single measures, each checked by algebra when it is asked for.

A theorem is a function that yields its lines for the board; every equation among them has been
checked by sympy before its line is written, and a false one raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sympy as sp

from invariance.atlas.symbolic._networks import Expr, perceptron
from invariance.core._errors import InvarianceError


class FalseTheoremError(InvarianceError, AssertionError):
    """An equation of a derivation that does not hold."""


@dataclass(frozen=True)
class Theorem:
    """A statement with its derivation.

    Attributes:
        name: Its title.
        measures: The measures that it is about.
        lines: Yields the derivation, checking each equation.
    """

    name: str
    measures: tuple[str, ...]
    lines: Callable[[], Iterator[str]]

    def board(self) -> list[str]:
        """Return the derivation's lines; every equation is checked on the way."""
        return list(self.lines())


def _equal(left: Expr, right: Expr, what: str) -> None:
    if sp.simplify(sp.expand(left - right)) != 0:
        raise FalseTheoremError(f"{what}: {left} is not {right}.")


def _trace_along_an_axis() -> Iterator[str]:
    a, A, B, C = sp.symbols("a A B C", positive=True)
    trace = A / a**2 + C + B * a**2
    best = (A / B) ** sp.Rational(1, 4)
    yield "Scale a hidden layer by a: H -> D^-1 H D^-1, so each block's trace is divided by its"
    yield "factor squared: the layer's own blocks (A) by a^2, the next weight's block (B) by a^-2,"
    yield "the rest (C) not at all:  Tr H(a) = A/a^2 + C + B a^2."
    _equal(sp.diff(trace, a).subs(a, best), 0, "stationary point")
    yield "Minimum: d/da = -2A/a^3 + 2B a = 0 at a* = (A/B)^(1/4)."
    second = sp.diff(trace.subs(a, sp.exp(sp.Symbol("u", real=True))), sp.Symbol("u", real=True), 2)
    u = sp.Symbol("u", real=True)
    _equal(second, 4 * A * sp.exp(-2 * u) + 4 * B * sp.exp(2 * u), "convexity in log a")
    yield "In u = log a the second derivative is 4A e^-2u + 4B e^2u > 0: convex, one minimum."
    _equal(trace.subs(a, best), C + 2 * sp.sqrt(A * B), "least value")
    yield "Least value C + 2 sqrt(A B)."
    if sp.limit(trace, a, sp.oo) != sp.oo or sp.limit(trace, a, 0, "+") != sp.oo:
        raise FalseTheoremError("the trace is bounded")
    yield "No maximum: Tr H(a) -> infinity as a -> 0 and as a -> infinity, with one function."


def _graded_euler() -> Iterator[str]:
    network = perceptron((2, 2, 2, 2))
    for k, f in enumerate(network.logits):
        graded = plain = sp.S.Zero
        for key, symbol in network.symbols.items():
            part = symbol * network.first[k][key]
            weight = int(key[0][1:]) if key[0][0] == "b" else 1
            graded, plain = graded + weight * part, plain + part
        _equal(graded, network.depth * f, "graded Euler identity")
        if sp.expand(plain - network.depth * f) == 0:
            raise FalseTheoremError("the ungraded identity holds")
    yield "f is a sum of paths: one through every weight from an input, or from a bias b_l through"
    yield "the L - l weights above it. theta_i d_i counts how often theta_i stands in a path:"
    yield "    sum_l <W_l, df/dW_l> + sum_l l <b_l, df/db_l> = L f"
    yield "since a path from b_l has L - l weights and the bias counts l times. Without the weights"
    yield "l it is false (checked on a 2-2-2-2 network), so the closed form L^2 E <dl/df, f>^2 is"
    yield "the Fisher-Rao norm only without biases."


def _batchnorm_folding() -> Iterator[str]:
    g, W, b, mu, v, eps, beta, x, a = sp.symbols("gamma W b mu v eps beta x a", positive=True)
    y = g * (W * x + b - mu) / sp.sqrt(v + eps) + beta
    s = g / sp.sqrt(v + eps)
    _equal(y, s * W * x + beta + s * (b - mu), "folding")
    yield "y = gamma (W x + b - mu)/sqrt(v + eps) + beta = (s W) x + (beta + s (b - mu))"
    yield "with s = gamma/sqrt(v + eps): fold, and put the identity in the BatchNorm's place."
    left = 1 / sp.sqrt(1 + eps)
    if sp.simplify(left - 1) == 0:
        raise FalseTheoremError("a BatchNorm left behind does nothing")
    yield "A BatchNorm of mean 0 and variance 1 left in place still divides by sqrt(1 + eps)."
    w = a**2 * (v + eps) - eps
    _equal(g * (a * W * x + a * b - a * mu) / sp.sqrt(w + eps) + beta, y, "exact scaling")
    yield "Scaling W by a: mu -> a mu and v -> a^2 (v + eps) - eps keep y exactly; v -> a^2 v"
    yield "would change eps to eps/a^2."


def _relative_flatness_columns() -> Iterator[str]:
    phi, w, u = sp.symbols("phi1 phi2"), sp.symbols("w1 w2"), sp.symbols("u1 u2")
    a, t = sp.symbols("a t", positive=True)

    def kappa(features: Expr, first: Expr, second: Expr) -> Expr:
        gap = sum((p - q) ** 2 for p, q in zip(first, second, strict=True))
        return sum(e**2 for e in features) * gap

    before = kappa(phi, w, u)
    _equal(kappa([t * e for e in phi], [e / t for e in w], [e / t for e in u]), before, "uniform")
    yield "Per pair of classes kappa = |phi|^2 |w - u|^2 p_w p_u."
    yield "All columns by one factor: |t phi|^2 |(w - u)/t|^2 is the same. Invariant."
    one = kappa([a * phi[0], phi[1]], [w[0] / a, w[1]], [u[0] / a, u[1]])
    moved = sp.factor(one - before)
    if moved == 0:
        raise FalseTheoremError("single columns do not matter")
    yield "One column by a: the difference after - before factors as"
    yield f"    {moved}"
    yield "which is not zero: (a^2 - 1)(phi_1^2 (w_2-u_2)^2 - phi_2^2 (w_1-u_1)^2 / a^2)."
    claimed = (a**2 - 1) * (
        phi[0] ** 2 * (w[1] - u[1]) ** 2 - phi[1] ** 2 * (w[0] - u[0]) ** 2 / a**2
    )
    _equal(one - before, claimed, "single column")
    yield "Rows: scaling a hidden layer's incoming rows is the uniform case seen from below; the"
    yield "last layer's rows are read through H_ss' and may not be scaled apart."


def _minimum_sharpness_is_convex() -> Iterator[str]:
    u = sp.Symbol("u", real=True)
    T, U = sp.symbols("T U", positive=True)
    value = T * sp.exp(-2 * u) + U * sp.exp(2 * u)
    best = sp.log(T / U) / 4
    _equal(sp.diff(value, u).subs(u, best), 0, "stationary")
    _equal(sp.diff(value, u, 2), 4 * value, "convex")
    yield "Scaling by exp(D u) takes H_ii to H_ii exp(-2 (D u)_i): a sum of exponentials of linear"
    yield "forms with weights H_ii >= 0, hence convex in u; the infimum is a property of the orbit."
    _equal(sp.simplify(value.subs(u, best)), 2 * sp.sqrt(T * U), "two layers")
    yield "One hidden unit of a two-layer net: min_u T e^-2u + U e^2u = 2 sqrt(T U) at"
    yield "u = log(T/U)/4; the units add up: 2 sum_j sqrt(Tr_in,j Tr_out,j)."
    p, q, r = sp.symbols("p q r", positive=True)
    mean = (p * q * r) ** sp.Rational(1, 3)
    factors = [p / mean, q / mean, r / mean]  # each e^(2 u_l); the product is one
    _equal(factors[0] * factors[1] * factors[2], 1, "a member of the group")
    _equal(sum(t / f for t, f in zip((p, q, r), factors, strict=True)), 3 * mean, "layers")
    yield "Layers without biases: at e^(2 u_l) = Tr_l / (prod Tr)^(1/L) all terms are equal (the"
    yield "arithmetic and geometric means meet): L (prod_l Tr H_l)^(1/L)."


def _dinh() -> Iterator[str]:
    a, p, q, r = sp.symbols("alpha p q r", positive=True)
    yield "1. Volume (Dinh et al. 2017, theorem 2). T_a (theta_1, theta_2) = (a theta_1, theta_2/a)"
    yield "   with n_1 and n_2 parameters has |det| = a^(n_1 - n_2); a box of sides e around the"
    scale = sp.Matrix([[a, 0, 0], [0, a, 0], [0, 0, 1 / a]]).det()
    _equal(scale, a, "determinant for n_1 = 2, n_2 = 1")
    yield "   minimum goes to boxes of any volume, and the flat region contains all of their"
    yield "   union: infinite volume epsilon-flatness."
    H = sp.Matrix([[p, r], [r, q]])
    D = sp.diag(a, 1 / a)
    moved = D.inv() * H * D.inv()
    _equal(moved.trace(), p / a**2 + q * a**2, "trace of the scaled Hessian")
    _equal(moved.det(), H.det(), "determinant of the scaled Hessian")
    yield "2. Hessian (theorem 4). H -> D^-1 H D^-1 = [[p/a^2, r], [r, q a^2]]: the trace and the"
    yield "   spectral norm (at least q a^2) grow beyond any bound."
    yield "3. Many large eigenvalues (theorem 5): the determinant of the pair's block stays, so"
    yield "   with several layers all eigenvalues but those of one layer can be made large at once:"
    three = sp.diag(a, a, 1 / a**2)
    _equal(three.det(), 1, "three layers")
    _equal((three.inv() * sp.diag(p, q, r) * three.inv())[2, 2], r * a**4, "third layer")
    yield "   layers times a, a, a^-2 turn diag(p, q, r) into diag(p/a^2, q/a^2, r a^4)."
    k, eta, c2, c3 = sp.symbols("k eta c2 c3")
    loss = c2 * (k * eta) ** 2 / 2 + c3 * (k * eta) ** 3  # L'' = c2 at the minimum 0
    _equal(sp.diff(loss, eta, 2).subs(eta, 0), k**2 * c2, "other coordinates")
    yield "4. Reparametrization (section 5): theta = g(eta) gives L_eta'' = g'^2 L'' at a minimum"
    yield "   (L' = 0), for example k^2 L'' under theta = k eta: any value by choice of g."


def _petzka_average() -> Iterator[str]:
    d = 2
    h = sp.Matrix([[sp.Symbol("h00"), sp.Symbol("h01")], [sp.Symbol("h01"), sp.Symbol("h11")]])
    angle = sp.Symbol("angle", real=True)
    v = sp.Matrix([sp.cos(angle), sp.sin(angle)])
    mean = sp.integrate(sp.expand((v.T * h * v)[0]), (angle, 0, 2 * sp.pi)) / (2 * sp.pi)
    _equal(mean, h.trace() / d, "mean over the circle")
    yield "Petzka et al.'s average: move the features phi -> (I + delta A) phi, A orthogonal and"
    yield "uniform. The loss of the row w rises along A w, a uniform direction of length |w|:"
    yield "    E (A w)^T h (A w) / 2 = |w|^2 E v^T h v / 2 = |w|^2 Tr(h) / (2 d),"
    yield "since the mean of v v^T over the unit sphere is I/d (checked on the circle). The average"
    yield "over feature perturbations is relative flatness over 2 d, to second order."


def _metric_aware() -> Iterator[str]:
    j00, j01, j10, j11 = sp.symbols("j00 j01 j10 j11")
    J = sp.Matrix([[j00, j01], [j10, j11]])
    h00, h01, h11 = sp.symbols("h00 h01 h11")
    g00, g01, g11 = sp.symbols("g00 g01 g11")
    H, G = sp.Matrix([[h00, h01], [h01, h11]]), sp.Matrix([[g00, g01], [g01, g11]])
    new_h, new_g = J.T * H * J, J.T * G * J
    _equal((new_g.inv() * new_h).trace(), (G.inv() * H).trace(), "trace")
    _equal((new_g.inv() * new_h).det(), (G.inv() * H).det(), "determinant")
    yield "Kristiadi et al. (2023): under theta = g(eta), J = dg/deta, at a minimum H -> J^T H J"
    yield "and a metric G -> J^T G J. So G^-1 H -> J^-1 (G^-1 H) J: similar, with one trace,"
    yield "determinant and spectrum, in all coordinates. H alone keeps none of them. Away from a"
    yield "minimum H needs the metric's connection as well."


THEOREMS: tuple[Theorem, ...] = (
    Theorem("Tr H along a rescaling", ("hessian_trace",), _trace_along_an_axis),
    Theorem("graded Euler identity", ("fisher_rao_norm", "fisher_rao_closed_form"), _graded_euler),
    Theorem(
        "BatchNorm folding",
        ("path_norm", "spectral_norm_product", "frobenius_norm_product", "minimum_sharpness"),
        _batchnorm_folding,
    ),
    Theorem(
        "relative flatness and columns",
        ("relative_flatness", "diagonal_relative_flatness"),
        _relative_flatness_columns,
    ),
    Theorem(
        "minimum sharpness is convex",
        ("minimum_sharpness", "layer_minimum_sharpness"),
        _minimum_sharpness_is_convex,
    ),
    Theorem(
        "Dinh et al.'s constructions",
        ("hessian_trace", "hessian_eigenvalues", "worst_case_sharpness"),
        _dinh,
    ),
    Theorem("Petzka et al.'s average", ("relative_flatness",), _petzka_average),
    Theorem(
        "metric-aware quantities",
        ("hessian_trace", "hessian_eigenvalues", "information_geometric_sharpness"),
        _metric_aware,
    ),
)


def theorems_about(measure: str) -> tuple[Theorem, ...]:
    """Return the theorems that mention a measure."""
    return tuple(theorem for theorem in THEOREMS if measure in theorem.measures)
