"""Accuracy under adversarial perturbations of the inputs: FGSM and PGD."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._errors import DataError, MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._modules import model_device
from invariance.core._rng import generator
from invariance.outcomes._outputs import check_labels, check_logits
from invariance.weakness.patterns._activation_layers import require_eval
from invariance.weakness.patterns._patterns import as_rows

ATTACKS = ("fgsm", "pgd")

Attack = Literal["fgsm", "pgd"]

_BATCH = 1024


def adversarial_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 0.1,
    attack: Attack = "fgsm",
    steps: int = 10,
    seed: int = 0,
) -> Estimate:
    """Share of rows that stay right under an attack in the max-norm ball of radius epsilon.

    ``"fgsm"``: one step of length epsilon along the sign of the loss's gradient (Goodfellow,
    Shlens & Szegedy 2015). ``"pgd"``: ``steps`` steps of length ``2.5 epsilon / steps`` from
    a random start, projected onto the ball (Madry et al. 2018). A row counts as right if it is
    right at the input itself and at every point that the attack visits, so the value is an
    upper bound on the true robust accuracy. Perturbed inputs are clipped to [0, 1].

    Args:
        model: A module in eval mode that returns ``(n, K)`` logits; left as it is.
        x: ``(n, ...)`` inputs in [0, 1].
        y: ``(n,)`` labels.
        epsilon: Radius of the ball; 0 gives the plain accuracy.
        attack: ``"fgsm"`` or ``"pgd"``.
        steps: Steps of PGD.
        seed: Seed of PGD's start, which depends on the row and not on the network.

    Returns:
        The share; ``detail["clean"]`` is that without a perturbation.

    Raises:
        MeasureError: If an option is out of range, or the model does not classify.
        UsageError: For an unknown attack.
        DataError: If inputs are outside [0, 1], or labels do not match.

    Example:
        A classifier of the first pixel's sign of ``x - 1/2``: points within epsilon of 1/2 fall.

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(1, 2).eval()
        >>> state = {"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.tensor([0.5, -0.5])}
        >>> _ = model.load_state_dict(state)
        >>> x, y = torch.tensor([[0.1], [0.45], [0.55], [0.9]]), torch.tensor([0, 0, 1, 1])
        >>> float(adversarial_accuracy(model, x, y, epsilon=0.1))
        0.5
    """
    if attack not in ATTACKS:
        raise unknown_name("attack", attack, ATTACKS)
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise MeasureError(f"epsilon must be finite and not negative. Got {epsilon}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MeasureError(f"steps must be a positive integer. Got {steps!r}.")
    require_eval(model)
    rows, device = as_rows(model, x, "x"), model_device(model)
    if not rows.is_floating_point():
        raise DataError(f"x must be floating point, so that it can be perturbed. Got {x.dtype}.")
    low, high = (float(end) for end in torch.aminmax(rows)) if rows.numel() else (0.0, 0.0)
    if low < 0 or high > 1:
        raise DataError(f"x must lie in [0, 1], where the attack stays. Got [{low:g}, {high:g}].")
    if attack == "pgd":
        draws = generator(seed, "pgd")
        noise = torch.rand(rows.shape, generator=draws, dtype=torch.float64)
        start = (rows + epsilon * (2 * noise - 1).to(rows)).clamp(0, 1)
        count, length = steps, 2.5 * epsilon / steps
    else:
        start, count, length = rows, 1, epsilon
    robust, clean = 0, 0
    labels = y
    for first in range(0, len(rows), _BATCH):
        part = slice(first, first + _BATCH)
        center = rows[part].to(device)
        logits = _read(model, center)
        if first == 0:
            labels = check_labels(y, len(rows), logits.shape[1]).to(device)
        right = logits.argmax(1) == labels[part]
        clean += int(right.sum())
        at = start[part].to(device)
        for _ in range(count):
            gradient, logits = _gradient(model, at, labels[part])
            right &= logits.argmax(1) == labels[part]
            moved = at + length * _sign(gradient)
            at = moved.clamp(center - epsilon, center + epsilon).clamp(0, 1)
        right &= _read(model, at).argmax(1) == labels[part]
        robust += int(right.sum())
    return Estimate(
        robust / len(rows),
        method=f"{attack}, epsilon = {epsilon:g}{f', {steps} steps' if attack == 'pgd' else ''}; "
        "an upper bound on robust accuracy",
        detail={"clean": clean / len(rows)},
    )


def _read(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad(), reading(model, batch):
        return check_logits(run(model, batch), len(batch))


def _gradient(model: nn.Module, at: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the loss in the inputs, and the logits."""
    leaf = at.detach().clone().requires_grad_()
    with torch.enable_grad(), reading(model, leaf):
        logits = check_logits(run(model, leaf), len(leaf))
        # The sum and not the mean: rows do not shrink each other's gradients.
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, logits.detach()


def _sign(gradient: Tensor) -> Tensor:
    """Sign of each entry, 0 where the entry is round-off beside the row's largest.

    An exact zero must stay one in every parametrisation of the function, where other
    round-off would give it an arbitrary sign.
    """
    top = gradient.flatten(1).abs().amax(1)
    floor = 64 * torch.finfo(gradient.dtype).eps * top
    shape = (-1, *[1] * (gradient.ndim - 1))
    return torch.where(gradient.abs() > floor.view(shape), gradient.sign(), 0.0)
