"""Plain convolutional networks: a small CNN and VGG, as ``nn.Sequential`` modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from invariance.models._activations import activation_module
from invariance.models._checks import front, positive, positives
from invariance.models._initialisation import as_dtype, seeded


def cnn(
    *,
    in_channels: int = 1,
    image_size: int = 28,
    widths: Sequence[int] = (8, 16),
    hidden: int = 32,
    n_classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    flat_input: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a small CNN: 3x3 convolutions, each halved by max-pooling, and two linear layers.

    Args:
        in_channels: Channels of an image.
        image_size: Its height and width.
        widths: Channels of each convolution.
        hidden: Units of the hidden linear layer.
        n_classes: Number of classes.
        activation: One of ``ACTIVATIONS``.
        batch_norm: Whether a BatchNorm follows every convolution.
        flat_input: Whether inputs are flat rows, as tasks hold them, instead of images.
        seed: Seed of torch's default initialisation.
        dtype: Floating-point type; ``None`` for torch's default.

    Returns:
        A module in train mode.

    Raises:
        ModelError: If a size is not positive, or the image vanishes under pooling.
        UsageError: For an unknown activation.

    Example:
        >>> import torch
        >>> cnn().eval()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    channels = positives("widths", widths)
    positive(in_channels=in_channels, image_size=image_size, hidden=hidden, n_classes=n_classes)
    size = image_size // 2 ** len(channels)
    positive(**{f"image_size // 2^{len(channels)} (one halving a width)": size})
    layers = OrderedDict(front(flat_input, in_channels, image_size))
    with seeded(seed):
        fan_in = in_channels
        for number, width in enumerate(channels, 1):
            layers[f"conv{number}"] = nn.Conv2d(fan_in, width, 3, padding=1)
            if batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"act{number}"] = activation_module(activation)
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            fan_in = width
        layers["flatten"] = nn.Flatten()
        layers["linear1"] = nn.Linear(fan_in * size * size, hidden)
        layers[f"act{len(channels) + 1}"] = activation_module(activation)
        layers["linear2"] = nn.Linear(hidden, n_classes)
        model = nn.Sequential(layers)
    as_dtype(model, dtype)
    return model


def vgg(
    *,
    in_channels: int = 3,
    image_size: int = 32,
    stages: Sequence[Sequence[int]] = ((16,), (32,), (64, 64)),
    hidden: int = 64,
    n_classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = True,
    flat_input: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a VGG (Simonyan & Zisserman 2015, arXiv 1409.1556): stages of 3x3 convolutions.

    Args:
        in_channels: Channels of an image.
        image_size: Its height and width.
        stages: Channels of each convolution, by stage; a max-pool ends a stage. VGG-11
            is ``((64,), (128,), (256, 256), (512, 512), (512, 512))``.
        hidden: Units of the hidden linear layer.
        n_classes: Number of classes.
        activation: One of ``ACTIVATIONS``.
        batch_norm: Whether a BatchNorm follows every convolution.
        flat_input: Whether inputs are flat rows instead of images.
        seed: Seed of torch's default initialisation.
        dtype: Floating-point type; ``None`` for torch's default.

    Returns:
        A module in train mode with children ``features`` and ``classifier``.

    Raises:
        ModelError: If a size is not positive, or does not halve evenly at every stage.
        UsageError: For an unknown activation.

    Example:
        >>> import torch
        >>> vgg().eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    blocks = [positives("stages", stage) for stage in stages]
    positive(
        in_channels=in_channels,
        image_size=image_size,
        hidden=hidden,
        n_classes=n_classes,
        stages=len(blocks),
    )
    size = image_size // 2 ** len(blocks)
    positive(**{f"image_size // 2^{len(blocks)} (one halving a stage)": size})
    features: OrderedDict[str, nn.Module] = OrderedDict()
    with seeded(seed):
        fan_in = in_channels
        for stage, widths in enumerate(blocks, 1):
            for number, width in enumerate(widths, 1):
                features[f"conv{stage}_{number}"] = nn.Conv2d(fan_in, width, 3, padding=1)
                if batch_norm:
                    features[f"norm{stage}_{number}"] = nn.BatchNorm2d(width)
                features[f"act{stage}_{number}"] = activation_module(activation)
                fan_in = width
            features[f"pool{stage}"] = nn.MaxPool2d(2)
        classifier = OrderedDict[str, nn.Module](
            linear1=nn.Linear(fan_in * size * size, hidden),
            act1=activation_module(activation),
            linear2=nn.Linear(hidden, n_classes),
        )
    layers = OrderedDict(front(flat_input, in_channels, image_size))
    layers["features"] = nn.Sequential(features)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Sequential(classifier)
    model = nn.Sequential(layers)
    as_dtype(model, dtype)
    return model
