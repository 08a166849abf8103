"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), pre-norm.

Attention is written out with plain operations, so that ``torch.fx`` can trace it and the
symmetry engine can see the products of queries and keys, values and outputs.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from invariance.models._activations import activation_module
from invariance.models._checks import divisible, front, positive
from invariance.models._initialisation import as_dtype, seeded


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        width: Features of a token.
        heads: Heads; each has ``width / heads`` features.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, tokens, width)`` to the same shape."""
        query, key, value = (
            projected.unflatten(2, (self.heads, self.head_width)).transpose(1, 2)
            for projected in (self.query(x), self.key(x), self.value(x))
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_width)
        mixed = scores.softmax(dim=-1) @ value
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to the stream.

    Args:
        width: Features of a token.
        heads: Attention heads.
        hidden: Units of the MLP.
        activation: One of ``ACTIVATIONS``.
    """

    def __init__(self, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](
                linear1=nn.Linear(width, hidden),
                act=activation_module(activation),
                linear2=nn.Linear(hidden, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, tokens, width)`` to the same shape."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Tokens(nn.Module):
    """Cut images into patches, embed each, and add a learned position."""

    def __init__(self, in_channels: int, image_size: int, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((image_size // patch) ** 2, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, channels, size, size)`` to ``(rows, tokens, width)``."""
        tokens: Tensor = self.embed(x).flatten(2).transpose(1, 2)
        return tokens + self.position


class MeanToken(nn.Module):
    """Average over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, tokens, width)`` to ``(rows, width)``."""
        return x.mean(dim=1)


def vit(
    *,
    in_channels: int = 1,
    image_size: int = 28,
    patch: int = 7,
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
    hidden: int = 64,
    n_classes: int = 10,
    activation: str = "gelu",
    flat_input: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a vision transformer that averages its tokens.

    Args:
        in_channels: Channels of an image.
        image_size: Its height and width.
        patch: Height and width of a patch; divides ``image_size``.
        width: Features of a token.
        depth: Transformer blocks.
        heads: Attention heads; divides ``width``.
        hidden: Units of each block's MLP.
        n_classes: Number of classes.
        activation: Of the MLPs, one of ``ACTIVATIONS``: GELU as published, or ReLU.
        flat_input: Whether inputs are flat rows instead of images.
        seed: Seed of torch's default initialisation.
        dtype: Floating-point type; ``None`` for torch's default.

    Returns:
        A module in train mode with children ``tokens``, ``block1`` ..., ``norm``,
        ``mean``, ``linear``.

    Raises:
        ModelError: If a size is not positive, or patches or heads do not divide evenly.
        UsageError: For an unknown activation.

    Example:
        >>> import torch
        >>> vit().eval()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    positive(
        in_channels=in_channels,
        image_size=image_size,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        n_classes=n_classes,
    )
    divisible("image_size", image_size, patch, "patches tile the image")
    divisible("width", width, heads, "heads share the features of a token")
    layers = OrderedDict(front(flat_input, in_channels, image_size))
    with seeded(seed):
        layers["tokens"] = Tokens(in_channels, image_size, patch, width)
        for number in range(1, depth + 1):
            layers[f"block{number}"] = TransformerBlock(width, heads, hidden, activation)
        layers["norm"] = nn.LayerNorm(width)
        layers["mean"] = MeanToken()
        layers["linear"] = nn.Linear(width, n_classes)
    model = nn.Sequential(layers)
    as_dtype(model, dtype)
    return model
