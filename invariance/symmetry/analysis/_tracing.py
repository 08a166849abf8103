"""Read a module's graph by running it once and watching every torch function that it calls.

A :class:`torch.overrides.TorchFunctionMode` sees modules, functionals, operators, methods and
in-place forms alike, with concrete shapes, so loops, assertions and branches on shapes or on
configuration need no special care (symbolic tracing fails on them). What it cannot see is a
decision that depends on the data: that raises a :class:`TracingError` naming the line.

Some code computes behind the back of torch functions: TorchScript, ``vmap`` and ``grad``,
extensions. A :class:`~torch.utils._python_dispatch.TorchDispatchMode` underneath sees their
kernels, and hands over every one that reads a tensor of which the running function was not
given, so that it counts as an operation without a rule and not as nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from invariance.core._errors import InvarianceError, TracingError

_TORCH = os.path.dirname(torch.__file__)
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # all of symmetry

#: Functions that turn the data into a Python value, on which the program may then branch.
_READS_DATA = frozenset(
    {
        "__bool__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__",
        "numpy", "__array__", "equal", "allclose", "is_nonzero", "__contains__", "nonzero",
        "unique", "masked_select", "__format__", "__repr__", "__dlpack__", "untyped_storage",
        "storage", "data_ptr",
    }
)  # fmt: skip
#: Functions that change a tensor although they return none.
_WRITES = frozenset({"__setitem__", "__set__"})


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
        hidden: Whether it is a kernel that no torch function was seen to call.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    place: Place
    node: int
    in_place: bool
    hidden: bool = False

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


def all_tensors_in(structure: Any) -> list[Tensor]:
    """Return the tensors in whatever a module takes or returns, each once.

    Looks into collections, dataclasses and any other object's attributes (a cache, a
    distribution, a namespace), but not into modules, which hold parameters.
    """
    found: list[Tensor] = []
    seen: set[int] = set()
    held: list[Any] = []  # keeps temporaries alive, so that no two share an id

    def look(thing: Any) -> None:
        if (
            thing is None
            or isinstance(thing, (str, bytes, int, float, complex))
            or id(thing) in seen
        ):
            return
        seen.add(id(thing))
        held.append(thing)
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, Mapping):
            for entry in thing.values():
                look(entry)
        elif isinstance(thing, (Sequence, Set)):
            for entry in thing:
                look(entry)
        if isinstance(thing, (Tensor, nn.Module, type, ModuleType, FunctionType, MethodType)):
            return
        for entry in getattr(thing, "__dict__", {}).values():
            look(entry)
        for kind in type(thing).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                look(getattr(thing, slot, None))

    look(structure)
    return found


class Observer:
    """What is told about a forward pass; this one listens to nothing."""

    def see(self, call: Call) -> None:
        """Take note of a call that returned a tensor, or changed one."""

    def tracked(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the input or on a parameter."""
        del tensor
        return False

    def harmless(self, tensor: Tensor) -> bool:
        """Whether a tensor's entries may be read, for no parameter can move them."""
        del tensor
        return False

    def read(self, what: str) -> None:
        """Take note that the program read entries of harmless tensors."""


class _Watcher(TorchFunctionMode):
    """Hands every torch function that touches tensors to an observer."""

    def __init__(self, observer: Observer, stack: list[Any]) -> None:
        super().__init__()
        self.observer = observer
        self.stack = stack
        self.count = 0
        #: Whether a torch function is running, and what it was given.
        self.running = False
        self.given: frozenset[int] = frozenset()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        hidden = isinstance(func, torch._ops.OpOverload)
        if hidden:
            name = name.partition(".")[0]
        if name in ("__get__", "__set__"):  # of a property, whose name says more
            attribute = getattr(getattr(func, "__self__", None), "__name__", name)
            if name == "__get__" or attribute not in ("data", "real", "imag"):
                name = attribute
        operands = list(tensors_in((args, kwargs)))
        if name in _READS_DATA:
            self._reads(name, operands)
        self.running, self.given = True, frozenset(map(id, operands))
        try:
            out = func(*args, **kwargs)
        finally:
            self.running = False
        if next(tensors_in(out), None) is not None or name in _WRITES:
            self.tell(func, name, args, kwargs, out, hidden=hidden)
        return out

    def _reads(self, name: str, operands: list[Tensor]) -> None:
        read = [tensor for tensor in operands if self.observer.tracked(tensor)]
        if not read:
            return
        if not all(self.observer.harmless(tensor) for tensor in read):
            raise TracingError(
                f"The forward pass reads the data itself ({name}) at {_user_line()}, so its "
                "graph depends on the input and cannot be analysed. Replace the Python decision "
                "by tensor operations (torch.where), or move it out of forward."
            )
        self.observer.read(f"{name} at {_user_line()}")

    def tell(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
        *,
        hidden: bool,
    ) -> None:
        """Tell the observer of one call."""
        self.count += 1
        module, kind = self.stack[-1] if self.stack else ("", None)
        in_place = (name.endswith("_") and not name.endswith("__")) or (
            name.startswith("__i") and name not in ("__invert__", "__init__", "__iter__")
        )
        place = Place(module, None if hidden else kind, _user_line())
        self.observer.see(Call(func, name, args, kwargs, out, place, self.count, in_place, hidden))


class _Underneath(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands over the kernels that read a tensor which the running function was not given."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watcher = watcher

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        watcher = self.watcher
        # With no torch function running, calling a kernel by hand shows it to the watcher.
        out = func(*args, **kwargs)
        if watcher.running:
            given, tracked = watcher.given, watcher.observer.tracked
            if any(id(t) not in given and tracked(t) for t in tensors_in((args, kwargs))):
                name = func.__name__.partition(".")[0]
                watcher.tell(func, name, args, kwargs, out, hidden=True)
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
    """Follow which submodule is running, through global hooks that leave with the block."""
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


def watch(model: nn.Module, inputs: tuple[Any, ...], observer: Observer) -> Any:
    """Run ``model`` once and tell an observer of every torch function call."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    last: list[str] = []
    with _module_stack(model, last) as stack, torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        watcher = _Watcher(observer, stack)
        try:
            with _Underneath(watcher), watcher:
                return model(*inputs)
        except InvarianceError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
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
