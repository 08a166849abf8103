"""Reading which side of its kink every hidden unit is on, in order of execution.

A torch-function mode sees every activation the way the forward pass runs it: modules
(``nn.ReLU``, ``nn.LeakyReLU``, ``nn.PReLU``, ...) and plain calls (``F.relu(x)``,
``x.relu()``, ``x.clamp(min=0)``, ``torch.maximum(x, zeros)``) alike, a module that is
used twice counted twice. Nothing is attached to the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from invariance.core._activations import BY_CALL
from invariance.core._errors import MeasureError
from invariance.core._forward import run
from invariance.core._modules import in_train_mode

#: Why the patterns of other activations are refused.
_SMOOTH = "is not piecewise linear, so its units have no regions"
_THREE = "has more than two linear pieces, so one bit a unit does not name its region"
_ELSEWHERE = "has its kink elsewhere than at zero, so the sign does not name its region"

_DROPOUT_CALLS = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
)


@dataclass(frozen=True)
class ActivationLayer:
    """One activation in the forward pass.

    Attributes:
        index: Position among all activations, in order of execution, from 0.
        kind: The activation's name, for example ``"relu"``.
        shape: Shape of its input for one row.
        refused: Why its patterns cannot be counted; empty when they can.
    """

    index: int
    kind: str
    shape: tuple[int, ...]
    refused: str = ""

    @property
    def units(self) -> int:
        """Number of units (channels times positions) for one row."""
        return functools.reduce(lambda a, b: a * b, self.shape, 1)

    def __str__(self) -> str:
        return f"{self.index}: {self.kind} of {' x '.join(map(str, self.shape)) or '1'}"


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not bool(value.detach().count_nonzero())
    return isinstance(value, (int, float)) and value == 0


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _rectified(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a generic call (clamp, threshold, maximum) is a ReLU in disguise."""
    if name in {"clamp", "clip"}:
        low, high = _argument(args, kwargs, 1, "min"), _argument(args, kwargs, 2, "max")
        return low is not None and high is None and _is_zero(low)
    if name == "clamp_min":
        return _is_zero(_argument(args, kwargs, 1, "min"))
    if name == "threshold":
        level, value = _argument(args, kwargs, 1, "threshold"), _argument(args, kwargs, 2, "value")
        return _is_zero(level) and _is_zero(value)
    if name == "maximum" or (name == "max" and isinstance(_argument(args, kwargs, 1, ""), Tensor)):
        return any(_is_zero(value) for value in (*args, *kwargs.values()))
    return False


def _source(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """The pre-activation among a call's arguments: the first tensor that is not all zero."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if len(tensors) > 1 and _is_zero(tensors[0]):
        return tensors[1] if tensors[1].numel() >= tensors[0].numel() else tensors[0]
    return tensors[0] if tensors else None


def _classify(
    call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[str, str] | None:
    """Name the activation that ``call`` is, and why it is refused, if it is one."""
    name = getattr(call, "__name__", "").strip("_")
    if _rectified(name, args, kwargs):
        return "relu", ""
    known = BY_CALL.get(name)
    if name == "glu":  # of two entries at a time: in no table of elementwise functions
        return name, _SMOOTH
    if known is None or not known.modules:  # plain arithmetic
        return None
    if known.kinks is None:
        return name, _SMOOTH
    if name == "threshold":
        return name, _ELSEWHERE
    return name, "" if known.kinks == (0.0,) else _THREE


class _Watch(TorchFunctionMode):
    """Calls ``seen(layer index, kind, refusal, input)`` at every activation."""

    def __init__(self, seen: Callable[[int, str, str, Tensor], None]) -> None:
        super().__init__()
        self.seen = seen
        self.count = 0
        self.largest = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUT_CALLS and _argument(args, kwargs, 2, "training") is not False:
            raise MeasureError(
                f"The forward pass calls {func.__name__} in training mode, so its activations "
                "are random. Pass training=self.training and call model.eval() first."
            )
        kind = _classify(func, args, kwargs)
        if kind is not None:
            source = _source(args, kwargs)
            if source is not None and source.is_floating_point():
                # Look before the call: it may work in place.
                self.seen(self.count, *kind, source)
                self.count += 1
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


def require_eval(model: nn.Module) -> None:
    """Refuse a model whose forward pass depends on the batch or on chance."""
    name = in_train_mode(model)
    if name is not None:
        raise MeasureError(
            f"Submodule {name!r} is in train mode, where the network is a different function "
            "of each batch. Call model.eval() first."
        )


@contextmanager
def watching(seen: Callable[[int, str, str, Tensor], None]) -> Iterator[_Watch]:
    """Report every activation that runs inside the block, without tracking gradients."""
    with torch.no_grad(), _Watch(seen) as watch:
        yield watch


def activation_layers(model: nn.Module, example_input: Tensor) -> tuple[ActivationLayer, ...]:
    """List the activations of ``model`` in the order in which they run.

    Args:
        model: Any module in eval mode; it is not modified.
        example_input: A batch that the model accepts, rows first.

    Returns:
        One :class:`ActivationLayer` for each activation call. ``layer=-1`` of the
        measures is the last one. Softmax and pooling are not activations. An activation
        written as arithmetic, ``x * (x > 0)``, cannot be seen.

    Raises:
        MeasureError: If the model is in train mode where that matters.

    Example:
        A perceptron with one hidden layer of two units has one.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> [layer.shape for layer in inv.weakness.activation_layers(model, torch.eye(2).double())]
        [(2,)]
    """
    require_eval(model)
    layers: list[ActivationLayer] = []

    def note(index: int, kind: str, refused: str, source: Tensor) -> None:
        layers.append(ActivationLayer(index, kind, tuple(source.shape[1:]), refused))

    with watching(note):
        run(model, example_input)
    return tuple(layers)


def pick_layer(layers: Sequence[ActivationLayer], layer: int) -> ActivationLayer:
    """Return the activation ``layer`` (negative counts from the end), or say why not."""
    if not layers:
        raise MeasureError(
            "This module runs no activation that could be recognised, so it has no activation "
            "patterns. Use nn.ReLU, F.relu, nn.LeakyReLU, nn.PReLU or x.clamp(min=0)."
        )
    if not -len(layers) <= layer < len(layers):
        listing = "; ".join(map(str, layers))
        raise MeasureError(
            f"layer={layer} does not exist: the module has {len(layers)} activation layers "
            f"({listing}). Give an index between {-len(layers)} and {len(layers) - 1}."
        )
    chosen = layers[layer]
    if chosen.refused:
        usable = [str(entry) for entry in layers if not entry.refused]
        hint = f"Layers that can be counted: {'; '.join(usable)}." if usable else "It has no other."
        raise MeasureError(
            f"Activation layer {layer} is {chosen.kind!r}, which {chosen.refused}. {hint}"
        )
    return chosen
