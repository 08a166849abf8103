"""Small modules that exercise one difficulty each, with their symmetries written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


class Res(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.b0 = nn.BatchNorm2d(4)
        self.c1 = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(3)
        self.c2 = nn.Conv2d(3, 4, 3, padding=1)
        self.b2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.leaky_relu(self.b0(self.stem(x)), 0.1)
        x = F.max_pool2d(x, 2)
        y = self.b2(self.c2(F.relu(self.b1(self.c1(x)), inplace=True)))
        x = x + y
        x = torch.relu(x).mean((2, 3))
        return self.fc(x)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(1, 3, 3)
        self.d = nn.Conv2d(3, 3, 3, groups=3, padding=1)
        self.l = nn.Linear(27, 5)
        self.o = nn.Linear(5, 2)

    def forward(self, x):
        x = self.c(x).relu_()
        x = self.d(x).relu()
        x = F.max_pool2d(x, 2) if x.shape[-1] > 3 else x
        return self.o(torch.tanh(self.l(x.flatten(1))))


class SharedConv(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.i = nn.Linear(3, 4)
        self.w = nn.Linear(4, 4, bias=bias)
        self.o = nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.i(x))
        x = F.relu(self.w(x))
        x = F.relu(self.w(x))
        return self.o(x)


class SharedBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(3, 4)
        self.j = nn.Linear(3, 4)
        self.w = nn.Linear(4, 5)
        self.o = nn.Linear(10, 2)

    def forward(self, x):
        return self.o(
            torch.cat([F.relu(self.w(F.relu(self.i(x)))), F.relu(self.w(F.relu(self.j(x))))], 1)
        )


class TiedAE(nn.Module):
    def __init__(self, act, bias=False):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3))
        self.act = act
        self.b = nn.Parameter(torch.randn(4)) if bias else None

    def forward(self, x):
        return F.linear(self.act(F.linear(x, self.w, self.b)), self.w.t())


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(3, 4)
        self.o = nn.Linear(4, 2)

    def forward(self, x):
        return self.o(self.a(x) * torch.sigmoid(self.b(x)))


class Bilin(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(3, 4)
        self.o = nn.Linear(4, 2)

    def forward(self, x):
        return self.o(self.a(x) * self.b(x))


class LN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.n = nn.LayerNorm(4)
        self.b = nn.Linear(4, 5)
        self.r = nn.RMSNorm(5)
        self.o = nn.Linear(5, 2)

    def forward(self, x):
        return self.o(F.relu(self.r(self.b(F.relu(self.n(self.a(x)))))))


class Attn(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Linear(3, 8)
        self.q = nn.Linear(8, 8, bias=False)
        self.k = nn.Linear(8, 8, bias=False)
        self.v = nn.Linear(8, 8)
        self.p = nn.Linear(8, 8)
        self.n = nn.LayerNorm(8)
        self.o = nn.Linear(8, 2)
        self.pos = nn.Parameter(torch.randn(1, 5, 8))
        self.cls = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x):
        B = x.shape[0]
        x = self.e(x)
        x = torch.cat([self.cls.expand(B, -1, -1), x], 1) + self.pos
        h = self.n(x)
        T = h.shape[1]
        q, k, v = (f(h).view(B, T, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1)
        h = (a @ v).transpose(1, 2).reshape(B, T, 8)
        x = x + self.p(h)
        return self.o(x[:, 0])


class WN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.w = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
        self.o = nn.Linear(5, 2)

    def forward(self, x):
        return self.o(F.relu(self.w(F.relu(self.a(x)))))


class Chunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 8)
        self.o = nn.Linear(12, 2)

    def forward(self, x):
        a, b = self.a(x).chunk(2, 1)
        c = torch.stack([F.relu(a), F.leaky_relu(b)], 1).sum(1)
        return self.o(torch.cat([a.relu(), c, b.abs()], 1))


class GN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3)
        self.n = nn.GroupNorm(2, 8)
        self.p = nn.PReLU(8)
        self.o = nn.Linear(8, 2)

    def forward(self, x):
        return self.o(self.p(self.n(self.a(x))).amax((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 6, 3)
        self.n = nn.Conv2d(6, 4, 2, groups=2)
        self.o = nn.ConvTranspose2d(4, 2, 2)
        self.b = nn.BatchNorm2d(6, affine=False)

    def forward(self, x):
        return self.o(F.relu(self.n(F.relu(self.b(self.a(x))))))


class MHA(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, dropout=0.0, norm_first=True)
        self.o = nn.Linear(8, 2)
        self.e = nn.Linear(3, 8)

    def forward(self, x):
        return self.o(self.m(self.e(x)))


class CustomRMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.w = nn.Parameter(torch.randn(4))
        self.o = nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.3) * self.w
        return self.o(x)


class SE(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.f1 = nn.Conv2d(4, 2, 1)
        self.f2 = nn.Conv2d(2, 4, 1)
        self.o = nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x).relu()
        g = torch.sigmoid(self.f2(self.f1(x.mean((2, 3), keepdim=True)).relu()))
        return self.o((x * g).flatten(2).mean(-1))


class Weird(nn.Module):
    "asymmetric use of channels"

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.o = nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        r = F.relu(x)
        return self.o(torch.cat([x[:, :1], r[:, 1:], r[:, :1], x[:, 1:]], 1))


class Weird2(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.o = nn.Linear(4 * 9, 2)

    def forward(self, x):
        x = self.a(x).flatten(1)
        a, b = x.split([14, 22], 1)
        return self.o(torch.cat([F.relu(a), F.gelu(b)], 1).roll(5, 1))


class Sc(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.al = nn.Parameter(torch.ones(()))
        self.g = nn.Parameter(torch.ones(4))
        self.o = nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.o(h * self.g * self.al + 1.0)


class Pad(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3)
        self.b = nn.Conv2d(3, 5, 1)
        self.o = nn.Linear(5, 2)

    def forward(self, x):
        x = self.a(x).relu()
        y = F.pad(x, (0, 0, 0, 0, 0, 2))
        return self.o((self.b(x) + y).relu().sum((2, 3)))


@dataclass(frozen=True)
class Case:
    """A module and what the engine has to find.

    ``extra_null`` counts diagonal null directions that are no scaling of units: parameters
    without any influence (the bias of a key drops out of the softmax; unused parameters).
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dof: int
    groups: dict[str, int] = field(default_factory=dict)
    extra_null: int = 0


