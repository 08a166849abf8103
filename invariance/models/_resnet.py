"""Residual networks for small images (He et al. 2016, arXiv 1512.03385)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invariance.core._errors import ModelError
from invariance.models._activations import activation_module
from invariance.models._checks import front, positive, positives
from invariance.models._initialisation import as_dtype, seeded


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut.

    The shortcut is the identity, or a 1x1 convolution with BatchNorm ("projection")
    where the width or the resolution changes.

    Args:
        fan_in: Channels that come in.
        width: Channels that go out.
        stride: 2 to halve the resolution.
        activation: One of ``ACTIVATIONS``.
    """

    def __init__(self, fan_in: int, width: int, *, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = activation_module(activation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != width:
            self.shortcut = nn.Sequential(
                OrderedDict[str, nn.Module](
                    conv=nn.Conv2d(fan_in, width, 1, stride=stride, bias=False),
                    norm=nn.BatchNorm2d(width),
                )
            )
        self.act2 = activation_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, fan_in, h, w)`` to ``(rows, width, h / stride, w / stride)``."""
        branch = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        out: Tensor = self.act2(branch + self.shortcut(x))
        return out


def resnet(
    *,
    in_channels: int = 3,
    image_size: int = 32,
    widths: Sequence[int] = (8, 16),
    blocks: Sequence[int] = (1, 1),
    n_classes: int = 10,
    activation: str = "relu",
    flat_input: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a residual network with a 3x3 stem, for 28x28 or 32x32 images.

    Args:
        in_channels: Channels of an image.
        image_size: Its height and width; only ``flat_input`` needs it to be right.
        widths: Channels of each stage; every stage but the first halves the resolution.
        blocks: Blocks of each stage.
        n_classes: Number of classes.
        activation: One of ``ACTIVATIONS``.
        flat_input: Whether inputs are flat rows instead of images.
        seed: Seed of torch's default initialisation.
        dtype: Floating-point type; ``None`` for torch's default.

    Returns:
        A module in train mode with children ``stem``, ``stage1`` ..., ``pool``,
        ``flatten``, ``linear``.

    Raises:
        ModelError: If a size is not positive, or ``blocks`` and ``widths`` differ in length.
        UsageError: For an unknown activation.

    Example:
        >>> import torch
        >>> resnet().eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    channels, counts = positives("widths", widths), positives("blocks", blocks)
    positive(in_channels=in_channels, image_size=image_size, n_classes=n_classes)
    if len(channels) != len(counts):
        raise ModelError(
            f"widths and blocks must name the same stages. Got {len(channels)} widths "
            f"{channels} and {len(counts)} block counts {counts}."
        )
    layers = OrderedDict(front(flat_input, in_channels, image_size))
    with seeded(seed):
        layers["stem"] = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv=nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False),
                norm=nn.BatchNorm2d(channels[0]),
                act=activation_module(activation),
            )
        )
        fan_in = channels[0]
        for stage, (width, count) in enumerate(zip(channels, counts, strict=True), 1):
            chain: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(1, count + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                chain[f"block{number}"] = BasicBlock(
                    fan_in, width, stride=stride, activation=activation
                )
                fan_in = width
            layers[f"stage{stage}"] = nn.Sequential(chain)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(fan_in, n_classes)
    model = nn.Sequential(layers)
    as_dtype(model, dtype)
    return model


def resnet18(
    *,
    in_channels: int = 3,
    image_size: int = 32,
    n_classes: int = 10,
    flat_input: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build :func:`resnet` in the size of ResNet-18: 11.2 million parameters, 8 blocks.

    Args:
        in_channels: Channels of an image.
        image_size: Its height and width.
        n_classes: Number of classes.
        flat_input: Whether inputs are flat rows instead of images.
        seed: Seed of torch's default initialisation.
        dtype: Floating-point type; ``None`` for torch's default.

    Returns:
        A module in train mode.

    Example:
        >>> model = resnet18(in_channels=3, n_classes=10)
        >>> sum(p.numel() for p in model.parameters())  # ResNet-18 with a 3 x 3 stem
        11173962
    """
    return resnet(
        in_channels=in_channels,
        image_size=image_size,
        widths=(64, 128, 256, 512),
        blocks=(2, 2, 2, 2),
        n_classes=n_classes,
        flat_input=flat_input,
        seed=seed,
        dtype=dtype,
    )
