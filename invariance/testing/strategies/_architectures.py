"""A Hypothesis strategy of random networks: what a user might build, drawn small.

Hypothesis is imported where the strategy is built, so that this module can be imported
without it. A drawn network is a list of plain steps, so a failing example prints as one
line that builds it again: ``Network(seed=3, shape=(2, 4, 4), steps=(...))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invariance.core._rng import generator

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Step = tuple[Any, ...]

#: Activations by name; the functional ones are called as a user would in ``forward``.
ACTIVATIONS: dict[str, Any] = {
    "relu": torch.relu,
    "relu_": lambda x: torch.relu_(x.clone()),
    "leaky_relu": nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
    "identity": lambda x: x,
    "abs": torch.abs,
}


class Network(nn.Module):
    """A network drawn from steps; everything in it is in float64 and eval mode.

    Shapes: ``shape (features,)``.
    """

    def __init__(
        self, seed: int, shape: Sequence[int], steps: Sequence[Step], outputs: int = 3
    ) -> None:
        super().__init__()
        self.seed, self.shape, self.steps = int(seed), tuple(shape), tuple(steps)
        self.outputs = outputs
        self.parts = nn.ModuleList()
        width, image = self.shape[0], len(self.shape) == 3
        size = self.shape[-1] if image else 1
        for step in self.steps:
            made, width, image, size = self._build(step, width, image, size)
            self.parts.append(made)
        self.head = nn.Linear(width * size * size if image else width, outputs)
        self._fill()
        self.double().eval()

    def __repr__(self) -> str:
        return f"Network(seed={self.seed}, shape={self.shape}, steps={self.steps})"

    def _build(
        self, step: Step, width: int, image: bool, size: int
    ) -> tuple[nn.Module, int, bool, int]:
        """Make the modules of one step.

        Steps: ``("layer", width, bias)``, ``("act", name)``, ``("norm", kind)``,
        ``("prelu",)``, ``("residual", hidden, activation, norm)``, ``("concat", width)``,
        ``("gate", activation)``, ``("depthwise",)``, ``("pool", kind)``, ``("flatten",)``,
        ``("shared", activation)``, ``("dropout",)``.
        """
        kind, rest = step[0], step[1:]

        def layer(n_in: int, n_out: int, bias: bool = True) -> nn.Module:
            if image:
                return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)
            return nn.Linear(n_in, n_out, bias=bias)

        made: nn.Module = nn.Identity()
        if kind == "layer":
            made, width = layer(width, rest[0], rest[1]), rest[0]
        elif kind == "norm":
            made = _norm(rest[0], width, image)
        elif kind == "prelu":
            made = nn.PReLU(width)
        elif kind == "residual":
            inner = layer(width, rest[0])
            made = nn.ModuleList([inner, _norm(rest[2], rest[0], image), layer(rest[0], width)])
        elif kind == "concat":
            made = nn.ModuleList([layer(width, rest[0]), layer(width, rest[0], False)])
            width = 2 * rest[0]
        elif kind == "gate":
            made = nn.ModuleList([layer(width, width), layer(width, width)])
        elif kind == "depthwise" and image:
            made = nn.Conv2d(width, width, 3, padding=1, groups=width)
        elif kind == "pool" and image and size > 1:
            made = nn.MaxPool2d(2) if rest[0] == "max" else nn.AvgPool2d(2)
            size //= 2
        elif kind == "flatten" and image:
            made = nn.Flatten()
            width, image, size = width * size * size, False, 1
        elif kind == "shared":
            made = layer(width, width)
        elif kind == "dropout":
            made = nn.Dropout(0.5)
        return made, width, image, size

    def forward(self, x: Tensor) -> Tensor:
        """Run the steps."""
        for step, part in zip(self.steps, self.parts, strict=True):
            kind = step[0]
            parts: Any = part
            if kind == "act":
                x = ACTIVATIONS[step[1]](x)
            elif kind == "residual":
                y = parts[2](ACTIVATIONS[step[2]](parts[1](parts[0](x))))
                x = x + y
            elif kind == "concat":
                x = torch.cat([torch.relu(parts[0](x)), parts[1](x)], dim=1)
            elif kind == "gate":
                x = parts[0](x) * ACTIVATIONS[step[1]](parts[1](x))
            elif kind == "shared":
                x = parts(ACTIVATIONS[step[1]](parts(x)))
            else:
                x = part(x)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]

    def _fill(self) -> None:
        stream = generator(self.seed, "architecture")
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
                fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
                parameter.copy_(drawn / fan**0.5)
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(generator=stream)
                    module.running_var.uniform_(0.5, 2.0, generator=stream)

    def batch(self, seed: int, rows: int = 3) -> Tensor:
        """Return a seeded ``(rows, *shape)`` input."""
        stream = generator(seed, "architecture input")
        return torch.randn((rows, *self.shape), generator=stream, dtype=torch.float64)


def _norm(kind: str, width: int, image: bool) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width) if image else nn.BatchNorm1d(width)
    if kind == "batch-plain":
        if image:
            return nn.BatchNorm2d(width, affine=False)
        return nn.BatchNorm1d(width, affine=False)
    if kind == "group":
        return nn.GroupNorm(2 if width % 2 == 0 else 1, width)
    if kind == "layer" and not image:
        return nn.LayerNorm(width)
    if kind == "rms" and not image:
        return nn.RMSNorm(width)
    return nn.Identity()


def networks(
    *,
    max_steps: int = 5,
    max_width: int = 6,
    activations: Sequence[str] = tuple(ACTIVATIONS),
    norms: Sequence[str] = ("batch", "batch-plain", "group", "layer", "rms", "none"),
    images: bool | None = None,
) -> SearchStrategy[Network]:
    """Return a strategy of random small networks."""
    from hypothesis import strategies as st

    widths = st.integers(1, max_width)
    act = st.sampled_from(list(activations))
    norm = st.sampled_from(list(norms))
    step: SearchStrategy[Step] = st.one_of(
        st.tuples(st.just("layer"), widths, st.booleans()),
        st.tuples(st.just("act"), act),
        st.tuples(st.just("norm"), norm),
        st.tuples(st.just("prelu")),
        st.tuples(st.just("residual"), widths, act, norm),
        st.tuples(st.just("concat"), widths),
        st.tuples(st.just("gate"), act),
        st.tuples(st.just("depthwise")),
        st.tuples(st.just("pool"), st.sampled_from(["max", "mean"])),
        st.tuples(st.just("flatten")),
        st.tuples(st.just("shared"), act),
        st.tuples(st.just("dropout")),
    )
    shapes = {
        True: st.just((2, 4, 4)),
        False: st.just((3,)),
        None: st.sampled_from([(3,), (2, 4, 4)]),
    }[images]
    first = st.tuples(st.just("layer"), widths, st.booleans())
    steps = st.tuples(first, st.lists(step, max_size=max_steps)).map(lambda p: (p[0], *p[1]))
    built: SearchStrategy[Network] = st.builds(
        Network, seed=st.integers(0, 2**20), shape=shapes, steps=steps
    )
    return built
