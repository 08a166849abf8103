"""The steps of a multilayer perceptron, read off its modules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Dense:
    """A linear layer: ``weight`` is ``(*lead, out, in)``, ``bias`` ``(*lead, out)``."""

    name: str
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Norm:
    """An eval-mode BatchNorm: ``gain * (z - mean) * inverse_sd + shift``, all ``(*lead, d)``."""

    name: str
    mean: Tensor
    inverse_sd: Tensor
    gain: Tensor | None
    shift: Tensor | None


@dataclass(frozen=True)
class Slope:
    """An elementwise activation: piecewise linear, or twice differentiable (``smooth``)."""

    name: str
    module: nn.Module

    @property
    def smooth(self) -> bool:
        """Whether its second derivative does not vanish."""
        return isinstance(self.module, SMOOTH)


Step = Dense | Norm | Slope

#: Elementwise, piecewise-linear activations whose slope is read off their input.
PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh)

#: Elementwise smooth activations, which autograd differentiates twice.
SMOOTH = (
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Mish,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Tanhshrink,
    nn.Hardswish,
)
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.AlphaDropout)


def parse_mlp(model: nn.Module) -> list[Step] | None:
    """Read a sequential network of linear layers, BatchNorm and elementwise activations.

    Args:
        model: Any module, in the mode in which it is to be measured.

    Returns:
        The steps from input to output, or ``None`` if the network is anything else
        (other layers, hooks, shared modules, a forward method of its own).
    """
    leaves = _leaves(model, "")
    if leaves is None or len({id(module) for _, module in leaves}) != len(leaves):
        return None
    parameters = [p for _, module in leaves for p in module.parameters(recurse=False)]
    if len({id(p) for p in parameters}) != len(parameters):
        return None
    steps: list[Step] = []
    for name, module in leaves:
        kind = type(module)  # exact types: a subclass may compute something else
        if kind is nn.Linear and isinstance(module, nn.Linear):
            bias = None if module.bias is None else module.bias.detach()
            steps.append(Dense(name, module.weight.detach(), bias))
        elif kind is nn.BatchNorm1d and isinstance(module, nn.BatchNorm1d):
            if module.training or module.running_mean is None:
                return None
            steps.append(_norm(name, module))
        elif kind in PIECEWISE_LINEAR or kind in SMOOTH:
            steps.append(Slope(name, module))
        elif kind not in _TRANSPARENT and not (
            kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1
        ):
            return None
    return steps if any(isinstance(step, Dense) for step in steps) else None


def _leaves(module: nn.Module, name: str) -> list[tuple[str, nn.Module]] | None:
    """Flatten nested Sequentials; ``None`` where something could change the data flow."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module).forward is not nn.Sequential.forward:
        return [(name, module)] if next(module.children(), None) is None else None
    leaves: list[tuple[str, nn.Module]] = []
    for child_name, child in module.named_children():
        below = _leaves(child, f"{name}.{child_name}" if name else child_name)
        if below is None:
            return None
        leaves += below
    # named_children() skips a module that occurs twice: count what would really run.
    return leaves if len(list(module.named_children())) == len(module._modules) else None


def _norm(name: str, module: nn.BatchNorm1d) -> Norm:
    if module.running_mean is None or module.running_var is None:
        raise AssertionError("guarded by parse_mlp")
    return Norm(
        name,
        module.running_mean.detach(),
        (module.running_var.detach() + module.eps).rsqrt(),
        None if module.weight is None else module.weight.detach(),
        None if module.bias is None else module.bias.detach(),
    )
