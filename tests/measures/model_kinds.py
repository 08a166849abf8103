"""Tiny networks of every kind that people bring, and what they return for the reference.

Each kind is a builder that gives the same weights whenever it is called, so that the reference
may work on an instance of its own.
"""

import copy
import functools
import warnings
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

ROWS, FEATURES, CLASSES = 5, 3, 3

#: Name to its kind.
KINDS = {}


@dataclass(frozen=True)
class Kind:
    """A network with its data.

    Attributes:
        build: Returns the network in float64 and eval mode.
        x: The inputs, as a measure takes them.
        y: The targets.
        read: From the network to its ``(rows, K)`` outputs, for the reference.
        refused: Whether every measure that computes must refuse.
        partial: Whether some measures may refuse that answer elsewhere.
    """

    build: object
    x: object
    y: torch.Tensor
    read: object
    refused: bool = False
    partial: bool = False


def draws(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape):
    return torch.randint(0, CLASSES, shape or (ROWS,), generator=torch.Generator().manual_seed(1))


def settled(model, dtype=torch.float64):
    """Give a network weights of its own, buffers of its own, and eval mode."""
    model = model.to(dtype)
    source = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_(0.7 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=source, dtype=torch.float64) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=source, dtype=torch.float64))
    return model.eval()


def call(model, x):
    return model(x)


def kind(name, make, x=None, y=None, read=call, **options):
    x = draws(ROWS, FEATURES) if x is None else x
    y = labels() if y is None else y
    build = (lambda: settled(make())) if not options.pop("raw", False) else make
    KINDS[name] = Kind(build, x, y, read, **options)


def perceptron(*between, width=3, out=CLASSES):
    return nn.Sequential(nn.Linear(FEATURES, width), *between, nn.Linear(width, out))


class Wrapped(nn.Module):
    """``compute(inside, ...)`` of some modules."""

    def __init__(self, compute, **inside):
        super().__init__()
        self.inside, self.compute = nn.ModuleDict(inside), compute

    def forward(self, *args, **kwargs):
        return self.compute(self.inside, *args, **kwargs)


ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": nn.LeakyReLU, "prelu": nn.PReLU, "tanh": nn.Tanh, "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "elu": nn.ELU, "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh, "relu6": nn.ReLU6, "mish": nn.Mish, "softsign": nn.Softsign,
    "softmax": lambda: nn.Softmax(1), "hardswish": nn.Hardswish,
}  # fmt: skip
for title, activation in ACTIVATIONS.items():
    kind(f"mlp-{title}", functools.partial(lambda make: perceptron(make()), activation))
kind("linear", lambda: nn.Linear(FEATURES, CLASSES))
kind("no-bias", lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)))
kind("glu", lambda: nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 3)))
for title, norm in {
    "batch-norm": lambda: nn.BatchNorm1d(4),
    "layer-norm": lambda: nn.LayerNorm(4),
    "rms-norm": lambda: nn.RMSNorm(4),
    "group-norm": lambda: nn.GroupNorm(2, 4),
    "dropout": lambda: nn.Dropout(0.5),
}.items():
    kind(title, functools.partial(lambda make: perceptron(make(), nn.ReLU(), width=4), norm))
kind(
    "instance-norm",
    lambda: nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(6, 3)
    ),
    draws(ROWS, 1, 4),
)


def convolutional(first, flat, *more):
    return nn.Sequential(first, nn.ReLU(), *more, nn.Flatten(), nn.Linear(flat, CLASSES))


