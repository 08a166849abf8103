"""Small networks of every kind that the transforms' tests run on, in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from invariance.core._rng import generator


class Residual(nn.Module):
    """Two convolutions, BatchNorm, and an identity or a projection shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if width != out or stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.skip(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Residual(4, 4, 1), Residual(4, 6, 2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(hidden.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention written out, with separate or packed projections."""

    def __init__(self, width: int, heads: int, *, packed: bool) -> None:
        super().__init__()
        self.heads, self.packed = heads, packed
        if packed:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        if self.packed:
            parts = self.qkv(x).reshape(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = parts[0], parts[1], parts[2]
        else:
            q, k, v = (
                layer(x).reshape(rows, tokens, self.heads, -1).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, tokens, width)
        return self.out(mixed)


class TorchAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Transformer(nn.Module):
    def __init__(self, attention: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(width, 10), nn.GELU(), nn.Linear(10, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


def mlp(sizes: tuple[int, ...] = (5, 7, 6, 4), activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2), nn.BatchNorm2d(5), nn.PReLU(5), nn.Flatten(),
        nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip


def linear_path() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3))


ZOO = {
    "mlp": (mlp, (5,)),
    "mlp_tanh": (lambda: mlp(activation=nn.Tanh), (5,)),
    "mlp_gelu": (lambda: mlp(activation=nn.GELU), (5,)),
    "cnn": (cnn, (2, 8, 8)),
    "depthwise": (depthwise, (2, 6, 6)),
    "resnet": (ResNet, (2, 8, 8)),
    "linear_path": (linear_path, (5,)),
    "attention": (lambda: Transformer(Attention(8, 2, packed=False)), (4, 5)),
    "attention_packed": (lambda: Transformer(Attention(8, 2, packed=True)), (4, 5)),
    "attention_torch": (lambda: Transformer(TorchAttention(8, 2)), (4, 5)),
}


def build(name: str, seed: int = 0, rows: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """Build a network of the zoo with seeded weights and statistics, inputs and labels."""
    make, shape = ZOO[name]
    draw = generator(seed, "zoo", name)

    def random(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    with torch.random.fork_rng():
        model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(random(tuple(parameter.shape)) / fan**0.5)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.copy_(0.3 * random((module.num_features,)))
                module.running_var.copy_(random((module.num_features,)).abs() + 0.5)
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.copy_(1 + 0.3 * random(tuple(module.weight.shape)))
    x = random((rows, *shape))
    return model, x, torch.randint(0, 3, (rows,), generator=draw)
