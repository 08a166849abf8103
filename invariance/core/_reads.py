"""Which of some tensors a computation reads, and whether its result depends on their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

#: How far a tensor is moved when it is asked whether a value depends on it.
_MOVE = 2.0**-7


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, notes which of some tensors (or views of them) operations read.

    Attributes:
        names: What was read, in the order in which it was.
    """

    def __init__(self, watched: Mapping[str, Tensor], *, moved: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._named = {_place(tensor): name for name, tensor in watched.items()}
        self._named.pop(0, None)
        self._moved = moved
        self.names: dict[str, None] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map_only(Tensor, self._note, (args, dict(kwargs or {})))
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor) -> Tensor:
        name = self._named.get(_place(tensor))
        if name is None:
            return tensor
        self.names[name] = None
        if not (self._moved and tensor.is_floating_point()):
            return tensor
        return tensor * (1 + _MOVE) + _MOVE


def _place(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; 0 if they lie nowhere (meta, fake, sparse tensors)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``model`` by name, detached."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def left_behind(copy: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``original`` that ``copy`` has no business to read."""
    own = {_place(tensor) for tensor in state_of(copy).values()}
    return {name: t for name, t in state_of(original).items() if _place(t) not in own}


class Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, notes into which narrower floating dtype tensors are cast.

    Attributes:
        dtype: The narrowest; ``None`` while nothing was cast to fewer bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype: torch.dtype | None = None

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        source = args[0] if args else None
        if func is torch.ops.aten._to_copy.default and isinstance(source, Tensor):
            both = source.is_floating_point() and out.is_floating_point()
            narrowest = source.dtype if self.dtype is None else self.dtype
            if both and out.dtype.itemsize < min(source.dtype.itemsize, narrowest.itemsize):
                self.dtype = out.dtype
        return out