IMAGE = draws(ROWS, 2, 4, 4)
for title, make in {
    "conv": lambda: convolutional(nn.Conv2d(2, 2, 2), 18),
    "conv-strided": lambda: convolutional(nn.Conv2d(2, 2, 2, stride=2), 8),
    "conv-padded-dilated": lambda: convolutional(nn.Conv2d(2, 1, 2, padding=1, dilation=2), 16),
    "conv-grouped": lambda: convolutional(nn.Conv2d(2, 2, 2, groups=2), 18),
    "conv-depthwise": lambda: convolutional(nn.Conv2d(2, 4, 3, groups=2), 16),
    "conv-transposed": lambda: convolutional(nn.ConvTranspose2d(2, 1, 2, stride=1), 25),
    "lenet-c5": lambda: convolutional(nn.Conv2d(2, 2, 4), 2),
    "max-pool": lambda: convolutional(nn.Conv2d(2, 2, 1), 8, nn.MaxPool2d(2)),
    "average-pool": lambda: convolutional(nn.Conv2d(2, 2, 1), 8, nn.AvgPool2d(2)),
    "adaptive-pool": lambda: convolutional(nn.Conv2d(2, 3, 2), 3, nn.AdaptiveAvgPool2d(1)),
    "lp-pool": lambda: convolutional(nn.Conv2d(2, 2, 1), 8, nn.LPPool2d(2, 2)),
    "pixel-shuffle": lambda: convolutional(nn.Conv2d(2, 4, 4), 4, nn.PixelShuffle(2)),
    "upsample": lambda: convolutional(nn.Conv2d(2, 1, 4), 4, nn.Upsample(scale_factor=2)),
    "batch-norm-2d": lambda: convolutional(nn.Conv2d(2, 2, 3), 8, nn.BatchNorm2d(2)),
}.items():
    kind(title, make, IMAGE, partial=title == "lp-pool")  # a root at zero
kind("conv-1d", lambda: convolutional(nn.Conv1d(2, 2, 2), 6), draws(ROWS, 2, 4))
kind("conv-3d", lambda: convolutional(nn.Conv3d(1, 2, 2), 16), draws(ROWS, 1, 3, 3, 3))

square = functools.partial(nn.Linear, 3, 3)
kind("residual", lambda: Wrapped(lambda m, x: m["b"](x + m["a"](x).relu()), a=square(), b=square()))
kind("concat", lambda: Wrapped(
    lambda m, x: m["b"](torch.cat([x, m["a"](x).tanh()], 1)), a=square(), b=nn.Linear(6, 3)
))  # fmt: skip
kind("twice", lambda: Wrapped(lambda m, x: m["a"](m["a"](x).tanh()), a=square()))
kind("tied", lambda: Wrapped(
    lambda m, x: m["a"](x).tanh() @ m["a"].weight, a=nn.Linear(3, 4)
))  # fmt: skip
kind("bilinear", lambda: Wrapped(lambda m, x: m["a"](x, x[:, :2]), a=nn.Bilinear(3, 2, 3)))
TOKENS = torch.randint(0, 5, (ROWS, 3), generator=torch.Generator().manual_seed(2))
kind("embedding", lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 3)), TOKENS)
kind(
    "embedding-bag",
    lambda: nn.Sequential(nn.EmbeddingBag(5, 2), nn.Linear(2, 3)),
    TOKENS,
    partial=True,
)
kind("tied-embedding", lambda: Wrapped(
    lambda m, x: m["a"](m["e"](x).mean(1)).tanh() @ m["e"].weight[:3].T,
    e=nn.Embedding(5, 3), a=square(),
), TOKENS)  # fmt: skip
SEQUENCE = draws(ROWS, 3, 2)
kind("attention", lambda: Wrapped(
    lambda m, x: m["b"](m["a"](x, x, x)[0].mean(1)),
    a=nn.MultiheadAttention(2, 1, batch_first=True), b=nn.Linear(2, 3),
), SEQUENCE)  # fmt: skip
kind("transformer-layer", lambda: Wrapped(
    lambda m, x: m["b"](m["a"](x).mean(1)),
    a=nn.TransformerEncoderLayer(2, 1, 2, 0.0, batch_first=True), b=nn.Linear(2, 3),
), SEQUENCE)  # fmt: skip
for title, cell in {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}.items():
    kind(title, functools.partial(lambda make: Wrapped(
        lambda m, x: m["b"](m["a"](x)[0][:, -1]), a=make(2, 2, batch_first=True), b=nn.Linear(2, 3)
    ), cell), SEQUENCE)  # fmt: skip