MODULES = [
    # conv and BatchNorm with a residual stream of 4 and a branch of 3 channels:
    # (gamma, beta) of both, and the weights before three BatchNorms, scale: 4 + 3 + 4 + 3 + 4
    Case(
        "residual",
        Res,
        (2, 6, 6),
        18,
        {"permutation": 2, "sign_flip": 3, "batchnorm_affine": 2, "batchnorm_weight_scale": 3},
    ),
    # 3 channels into and 3 out of a depthwise convolution; tanh stops the 5 units after it
    Case(
        "depthwise and flatten",
        Flat,
        (1, 5, 5),
        6,
        {"scaling": 2, "permutation": 2, "sign_flip": 1},
    ),
    # h = s(W s(W x + b) + b): all three streams of 4 units share one factor each
    Case("layer used twice in a row", SharedConv, (3,), 4, {"scaling": 1, "permutation": 1}),
    # without its bias: u, u + k, u + 2 k: one constant more
    Case(
        "the same without bias",
        lambda: SharedConv(False),
        (3,),
        5,
        {"scaling": 3, "permutation": 1},
    ),
    Case("layer used in two branches", SharedBranches, (3,), 9, {"scaling": 2, "permutation": 2}),
    Case("tied autoencoder, relu", lambda: TiedAE(torch.relu), (3,), 0, {"permutation": 1}),
    Case(
        "tied autoencoder, tanh",
        lambda: TiedAE(torch.tanh),
        (3,),
        0,
        {"permutation": 1, "sign_flip": 1},
    ),
    Case(
        "tied autoencoder, linear",
        lambda: TiedAE(lambda x: x),
        (3,),
        0,
        {"permutation": 1, "sign_flip": 1},
    ),
    Case("gate", Gate, (3,), 4, {"scaling": 1, "permutation": 1, "sign_flip": 1}),
    Case("bilinear gate", Bilin, (3,), 8, {"scaling": 2, "permutation": 1, "sign_flip": 2}),
    # LayerNorm: 2 flips (all of its input at once); RMSNorm: 5 flips
    Case("norms", LN, (3,), 9, {"scaling": 2, "permutation": 2, "sign_flip": 2}),
    # one stream of 8, two heads of 4 with mixings of queries with keys and of values with p
    Case(
        "attention",
        Attn,
        (4, 3),
        24,
        {"scaling": 3, "permutation": 5, "sign_flip": 4, "linear_mixing": 4},
    ),
    # weight norm: 5 rows of g, 5 rows of v alone, and one factor for the whole input
    Case("weight norm", WN, (3,), 11, {"scaling": 3, "permutation": 2}),
    Case("chunk, stack, sum, abs", Chunk, (3,), 4, {"scaling": 1, "permutation": 1}),
    Case(
        "group norm and prelu", GN, (1, 5, 5), 8, {"scaling": 1, "permutation": 2, "sign_flip": 1}
    ),
    Case(
        "grouped and transposed",
        Grouped,
        (1, 5, 5),
        16,
        {"scaling": 1, "permutation": 4, "batchnorm_weight_scale": 2},
    ),
    Case(
        "nn.TransformerEncoderLayer",
        MHA,
        (4, 3),
        38,
        {"scaling": 5, "permutation": 6, "sign_flip": 5, "linear_mixing": 4},
        extra_null=8,
    ),
    Case("rms norm by hand", CustomRMS, (3,), 4, {"scaling": 1, "permutation": 1, "sign_flip": 2}),
    Case("squeeze and excite", SE, (1, 5, 5), 6, {"scaling": 2, "permutation": 2}),
    Case("channels used unlike each other", Weird, (3,), 4, {"scaling": 1, "permutation": 1}),
    Case("split inside a channel", Weird2, (1, 5, 5), 1, {"scaling": 1, "permutation": 1}),
    Case("scalars and constants", Sc, (3,), 5, {"scaling": 3, "permutation": 1, "sign_flip": 1}),
    Case("channels padded with zeros", Pad, (1, 5, 5), 5, {"scaling": 2, "permutation": 2}),
]
