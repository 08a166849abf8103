"""Units that say nothing, or next to nothing: the same labels from other features."""

from __future__ import annotations

import torch
from torch import nn

from invariance.core._rng import generator
from invariance.models import mlp

#: Most units that a network is given.
MOST = 4

#: Outgoing weights, as a share of the last layer's root mean square.
FAINT = 1e-9


def how_many(seed: int) -> int:
    """Draw how many units a network is given: 0 to :data:`MOST`, from its own seed."""
    return int(torch.randint(MOST + 1, (), generator=generator(seed, "units")))


def with_units(model: nn.Module, count: int, seed: int, outgoing: float) -> nn.Module:
    """Return a perceptron whose last hidden layer has ``count`` units more.

    Incoming weights are random, of the size of the others; outgoing weights are random times
    ``outgoing``. Two calls with one seed differ in the outgoing weights alone.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    hidden, last = layers[-2], layers[-1]
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    sizes[-2] += count
    wide = mlp(sizes).to(last.weight).eval()
    parts = [layer for layer in wide.modules() if isinstance(layer, nn.Linear)]
    draw = generator(seed, "directions")

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(last.weight)

    with torch.no_grad():
        for old, new in zip(layers[:-2], parts[:-2], strict=True):
            new.load_state_dict(old.state_dict())
        rows = noise(count, hidden.in_features) * hidden.weight.square().mean().sqrt()
        offsets = noise(count) * hidden.bias.square().mean().sqrt()
        columns = noise(last.out_features, count) * last.weight.square().mean().sqrt()
        parts[-2].weight.copy_(torch.cat([hidden.weight, rows]))
        parts[-2].bias.copy_(torch.cat([hidden.bias, offsets]))
        parts[-1].weight.copy_(torch.cat([last.weight, outgoing * columns], dim=1))
        parts[-1].bias.copy_(last.bias)
    return wide
