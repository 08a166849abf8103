"""What a plain multilayer perceptron is, and its steps: the one reader of them.

A perceptron is an ``nn.Sequential`` (nested ones included) of linear layers, BatchNorm on rows
and the elementwise functions of :mod:`~invariance.core._activations`. Whoever has a formula for
such networks reads them here, on rows ``(n, d)``; every tensor of a step may carry a leading
dimension M, which makes it the step of M networks of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._activations import BY_MODULE, Activation, activation_of
from invariance.core._modules import computes_as_its_class


def qualified(module: str, leaf: str) -> str:
    """Return the full name of a module's parameter; the root module's name is empty."""
    return f"{module}.{leaf}" if module else leaf


@dataclass(frozen=True)
class Dense:
    """A linear layer: ``weight`` is ``(*lead, out, in)``, ``bias`` ``(*lead, out)``."""

    name: str
    weight: Tensor
    bias: Tensor | None
    module: nn.Module | None = field(default=None, compare=False)

    def forward(self, a: Tensor) -> Tensor:
        """Return ``(*lead, n, out)`` of ``(*lead, n, in)``, or of ``(n, in)`` shared by all."""
        weight, bias = self.weight, self.bias
        if weight.ndim == 2:
            return F.linear(a, weight, bias)
        if a.ndim == 2:
            a = a.expand(len(weight), *a.shape)
        if bias is None:
            return torch.bmm(a, weight.mT)
        return torch.baddbmm(bias.unsqueeze(-2), a, weight.mT)


@dataclass(frozen=True)
class Norm:
    """An eval-mode BatchNorm: ``gain * (z - mean) * inverse_sd + shift``, all ``(*lead, d)``."""

    name: str
    mean: Tensor
    inverse_sd: Tensor
    gain: Tensor | None
    shift: Tensor | None
    module: nn.Module | None = field(default=None, compare=False)

    @property
    def scale(self) -> Tensor:
        """``(*lead, d)``: what an input's change is multiplied with."""
        return self.inverse_sd if self.gain is None else self.inverse_sd * self.gain

    @property
    def offset(self) -> Tensor:
        """``(*lead, d)``: its value at zero."""
        offset = -self.mean * self.scale
        return offset if self.shift is None else offset + self.shift

    def normalised(self, a: Tensor) -> Tensor:
        """Return the input in units of the statistics, before gain and shift."""
        return (a - self.mean.unsqueeze(-2)) * self.inverse_sd.unsqueeze(-2)

    def forward(self, a: Tensor) -> Tensor:
        """Return ``(*lead, n, d)`` of as much."""
        a = self.normalised(a)
        if self.gain is not None:
            a = a * self.gain.unsqueeze(-2)
        return a if self.shift is None else a + self.shift.unsqueeze(-2)


@dataclass(frozen=True)
class Slope:
    """An elementwise activation without parameters (but for PReLU, which only trainers take)."""

    name: str
    module: nn.Module
    activation: Activation

    @property
    def smooth(self) -> bool:
        """Whether its second derivative does not vanish."""
        return self.activation.kinks is None

    def forward(self, z: Tensor) -> Tensor:
        """Apply it out of place, whatever its ``inplace`` flag."""
        if type(self.module) is nn.ReLU:
            return z.clamp_min(0)
        result: Tensor = self.module(z.clone() if getattr(self.module, "inplace", False) else z)
        return result

    def slope(self, z: Tensor) -> Tensor:
        """Return the derivative of a piecewise-linear one; on a kink, as autograd has it."""
        known = self.activation
        kinks, slopes = known.kinks, known.slopes
        if kinks is None or not slopes:
            raise AssertionError(f"{known.name} has no slopes in the table")
        if kinks == (0.0,) and slopes == (0.0, 1.0):
            return (z > 0).to(z.dtype)
        # Tensors of z's dtype: torch.where makes float32 of two Python numbers.
        found = z.new_full((), slopes[0])
        sides = known.right or (False,) * len(kinks)
        for kink, right, slope in zip(kinks, sides, slopes[1:], strict=True):
            beyond = z >= kink if right else z > kink
            found = torch.where(beyond, z.new_full((), slope), found)
        return found.expand_as(z)


Step: TypeAlias = Dense | Norm | Slope


def read_perceptron(model: nn.Module, *, training: bool = False) -> tuple[Step, ...] | None:
    """Read a network's steps off its modules.

    Exact types only, and nothing that could change the data flow: no hooks, shared modules
    or parameters, parametrisations or forward methods of its own.

    Example:
        >>> [step.name for step in read_perceptron(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))]
        ['0', '1']
    """
    leaves: list[tuple[str, nn.Module]] = []
    if not _flatten(model, "", leaves):
        return None
    owned = [p for _, leaf in leaves for p in leaf._parameters.values() if p is not None]
    if len({id(leaf) for _, leaf in leaves}) < len(leaves) or len({*map(id, owned)}) < len(owned):
        return None
    steps: list[Step] = []
    for name, module in leaves:
        found = _steps_of(name, module, training=training)
        if found is None or (isinstance(module, nn.Flatten) and steps):
            return None
        steps += found
    return tuple(steps) if any(isinstance(step, Dense) for step in steps) else None


