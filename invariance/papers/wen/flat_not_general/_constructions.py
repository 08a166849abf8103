r"""Memorising and generalising networks in closed form, and the least trace that they attain.

Write x' for x with the bias' constant feature, F for its length, so ``|x'|^2 = F`` on the cube.
For an interpolating network ``Tr H = (2/n) sum_i |grad f_i|^2`` (`sharpness`).

**Without normalisation.** Let h be the hidden vector of sample i, a the readouts of the units
active there. Then ``|grad f|^2 = |h|^2 + F |a|^2 >= 2 sqrt(F) |h| |a| >= 2 sqrt(F) |h.a| =
2 sqrt(F) |y|``: the inequality of the means, then Cauchy-Schwarz. Hence

    Tr H >= 4 sqrt(F),    with equality iff  h = sqrt(F) y a  on every sample:

each unit reads one class, and is constant where it is active. A unit ``r relu(z)``, z an
integer that is 1 or at most 0, read with ``+-1/r``, attains it for ``r = F^(1/4)``. With a
bias ``z = x_i.x + 1 - d`` is 1 on x_i and at most -1 on the rest of the cube (memoriser: one unit
a sample), and ``z = c_1 x_1 + c_2 x_2 - 1`` is 1 on one quadrant and at most -1 elsewhere
(generaliser: four units). Without a bias ``z = (c_1 x_1 + c_2 x_2) / 2`` is 1, 0 or -1: the
generaliser attains the bound too, but every training point lies on the kink of two units, so
the bound is met only with the derivative 0 there, as in all automatic differentiation. A unit
without bias that isolates x_i exists iff x_i is outside the cone of the other samples.

**Simplified LayerNorm.** Above the floor, ``|grad f|^2 >= |h|^2 / N^2 = 1`` from the readout
alone; below, ``(|h|^2 + F |a|^2) / floor^2 >= 2 sqrt(F) |y| / floor`` as before. Hence

    Tr H >= 2 min(1, 2 sqrt(F) / floor),

which is 2 for ``floor <= 2 sqrt(F)``. Where a single unit is active the normalised hidden
vector is constant, so both networks attain 2, whatever r > floor.

**Simplified BatchNorm.** Hidden units have mean square 1 over the training set, so the
derivatives in readouts a and scales g alone give ``(2/n) sum_i |grad f_i|^2 >= 2 (|a|^2 + |g|^2)
>= 4 sum_j |a_j g_j|``. A unit that is constant on a share p of the samples and silent elsewhere
has the value ``p^(-1/2)`` there, hence ``|a_j g_j| = sqrt(p)``. The memoriser attains ``4 sqrt(n)``
exactly (on its one sample the derivative in the weights vanishes); the generaliser tends to
``4 sum_q sqrt(p_q) <= 8`` as its first layer grows. On a training set that is a product of the
four quadrants and a set of rests, ``sum |a_j g_j| >= 2``, so the infimum is 8 there: samples of
one rest have pre-activations b + u, b + v, b - v, b - u, for which ``|sum_t y_t relu_t|`` is at
most the root of ``sum_t relu_t^2``; now sum ``y_i f_i = 1`` over i and use Cauchy-Schwarz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import sympy
import torch
from torch import Tensor, nn

from invariance.core._errors import UsageError
from invariance.papers.wen.flat_not_general._networks import BatchNormalised, build

ConstructionKind = Literal["memoriser", "generaliser"]


@dataclass(frozen=True)
class Construction:
    """A network as integers and one real factor.

    Attributes:
        kind: ``"memoriser"`` or ``"generaliser"``.
        architecture: ``"plain"``, ``"batch"`` or ``"layer"``.
        bias: Whether the last column of ``directions`` is a bias.
        directions: ``(m, F)`` integers; pre-activations are ``r * directions @ x' / divisor``.
        divisor: 1, or 2 without a bias.
        signs: ``(m,)`` sign of each readout.
    """

    kind: ConstructionKind
    architecture: str
    bias: bool
    directions: Tensor
    divisor: int
    signs: Tensor

    def levels(self, x: Tensor) -> Tensor:
        """Return ``relu(directions @ x')`` as exact integers, ``(n, m)``."""
        x = x.round().to(torch.int64)
        if self.bias:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return (x @ self.directions.T).clamp(min=0)

    def outputs_are(self, x: Tensor, y: Tensor) -> bool:
        """Say whether every output is ``y``, in integers.

        Without normalisation the factor r cancels: ``f = sum_j signs_j level_j / divisor``.
        With it, one unit is active on each sample, and its normalised value is 1.
        """
        levels = self.levels(x)
        if self.architecture != "plain":
            one = bool(((levels > 0).sum(1) == 1).all()) and bool((levels <= 1).all())
            return one and bool((levels @ self.signs == y.round().to(torch.int64)).all())
        return bool((levels @ self.signs == self.divisor * y.round().to(torch.int64)).all())


def construct(
    kind: ConstructionKind, x: Tensor, y: Tensor, *, architecture: str, bias: bool
) -> Construction:
    """Write a network down for a training set.

    Args:
        kind: Which.
        x: ``(n, d)`` distinct training inputs, -1 or 1.
        y: ``(n,)`` labels, -1 or 1.
        architecture: ``"plain"``, ``"batch"`` or ``"layer"``.
        bias: Whether hidden units have a bias.

    Returns:
        The construction.

    Raises:
        UsageError: For a memoriser without a bias: see :func:`isolable`.
    """
    d = x.shape[1]
    if kind == "memoriser":
        if not bias:
            raise UsageError(
                "Without a bias no unit isolates a point that lies in the cone of the others. "
                "Ask for the generaliser, or for a hidden bias."
            )
        directions = torch.cat([x, torch.full_like(x[:, :1], 1 - d)], 1)
        signs = y
    else:
        quadrants = torch.tensor(list(product((1, -1), repeat=2)))
        directions = torch.zeros(4, d + bias)
        directions[:, :2] = quadrants
        if bias:
            directions[:, -1] = -1
        signs = quadrants.prod(1)
    integers = directions.round().to(torch.int64)
    return Construction(
        kind, architecture, bias, integers, 1 if bias else 2, signs.round().to(torch.int64)
    )


def realise(
    made: Construction,
    x_train: Tensor,
    *,
    width: int | None = None,
    size: float | None = None,
    floor: float = 1e-3,
) -> nn.Module:
    """Make the construction a float64 network.

    Args:
        made: The construction.
        x_train: ``(n, d)`` training inputs.
        width: Hidden units; the rest have weights 0 and bias -1 (0 without a bias).
        size: Factor r of the first layer; the flattest by default, 1e4 with BatchNorm, whose
            infimum is at infinity.
        floor: Of the simplified LayerNorm.

    Returns:
        The network.
    """
    units, features = made.directions.shape
    flattest = {"plain": features**0.25, "layer": 2 * floor, "batch": 1e4}
    r = flattest[made.architecture] if size is None else size
    model = build(
        made.architecture,
        dimension=x_train.shape[1],
        width=units if width is None else width,
        bias=made.bias,
        floor=floor,
        x_train=x_train,
    )
    hidden, output = model.get_submodule("hidden"), model.get_submodule("output")
    assert isinstance(hidden, nn.Linear)
    first = made.directions.double() * (r / made.divisor)
    share = (made.levels(x_train) > 0).double().mean(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        hidden.weight[:units] = first[:, : hidden.in_features]
        if hidden.bias is not None:
            hidden.bias.fill_(-1.0)
            hidden.bias[:units] = first[:, -1]
        by = {"plain": torch.full_like(share, 1 / r), "layer": torch.ones_like(share)}
        if isinstance(model, BatchNormalised):
            model.scale[:units] = share**0.25
            by["batch"] = share**0.25
        torch.as_tensor(output.weight)[0, :units] = made.signs.double() * by[made.architecture]
    return model.eval()


def minimum_trace(architecture: str, *, features: int, floor: float = 1e-3) -> sympy.Expr:
    """Return the lower bound of the trace over interpolating networks, exactly.

    Args:
        architecture: ``"plain"``, ``"layer"``, or ``"batch"`` (on a complete training set).
        features: F, inputs plus one for a bias.
        floor: Of the simplified LayerNorm.

    Returns:
        ``4 sqrt(F)``, ``2 min(1, 2 sqrt(F)/floor)``, or 8.
    """
    if architecture == "plain":
        return 4 * sympy.sqrt(features)
    if architecture == "layer":
        return sympy.Min(2, 4 * sympy.sqrt(features) / sympy.nsimplify(floor))
    return sympy.Integer(8)


def exact_trace(made: Construction, x: Tensor) -> sympy.Expr:
    """Return the trace of the Hessian on an interpolated training set, without rounding.

    Args:
        made: A construction of architecture ``"plain"`` or ``"layer"``.
        x: ``(n, d)`` training inputs.

    Returns:
        With ``r = F^(1/4)`` and integer levels, ``(2/n) sum_ij (r^2 level^2 / divisor^2 + F/r^2
        [level > 0])``; 2 with the LayerNorm, where one unit a sample is active.
    """
    levels, n, features = made.levels(x), len(x), made.directions.shape[1]
    if made.architecture == "layer":
        one = bool(((levels > 0).sum(1) == 1).all())
        return sympy.Integer(2) if one else sympy.nan
    square = sympy.sqrt(features)  # r^2
    total = sympy.Rational(int(levels.square().sum()), made.divisor**2) * square
    total += int((levels > 0).sum()) * features / square
    return sympy.nsimplify(sympy.simplify(2 * total / n))


def isolable(x: Tensor, *, bias: bool) -> list[bool]:
    """Say for each point whether some unit is active on it and on no other point.

    Args:
        x: ``(n, d)`` points.
        bias: Whether the unit may have a bias.

    Returns:
        One flag a point, from a linear program each: is there w with ``w.x_i = 1`` and
        ``w.x_k <= 0`` for all other k?
    """
    from scipy.optimize import linprog

    points = x.double()
    if bias:
        points = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    rows = points.numpy()
    flags = []
    for i in range(len(rows)):
        others = rows[[k for k in range(len(rows)) if k != i]]
        found = linprog(
            [0.0] * rows.shape[1],
            A_ub=others,
            b_ub=[0.0] * len(others),
            A_eq=rows[i : i + 1],
            b_eq=[1.0],
            bounds=(None, None),
            method="highs",
        )
        if found.status not in (0, 2):
            raise ArithmeticError(f"The linear program of point {i} ended with: {found.message}")
        flags.append(found.status == 0)
    return flags


def batch_norm_limit(shares: Tensor) -> float:
    """Return ``4 sum_q sqrt(p_q)``, the trace that units with shares p_q tend to.

    Shapes: ``shares (m,)``.
    """
    return 4 * sum(math.sqrt(p) for p in shares.tolist())
