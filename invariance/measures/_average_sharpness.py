"""Average-case sharpness: the expected rise of the loss under Gaussian noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.curvature.estimates._interval import standard_error
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._perturbed_loss import PerturbedLoss


@measure(invariant_under=[Group.LOGIT_SHIFT], cost="sampling", streams=True)
def gaussian_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float = 0.01,
    samples: int = 100,
    seed: int = 0,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Expected rise of the loss under noise of standard deviation sigma on every parameter.

    ``E L(theta + sigma e) - L(theta)``, to second order ``sigma^2 Tr H / 2``. Noise is drawn
    in antithetic pairs, so that the gradient's share cancels exactly. A permutation or sign
    flip keeps the expectation, and not this estimate of it, whose noise belongs to places.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        sigma: Standard deviation of the noise.
        samples: How many antithetic pairs.
        seed: Seed of the noise.
        loss: The mean loss.

    Returns:
        The estimate with its standard error.

    Raises:
        MeasureError: A sigma that is not positive, or fewer than 2 samples.

    Example:
        For small sigma it is ``sigma^2 / 2`` times the trace, here 2, up to its standard error:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = gaussian_sharpness(model, x, y, sigma=0.01, samples=1000)
        >>> abs(float(found) - 0.01**2) < 5 * found.stderr, found.exact
        (True, False)
    """
    return _average(model, x, y, sigma, samples, seed, loss, adaptive=False)


@measure(
    # Noise in units of each parameter: with the same draws, a positive diagonal map takes one
    # network's perturbed copies to the other's, exactly. A sign flip meets the mirrored draw
    # only entry by entry, theta_i (1 + sigma e_i), which is the same copy again.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.SIGN_FLIP,
        Group.BATCHNORM_SCALING,
    ],
    cost="sampling",
    streams=True,
)
def adaptive_gaussian_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float = 0.01,
    samples: int = 100,
    seed: int = 0,
    loss: LossLike = "cross_entropy",
) -> Estimate:
    """Expected rise of the loss under noise relative to every parameter.

    ``E L(theta (1 + sigma e)) - L(theta)``, to second order
    ``sigma^2 sum_i theta_i^2 H_ii / 2`` (see ``adaptive_trace``). A permutation or a dormant
    unit keeps the expectation, and not this estimate of it, whose noise belongs to places.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        sigma: Standard deviation of the relative noise.
        samples: How many antithetic pairs.
        seed: Seed of the noise.
        loss: The mean loss.

    Returns:
        The estimate with its standard error.

    Raises:
        MeasureError: A sigma that is not positive, or fewer than 2 samples.

    Example:
        All ``|theta_i|`` are 1, so it is the plain one, ``sigma^2`` here:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> found = adaptive_gaussian_sharpness(model, x, y, sigma=0.01, samples=1000)
        >>> abs(float(found) - 0.01**2) < 5 * found.stderr
        True
    """
    return _average(model, x, y, sigma, samples, seed, loss, adaptive=True)


def _average(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    sigma: float,
    samples: int,
    seed: int,
    loss: LossLike,
    *,
    adaptive: bool,
) -> Estimate:
    if not (sigma > 0 and math.isfinite(sigma)):
        raise MeasureError(f"sigma must be positive and finite. Got {sigma}.")
    if samples < 2:
        raise MeasureError(f"A standard error needs at least 2 samples. Got {samples}.")
    objective = PerturbedLoss(model, x, y, loss)
    base = objective.value(objective.theta)
    draws = generator(seed, "sharpness")
    rises = []
    for _ in range(samples):
        noise = {
            name: sigma
            * torch.randn(value.shape, generator=draws, dtype=torch.float64).to(value)
            * (value if adaptive else 1.0)
            for name, value in objective.theta.items()
        }
        pair = [
            objective.value(objective.moved({name: sign * part for name, part in noise.items()}))
            for sign in (1.0, -1.0)
        ]
        rises.append((pair[0] + pair[1]) / 2 - base)
    found = torch.tensor(rises, dtype=torch.float64)
    return Estimate(
        float(found.mean()),
        # Round-off is common to all samples, so their spread does not show it.
        stderr=max(float(standard_error(found)), objective.eps * abs(base)),
        exact=False,
        method=f"{samples} antithetic pairs of {'relative ' if adaptive else ''}Gaussian noise",
        detail={"loss": base},
    )