def _steps_of(name: str, module: nn.Module, *, training: bool) -> tuple[Step, ...] | None:
    """Return a leaf's step, nothing for an identity, ``None`` for what is no step."""
    kind = type(module)
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        bias = None if module.bias is None else module.bias.detach()
        return (Dense(name, module.weight.detach(), bias, module),)
    if isinstance(module, nn.BatchNorm1d) and kind is nn.BatchNorm1d:
        usable = module.running_mean is not None and (training or not module.training)
        return (_norm(name, module),) if usable else None
    if isinstance(module, nn.Flatten):  # in front, it makes rows of images; rows it keeps
        return () if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1) else None
    known = BY_MODULE.get(kind)
    if known is None or (known.random and module.training and not _never_drops(module)):
        return None
    if known.read is not None:
        known = activation_of(module)
        assert known is not None
    if known.kinks and not known.slopes and not training:
        return None  # a PReLU: its slope is a parameter of no weight layer
    return (Slope(name, module, known),) if known.kinks != () else ()


def _flatten(module: nn.Module, name: str, leaves: list[tuple[str, nn.Module]]) -> bool:
    """Append the modules that run, in order; ``False`` where something could interfere."""
    if not computes_as_its_class(module):
        return False
    if type(module).forward is not nn.Sequential.forward:
        leaves.append((name, module))
        return not module._modules
    if module._parameters:
        return False
    # Not named_children(), which leaves out a module's second call.
    return all(
        child is not None and _flatten(child, f"{name}.{key}" if name else key, leaves)
        for key, child in module._modules.items()
    )


def _never_drops(module: nn.Module) -> bool:
    return getattr(module, "p", 1.0) == 0


def _norm(name: str, module: nn.BatchNorm1d) -> Norm:
    return Norm(
        name,
        module.get_buffer("running_mean").detach(),
        (module.get_buffer("running_var").detach() + module.eps).rsqrt(),
        module.weight.detach() if module.affine else None,
        module.bias.detach() if module.affine else None,
        module,
    )


def stack_perceptrons(models: Sequence[Sequence[Step]]) -> tuple[Step, ...] | None:
    """Stack the steps of networks of one shape along a new first dimension.

    Shapes: returns ``(M, ...)``.
    """
    if len({len(steps) for steps in models}) != 1:
        return None
    stacked = [_stack_column(column) for column in zip(*models, strict=True)]
    found = tuple(step for step in stacked if step is not None)
    return found if len(found) == len(stacked) else None


def _stack_column(column: tuple[Step, ...]) -> Step | None:
    """Stack one step of all networks."""
    head = column[0]
    if isinstance(head, Slope):
        same = all(
            isinstance(step, Slope)
            and type(step.module) is type(head.module)
            and step.module.extra_repr() == head.module.extra_repr()
            for step in column
        )
        return head if same else None
    fields: dict[str, Tensor | None] = {}
    for name in step_tensors(head):
        parts = [getattr(step, name) for step in column if type(step) is type(head)]
        tensors = [part for part in parts if part is not None]
        if len(parts) != len(column) or len(tensors) not in (0, len(column)):
            return None
        if len({(part.shape, part.dtype, part.device) for part in tensors}) > 1:
            return None
        fields[name] = torch.stack(tensors) if tensors else None
    if any(step.name != head.name for step in column):
        return None
    return replace(head, **fields)  # type: ignore[arg-type]


def slice_perceptrons(steps: Sequence[Step], low: int, high: int) -> tuple[Step, ...]:
    """Take networks ``low`` to ``high`` of a stack."""

    def taken(step: Step) -> Step:
        tensors = {name: getattr(step, name) for name in step_tensors(step)}
        cut = {name: None if part is None else part[low:high] for name, part in tensors.items()}
        return replace(step, **cut)  # type: ignore[arg-type]

    return tuple(taken(step) for step in steps)


def step_tensors(step: Step) -> tuple[str, ...]:
    """Name a step's fields that hold tensors."""
    if isinstance(step, Slope):
        return ()
    return (
        ("weight", "bias") if isinstance(step, Dense) else ("mean", "inverse_sd", "gain", "shift")
    )


def fold_norms(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Replace every linear layer followed by an eval-mode BatchNorm by one linear layer.

    With ``s = gain / sqrt(var + eps)``: ``W' = diag(s) W`` and ``b' = shift + s (b - mean)``. A
    BatchNorm that follows no linear layer stays.
    """
    folded: list[Step] = []
    for step in steps:
        before = folded[-1] if folded else None
        if isinstance(step, Norm) and isinstance(before, Dense):
            scale = step.scale
            bias = -step.mean if before.bias is None else before.bias - step.mean
            shifted = scale * bias
            folded[-1] = Dense(
                before.name,
                scale.unsqueeze(-1) * before.weight,
                shifted if step.shift is None else shifted + step.shift,
            )
        else:
            folded.append(step)
    return tuple(folded)


def derivatives(
    slopes: Sequence[Slope], z: Tensor, *, second: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return ``s(z)``, ``s'(z)`` and ``s''(z)`` of activations one after the other."""
    if not slopes:
        return z, None, None
    if len(slopes) == 1 and not slopes[0].smooth:
        return slopes[0].forward(z), slopes[0].slope(z), None
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = leaf
        for step in slopes:
            value = step.forward(value)
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=second)
        bend: Tensor | None = None
        if second and slope.requires_grad:
            (found,) = torch.autograd.grad(slope.sum(), leaf, allow_unused=True)
            if found is not None and bool(found.any()):
                bend = found.detach()
    return value.detach(), slope.detach(), bend