def changed(change, make=lambda: perceptron(nn.Tanh())):
    """A settled network, changed by ``change`` afterwards."""

    def build():
        model = settled(make())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (change(model) or model).eval()

    return build


kind("weight-norm", changed(lambda m: parametrizations.weight_norm(m[0]) and None), raw=True)
kind("spectral-norm", changed(lambda m: parametrizations.spectral_norm(m[0]) and None), raw=True)
kind("orthogonal", changed(lambda m: parametrizations.orthogonal(m[0]) and None), raw=True)
kind("old-weight-norm", changed(lambda m: torch.nn.utils.weight_norm(m[0]) and None), raw=True)
kind("pruned", changed(lambda m: prune.l1_unstructured(m[0], "weight", 3) and None), raw=True)
kind(
    "hook",
    changed(lambda m: m[0].register_forward_hook(lambda a, b, out: 2 * out) and None),
    raw=True,
)
kind(
    "pre-hook",
    changed(lambda m: m[2].register_forward_pre_hook(lambda a, b: (b[0] + 1,)) and None),
    raw=True,
)
kind("frozen", changed(lambda m: m[0].requires_grad_(False) and None), raw=True)
kind("compiled-in-place", changed(lambda m: m.compile(backend="eager")), raw=True)
kind("compiled", changed(lambda m: torch.compile(m, backend="eager")), raw=True)
kind("compiled-convolution", changed(
    lambda m: torch.compile(m, backend="eager"), lambda: convolutional(nn.Conv2d(2, 2, 3), 8)
), IMAGE, raw=True)  # fmt: skip
kind("data-parallel", changed(nn.DataParallel), raw=True)


def closure(model):
    inner = model.forward
    model.forward = lambda x: 2 * inner(x)


kind("forward-closure", changed(closure), raw=True)
kind("checkpointed", lambda: Wrapped(
    lambda m, x: m["b"](checkpoint(m["a"], x, use_reentrant=False).tanh()), a=square(), b=square()
), partial=True)  # fmt: skip
kind(
    "in-place",
    lambda: Wrapped(lambda m, x: m["b"](m["a"](x.mul_(2)).tanh_()), a=square(), b=square()),
)


@dataclass
class Output:
    logits: torch.Tensor
    more: list = field(default_factory=list)


def logits(model, x):
    out = model(x)
    return out["logits"] if isinstance(out, dict) else out.logits


kind("dataclass", lambda: Wrapped(lambda m, x: Output(m["a"](x)), a=square()), read=logits)
kind("dictionary", lambda: Wrapped(lambda m, x: {"logits": m["a"](x)}, a=square()), read=logits)
kind("tuple", lambda: Wrapped(lambda m, x: (m["a"](x), x), a=square()), refused=True)
PAIR = {"first": draws(ROWS, 3), "second": draws(ROWS, 3, seed=8)}
kind("named-inputs", lambda: Wrapped(
    lambda m, first, second: m["b"](m["a"](first).tanh() * second), a=square(), b=square()
), PAIR, read=lambda model, x: model(**x))  # fmt: skip
kind("two-inputs", lambda: Wrapped(
    lambda m, first, second: m["b"](m["a"](first).tanh() * second), a=square(), b=square()
), tuple(PAIR.values()), read=lambda model, x: model(*x))  # fmt: skip
kind("bfloat16", lambda: settled(perceptron(nn.Tanh()), torch.bfloat16), raw=True,
     read=lambda model, x: model(x.to(model[0].weight.dtype)))  # fmt: skip
