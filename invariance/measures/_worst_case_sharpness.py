"""Worst-case sharpness by projected ascent, plain and elementwise adaptive: lower bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._perturbed_loss import PerturbedLoss

Vector = dict[str, Tensor]


@measure(
    # The ball moves along with permutations and signs, and with a logit shift (a translation).
    # Restarts set out along gradients, so that they move along too.
    invariant_under=[Group.PERMUTATION, Group.SIGN_FLIP, Group.LOGIT_SHIFT],
    cost="sampling",
)
def worst_case_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rho: float = 0.05,
    steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Largest rise of the loss found within distance rho: a lower bound on the maximum.

    ``max_{|e| <= rho} L(theta + e) - L(theta)`` by projected gradient ascent. The first start
    takes the step of SAM (see ``sam_sharpness``), so the value is at least that; each restart
    sets out along the gradient on a random half of the rows. Then the step is halved whenever
    the loss does not rise. The maximum itself is not known: other starts may climb higher.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        rho: Radius of the ball.
        steps: Ascent steps from each start.
        restarts: Starts beside the first.
        seed: Seed of the restarts.
        loss: The mean loss.

    Returns:
        The rise; ``detail`` has the ``loss`` itself, the rise reached from each start
        (``rises``) and after the first step from the first (``first_step``).

    Raises:
        MeasureError: A radius that is not positive, or a count out of range.

    Example:
        The worst direction is the gradient's, along which the logits part by ``2 sqrt(2) rho``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> import math
        >>> rise = math.log((1 + math.exp(2 * math.sqrt(2) * 0.05)) / 2)
        >>> abs(float(worst_case_sharpness(model, x, y, rho=0.05)) - rise) < 1e-9
        True
    """
    return _search(model, x, y, rho, steps, restarts, seed, loss, adaptive=False)


@measure(
    # As adaptive_sharpness: in units of the parameters themselves, every positive diagonal map
    # takes gradients, restarts and the ball along.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
        Group.DORMANT_UNITS,
    ],
    cost="sampling",
)
def adaptive_worst_case_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rho: float = 0.05,
    steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Largest rise of the loss found within relative distance rho: a lower bound.

    ``max_{|e / theta| <= rho} L(theta + e) - L(theta)``, the elementwise adaptive sharpness of
    Kwon et al. (2021), by projected ascent as in :func:`worst_case_sharpness`. The first step
    is that of ``adaptive_sharpness``. Biases are scaled like weights, a parameter that is zero
    stays zero, and nothing is added to ``|theta|``.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        rho: Radius of the ball, relative to the parameters.
        steps: Ascent steps from each start.
        restarts: Starts beside the first.
        seed: Seed of the restarts.
        loss: The mean loss.

    Returns:
        The rise; ``detail`` as in :func:`worst_case_sharpness`.

    Raises:
        MeasureError: A radius that is not positive, or a count out of range.

    Example:
        All ``|theta_i|`` are 1, so it is the plain one:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> plain = inv.measures.worst_case_sharpness(model, x, y, rho=0.05)
        >>> abs(float(adaptive_worst_case_sharpness(model, x, y, rho=0.05)) - float(plain)) < 1e-9
        True
    """
    return _search(model, x, y, rho, steps, restarts, seed, loss, adaptive=True)


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rho: float,
    steps: int,
    restarts: int,
    seed: int,
    loss: LossLike,
    *,
    adaptive: bool,
) -> Estimate:
    if not (rho > 0 and math.isfinite(rho)):
        raise MeasureError(f"rho must be positive and finite. Got {rho}.")
    for name, count, least in (("steps", steps, 1), ("restarts", restarts, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise MeasureError(f"{name} must be an integer of at least {least}. Got {count!r}.")
    ball = _Ball(PerturbedLoss(model, x, y, loss), rho, adaptive=adaptive)
    base, own = ball.rise_and_gradient(
        {name: torch.zeros_like(v) for name, v in ball.theta.items()}
    )
    directions = [own]
    draws = generator(seed, "worst case sharpness")
    for _ in range(restarts):
        half = torch.randperm(len(x), generator=draws)[: max(1, len(x) // 2)].to(x.device)
        part = _Ball(
            PerturbedLoss(model, x[half], y[half.to(y.device)], loss), rho, adaptive=adaptive
        )
        zero = {name: torch.zeros_like(v) for name, v in part.theta.items()}
        directions.append(part.rise_and_gradient(zero)[1])
    rises = [0.0]
    first = 0.0
    for number, direction in enumerate(directions):
        trail = _climb(ball, base, direction, rho, steps)
        first = trail[0] if number == 0 else first
        rises.append(max(trail))
    found = max(rises)
    return Estimate(
        found,
        stderr=None,
        exact=False,
        method=f"lower bound: best of {1 + restarts} projected ascents of {steps} steps, "
        f"rho = {rho:g}{', elementwise' if adaptive else ''}"
        + ("" if ball.resolves(found, base) else ", a rise within the round-off of the loss"),
        detail={"loss": base, "rises": tuple(rises[1:]), "first_step": first},
    )


class _Ball:
    """The loss as a function of ``v``, with parameters ``theta + scale * v`` and ``|v| <= rho``.

    ``scale`` is 1, or ``theta`` itself with its sign: the ball is that of ``|theta|``, and a
    sign flip takes v to itself.
    """

    def __init__(self, objective: PerturbedLoss, rho: float, *, adaptive: bool) -> None:
        self.theta = objective.theta
        self.rho = rho
        self.resolves = objective.resolves
        self._objective = objective
        self._scale = {
            name: value if adaptive else torch.ones_like(value)
            for name, value in self.theta.items()
        }

    def rise_and_gradient(self, v: Vector) -> tuple[float, Vector]:
        """Return the loss at ``v`` and its gradient in ``v``."""
        step = {name: self._scale[name] * part for name, part in v.items()}
        value, gradient = self._objective.gradient(self._objective.moved(step))
        return value, {name: self._scale[name] * part for name, part in gradient.items()}

    def step(self, v: Vector, direction: Vector, length: float) -> Vector | None:
        """Return ``v`` moved by ``length`` along ``direction`` and projected onto the ball."""
        size = _norm(direction)
        if not (size > 0 and math.isfinite(size)):
            return None
        moved = {name: part + (length / size) * direction[name] for name, part in v.items()}
        away = _norm(moved)
        return moved if away <= self.rho else {k: (self.rho / away) * p for k, p in moved.items()}


def _climb(ball: _Ball, base: float, direction: Vector, rho: float, steps: int) -> list[float]:
    """Climb from the centre, the whole radius first; return the rise at every point visited."""
    center = {name: torch.zeros_like(value) for name, value in ball.theta.items()}
    at = ball.step(center, direction, rho)
    if at is None:
        return [0.0]
    value, gradient = ball.rise_and_gradient(at)
    trail, length = [value - base], rho
    for _ in range(steps - 1):
        candidate = ball.step(at, gradient, length)
        if candidate is None:
            break
        found, slope = ball.rise_and_gradient(candidate)
        trail.append(found - base)
        if found > value:
            at, value, gradient = candidate, found, slope
        else:
            length /= 2
    return trail


def _norm(v: Vector) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in v.values()))
