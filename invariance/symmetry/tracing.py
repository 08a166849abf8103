"""Read a module's graph by running it once and watching every torch function that it calls.

A :class:`torch.overrides.TorchFunctionMode` sees modules, functionals, operators, methods and
in-place forms alike, with concrete shapes, so loops, assertions and branches on shapes or on
configuration need no special care (symbolic tracing fails on them). What it cannot see is a
decision that depends on the data: that raises a :class:`TracingError` naming the line.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from invariance.core.errors import TracingError

_TORCH = os.path.dirname(torch.__file__)
_HERE = os.path.dirname(os.path.abspath(__file__))

#: Functions that turn the data into a Python value, on which the program may then branch.
_READS_DATA = frozenset(
    {
        "__bool__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__",
        "numpy", "__array__", "equal", "allclose", "is_nonzero", "__contains__", "nonzero",
        "unique", "masked_select", "__format__",
    }
)  # fmt: skip
#: Of these, what is merely printed or returns a tensor of data-dependent shape.
_ATTRIBUTE_GETTERS = "__get__"


@dataclass(frozen=True)
class Place:
    """Where an operation was called.

    Attributes:
        module: Qualified name of the innermost module (``""`` for the root).
        kind: Its class, if it is one of ``torch.nn``; else ``None``.
        line: ``file.py:123`` of the user's code.
    """

    module: str
    kind: type[nn.Module] | None
    line: str

    def __str__(self) -> str:
        if self.kind is not None and self.module:
            return self.module
        return f"{self.module} ({self.line})" if self.module else self.line


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a torch function.

    Attributes:
        function: The function object.
        name: Its name, without the underscore of in-place forms' ends.
        args: Positional arguments.
        kwargs: Keyword arguments.
        out: What it returned.
        place: Where it was called.
        node: Number of the call.
        in_place: Whether it overwrites its first argument.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    place: Place
    node: int
    in_place: bool

    @property
    def operation(self) -> str:
        """The operation as a reader knows it: the module's class, or the function."""
        kind = self.place.kind
        return kind.__name__ if kind is not None else self.name

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dictionaries."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, Mapping):
        for entry in structure.values():
            yield from tensors_in(entry)
    elif isinstance(structure, (tuple, list)):
        for entry in structure:
            yield from tensors_in(entry)


class _Watcher(TorchFunctionMode):
    """Hands every torch function that touches tensors to ``handle``."""

    def __init__(
        self, handle: Callable[[Call], None], tracked: Callable[[Tensor], bool], stack: list[Any]
    ) -> None:
        super().__init__()
        self.handle = handle
        self.tracked = tracked
        self.stack = stack
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == _ATTRIBUTE_GETTERS:
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in _READS_DATA and any(self.tracked(t) for t in tensors_in((args, kwargs))):
            raise TracingError(
                f"The forward pass reads the data itself ({name}) at {_user_line()}, so its "
                "graph depends on the input and cannot be analysed. Replace the Python decision "
                "by tensor operations (torch.where), or move it out of forward."
            )
        out = func(*args, **kwargs)
        if next(tensors_in(out), None) is None and name != "__setitem__":
            return out
        self.count += 1
        module, kind = self.stack[-1] if self.stack else ("", None)
        in_place = (name.endswith("_") and not name.endswith("__")) or (
            name.startswith("__i") and name not in ("__invert__", "__init__", "__iter__")
        )
        call = Call(
            func, name, args, kwargs, out, Place(module, kind, _user_line()), self.count, in_place
        )
        self.handle(call)
        return out


def _user_line() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith((_TORCH, _HERE)):
            return f"{os.path.basename(filename)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "<unknown line>"


@contextmanager
def _module_stack(
    model: nn.Module, last: list[str]
) -> Iterator[list[tuple[str, type[nn.Module] | None]]]:
    """Follow which submodule is running, through global hooks that leave with the block.

    Args:
        model: The module that will run.
        last: Kept up to date with the name of the submodule that was entered last.

    Yields:
        The stack of running submodules: name, and class if it is one of ``torch.nn``.
    """
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[tuple[str, type[nn.Module] | None]] = []
    thread = threading.get_ident()

    def enter(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread and id(module) in names:
            kind = type(module)
            whole = kind is nn.MultiheadAttention or not module._modules
            leaf = kind.__module__.startswith("torch.nn") and kind is not nn.Module and whole
            stack.append((names[id(module)], kind if leaf else None))
            last[:] = [names[id(module)] or type(model).__name__]

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if threading.get_ident() == thread and id(module) in names and stack:
            stack.pop()

    handles = [
        module_hooks.register_module_forward_pre_hook(enter),
        module_hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def watch(
    model: nn.Module,
    inputs: tuple[Any, ...],
    handle: Callable[[Call], None],
    tracked: Callable[[Tensor], bool],
) -> Any:
    """Run ``model`` once and hand every torch function call to ``handle``.

    Args:
        model: A module that may be run (a clone: a forward pass can have side effects).
        inputs: Positional arguments for it.
        handle: Called after every function that returns a tensor.
        tracked: Says whether a tensor depends on the input or on a parameter.

    Returns:
        The model's output.

    Raises:
        TracingError: If the forward pass fails, or decides on the data; names the line.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    last: list[str] = []
    with _module_stack(model, last) as stack, torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with _Watcher(handle, tracked, stack):
                return model(*inputs)
        except TracingError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            from invariance.core.errors import InvarianceError

            if isinstance(error, InvarianceError):
                raise
            where = "".join(f"`{name}`" for name in last) + _failing_line(error)
            raise TracingError(
                f"The module failed on the example input in {where}: {error}. Pass an "
                "example_input that model(example_input) accepts."
            ) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _failing_line(error: BaseException) -> str:
    trace = error.__traceback__
    line = ""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith((_TORCH, _HERE)):
            line = f" at {os.path.basename(filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line
