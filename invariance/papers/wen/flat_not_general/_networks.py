"""The four two-layer ReLU networks of the study, as plain PyTorch modules.

None has an output bias. All but ``"plain"`` without bias have a hidden bias:

* ``plain``: ``W_2 relu(W_1 x + b_1)``, with or without ``b_1``.
* ``batch``: hidden unit j times gamma_j over its root mean square on the training set.
* ``layer``: hidden vector over ``max(its norm, floor)``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from invariance.core._errors import UsageError
from invariance.core._rng import generator

ARCHITECTURES = ("plain", "batch", "layer")


class SimplifiedLayerNorm(nn.Module):
    """Divides a vector by its norm, or by a floor where the norm is smaller."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden / max(|hidden|, floor)``, row by row; ``(n, m)`` to ``(n, m)``."""
        square = hidden.square().sum(-1, keepdim=True)
        # Not max(norm, floor): the gradient of the norm at the zero vector is 0 / 0.
        inside = square <= self.floor**2
        norm = torch.where(inside, 1.0, square).sqrt()
        return hidden / torch.where(inside, self.floor, norm)


class BatchNormalised(nn.Module):
    """A two-layer network whose hidden units are divided by their size on the training set.

    The statistics are a function of the weights, recomputed in every call, so that gradients
    and Hessians see them; a unit that is zero on the training set is divided by nothing.
    """

    x_train: Tensor

    def __init__(self, hidden: nn.Linear, output: nn.Linear, x_train: Tensor) -> None:
        super().__init__()
        self.hidden = hidden
        self.scale = nn.Parameter(torch.ones(hidden.out_features, dtype=hidden.weight.dtype))
        self.output = output
        self.register_buffer("x_train", x_train.to(hidden.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, 1)`` outputs for ``(n, d)`` inputs."""
        square = torch.relu(self.hidden(self.x_train)).square().mean(0)
        size = torch.where(square > 0, square, 1.0).sqrt()
        normalised: Tensor = self.scale * torch.relu(self.hidden(x)) / size
        return torch.as_tensor(self.output(normalised))


def build(
    architecture: str,
    *,
    dimension: int,
    width: int,
    bias: bool = True,
    floor: float = 1e-3,
    x_train: Tensor | None = None,
    seed: int = 0,
    init_scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """Build one of the networks with PyTorch's own initial weights.

    Args:
        architecture: ``"plain"``, ``"batch"`` or ``"layer"``.
        dimension: Inputs.
        width: Hidden units.
        bias: Whether the hidden layer has a bias; only ``"plain"`` may do without.
        floor: Smallest norm that ``"layer"`` divides by.
        x_train: ``(n, d)`` training inputs that ``"batch"`` is normalised on.
        seed: Seed of the initial weights, drawn as ``nn.Linear`` does: uniform in
            ``+-1/sqrt(inputs)``.
        init_scale: The first layer is multiplied by this number at the start.
        dtype: Precision.

    Returns:
        The network, ``(n, d)`` to ``(n, 1)``.

    Raises:
        UsageError: If there is no such network.
    """
    if architecture not in ARCHITECTURES or not (bias or architecture == "plain"):
        raise UsageError(
            f"architecture must be one of {ARCHITECTURES}, and only 'plain' comes without a bias. "
            f"Got {architecture!r} with bias={bias}."
        )
    hidden = nn.Linear(dimension, width, bias=bias, dtype=dtype)
    output = nn.Linear(width, 1, bias=False, dtype=dtype)
    rng = generator(seed, "parity", "init")
    with torch.no_grad():
        for parameter, inputs in (*((p, dimension) for p in hidden.parameters()),
                                  (output.weight, width)):  # fmt: skip
            unit = torch.rand(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.copy_((2 * unit - 1) / inputs**0.5)
        for parameter in hidden.parameters():
            parameter.mul_(init_scale)
    if architecture == "batch":
        if x_train is None:
            raise UsageError("architecture 'batch' needs x_train: its statistics come from there.")
        return BatchNormalised(hidden, output, x_train)
    layers: OrderedDict[str, nn.Module] = OrderedDict(hidden=hidden, relu=nn.ReLU())
    if architecture == "layer":
        layers["norm"] = SimplifiedLayerNorm(floor)
    layers["output"] = output
    return nn.Sequential(layers)