kind("float16", lambda: settled(perceptron(nn.ReLU()), torch.float16), raw=True,
     read=lambda model, x: model(x.to(model[0].weight.dtype)))  # fmt: skip
kind("functional", lambda: Wrapped(
    lambda m, x: torch.func.functional_call(m["a"], dict(m["a"].named_parameters()), (x,)).sin(),
    a=square(),
))  # fmt: skip
kind("tokens", lambda: Wrapped(lambda m, x: m["a"](x), a=nn.Linear(2, 3)), SEQUENCE,
     labels(ROWS, 3), read=lambda model, x: model(x).flatten(0, 1), partial=True)  # fmt: skip
kind("pixels", lambda: nn.Conv2d(2, 3, 2), IMAGE, labels(ROWS, 3, 3),
     read=lambda model, x: model(x).movedim(1, -1).flatten(0, -2), partial=True)  # fmt: skip
kind("flat-output", lambda: Wrapped(lambda m, x: m["a"](x)[:, 0], a=square()), refused=True)


def quiet(make):
    def build():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return build


kind("no-parameters", nn.Tanh, refused=True)
kind(
    "scripted",
    quiet(lambda: torch.jit.script(settled(perceptron(nn.ReLU())))),
    raw=True,
    refused=True,
)
kind(
    "traced",
    quiet(lambda: torch.jit.trace(settled(perceptron(nn.ReLU())), draws(2, 3))),
    raw=True,
    refused=True,
)


def bent(x):
    return x.tanh()


class HoldsScript(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act = square(), quiet(lambda: torch.jit.script(bent))()

    def forward(self, x):
        return self.act(self.a(x))


kind("script-function", HoldsScript, refused=True)
kind(
    "exported",
    lambda: torch.export.export(settled(perceptron(nn.ReLU())), (draws(2, 3),)),
    raw=True,
    refused=True,
)
kind("lazy", lambda: nn.Sequential(nn.LazyLinear(3)).eval(), raw=True, refused=True)
kind("meta", lambda: perceptron(nn.ReLU()).to("meta").eval(), raw=True, refused=True)
kind("complex", lambda: perceptron(nn.Tanh()).to(torch.complex64).eval(), raw=True, refused=True)
kind("train-mode", lambda: perceptron(nn.Dropout(0.5)).double().train(), raw=True, refused=True)


def mixed():
    model = settled(perceptron(nn.ReLU()))
    model[0].float()
    return model


def sparse():
    model = settled(perceptron(nn.ReLU()))
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    return model


def diverged():
    model = settled(perceptron(nn.ReLU()))
    model[0].weight.data[0, 0] = torch.nan
    return model


def quantised():
    return torch.ao.quantization.quantize_dynamic(settled(perceptron(nn.ReLU()), torch.float32))


kind("mixed-dtypes", mixed, raw=True, refused=True)
kind("sparse", sparse, raw=True, refused=True)
kind("not-a-number", diverged, raw=True, refused=True)
kind("quantised", quiet(quantised), raw=True, refused=True)
kind(
    "batch-statistics",
    lambda: perceptron(nn.BatchNorm1d(3, track_running_stats=False)),
    refused=True,
)
kind(
    "random",
    lambda: Wrapped(lambda m, x: m["a"](x) + torch.randn_like(x), a=square()),
    refused=True,
)
kind("detached", lambda: Wrapped(lambda m, x: m["a"](x).detach(), a=square()), refused=True)


def bound_to_original():
    model = settled(Wrapped(None, a=square()))
    model.__dict__["compute"] = OriginalCaller([model])
    return model


class OriginalCaller:
    """Holds the original in a container, where no copy follows."""

    def __init__(self, holder):
        self.holder = holder

    def __call__(self, m, x):
        return self.holder[0].inside["a"](x)

    def __deepcopy__(self, memo):
        return copy.copy(self)


kind("holds-the-original", bound_to_original, raw=True, refused=True)
