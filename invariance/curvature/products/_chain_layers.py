"""Which modules are plain chains: Linear layers with elementwise functions between."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

#: Stateless elementwise functions, which a chain may have anywhere.
ELEMENTWISE = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Identity,
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
    nn.Hardtanh,
    nn.ReLU6,
    nn.Dropout,
)


@dataclass(frozen=True)
class ChainLayer:
    """One Linear layer and the elementwise functions after it.

    Attributes:
        weight: Name of the weight parameter.
        bias: Name of the bias, or ``None``.
        activation: The functions that follow, in order; empty for none.
    """

    weight: str
    bias: str | None
    activation: tuple[nn.Module, ...]


def read_chain(model: nn.Module) -> tuple[ChainLayer, ...] | None:
    """Read ``model`` as a chain of Linear layers, or return ``None`` if it is not one.

    Only exact types are accepted, without hooks, parametrisations or shared modules, so
    that the chain computes what ``forward`` computes.

    Args:
        model: Any module, in eval mode as far as that matters.

    Returns:
        The layers in order, or ``None``.
    """
    modules = _flatten_sequential(model, "")
    if modules is None:
        return None
    layers: list[ChainLayer] = []
    seen: set[int] = set()
    for prefix, module in modules:
        if _has_hooks(module):
            return None
        if type(module) is nn.Linear:
            if id(module) in seen or id(module.weight) in seen:
                return None
            seen |= {id(module), id(module.weight)}
            bias = None if module.bias is None else f"{prefix}bias"
            layers.append(ChainLayer(f"{prefix}weight", bias, ()))
        elif type(module) is nn.Flatten and not layers and module.start_dim == 1:
            continue
        elif type(module) in ELEMENTWISE and layers:
            last = layers[-1]
            layers[-1] = ChainLayer(last.weight, last.bias, (*last.activation, module))
        else:
            return None
    biases = [layer.bias for layer in layers if layer.bias]
    named = dict(model.named_parameters())
    known = [layer.weight for layer in layers] + biases
    if not layers or set(known) != set(named) or len({id(named[n]) for n in known}) != len(known):
        return None
    return tuple(layers)


def _flatten_sequential(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]] | None:
    if type(module) is not nn.Sequential:
        return None if list(module.children()) else [(prefix, module)]
    if _has_hooks(module):
        return None
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        inner = _flatten_sequential(child, f"{prefix}{name}.")
        if inner is None:
            return None
        found += inner
    # named_children() skips repetitions: a module that is used twice is not a chain.
    return found if len(list(module.named_children())) == len(module) else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
