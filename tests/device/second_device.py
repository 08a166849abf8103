"""A second device on every machine: tensors that say ``meta`` and compute on the CPU.

A :class:`Far` tensor refuses to meet a plain CPU tensor that has a dimension, as tensors of two
devices do, and refuses ``.numpy()``. Inside :class:`SecondDevice` factories that name the device
make such tensors, ``.to(device)`` and ``.cpu()`` move between the two, and everything that makes
the host wait (``.item()``, ``bool()``, ``.cpu()``, ``.tolist()``) is counted. So code that runs
under it with the CPU's results would run on a GPU too, but for the kernels that PyTorch lacks.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")

#: What makes the host wait for the device.
_SYNCS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")


class MixedDevices(RuntimeError):
    """An operation met tensors of both devices."""


class Far(torch.Tensor):
    """A tensor on the second device; ``inner`` holds its numbers on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        far.inner = inner.detach()
        return far

    @property
    def is_meta(self):
        return False  # it has values

    def data_ptr(self):
        return self.inner.data_ptr()

    def __repr__(self):
        return f"Far({self.inner!r})"

    def __deepcopy__(self, memo):
        # As torch.Tensor's own, which reads the storage of leaves.
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            copied = Far(self.inner.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def numpy(self, *, force=False):
        raise TypeError("cannot convert a tensor of the second device to numpy; use .cpu() first")

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _is(tensor):
    return isinstance(tensor, Far)


class _Constructors(TorchFunctionMode):
    """``torch.tensor`` and ``torch.as_tensor``, which make their tensor before any dispatch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        named = kwargs.get("device")
        made = func in (torch.tensor, torch.as_tensor, torch.asarray) and named is not None
        if made and torch.device(named) == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class SecondDevice(TorchDispatchMode):
    """While it is entered, the device exists. ``syncs`` counts by operation what made it wait."""

    current: SecondDevice | None = None

    def __init__(self):
        super().__init__()
        self.syncs: Counter[str] = Counter()

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        self._stack.enter_context(_Constructors())
        SecondDevice.current = self
        return super().__enter__()

    def __exit__(self, *error):
        SecondDevice.current = None
        self._stack.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        named = kwargs.get("device")
        asked = named is not None and torch.device(named) == DEVICE
        if asked or any(map(_is, flat)):
            return _compute(func, args, kwargs)
        return func(*args, **kwargs)


def _count(name):
    if SecondDevice.current is not None:
        SecondDevice.current.syncs[name] += 1


def _compute(func, args, kwargs):
    """Run an operation of the second device on the CPU, after the checks a device makes."""
    name = func._schema.name.split("::")[1]
    flat, spec = tree_flatten((args, kwargs))
    moves = name in ("_to_copy", "copy_", "_copy_from")
    # A device takes plain scalars (tensors without dimensions), and indices from the host.
    plain = [t for t in flat if isinstance(t, torch.Tensor) and not _is(t) and t.dim() > 0]
    if (
        plain
        and any(map(_is, flat))
        and not moves
        and name not in ("index", "index_put", "index_put_", "_index_put_impl_")
    ):
        raise MixedDevices(
            f"aten::{name} met a tensor of the second device and one of the CPU of shape "
            f"{tuple(plain[0].shape)}"
        )
    if any(t.is_meta for t in flat if isinstance(t, torch.Tensor) and not _is(t)):
        raise MixedDevices(f"aten::{name} met a meta tensor that was made out of sight")
    if name in _SYNCS:
        _count(name)
    named = kwargs.get("device")
    inner = tree_unflatten([t.inner if _is(t) else t for t in flat], spec)
    inner_args, inner_kwargs = inner
    if named is not None and torch.device(named) == DEVICE:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    if name == "_efficientzerotensor":  # a wrapper cannot be one of those
        size = inner_args[0]
        keep = {k: v for k, v in inner_kwargs.items() if k in ("dtype", "device")}
        return Far(torch.zeros(size, **keep))
    if name == "_to_copy":
        out = func(*inner_args, **inner_kwargs)
        leaves = named is not None and torch.device(named) != DEVICE
        if leaves and _is(args[0]):
            _count("to the host")
        return out if leaves or (named is None and not _is(args[0])) else Far(out)
    if name in ("copy_", "_copy_from") and not _is(args[0]):
        _count("to the host")
        func(*inner_args, **inner_kwargs)
        return args[0]
    out = func(*inner_args, **inner_kwargs)
    wrapped = tree_map(lambda t: Far(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def send(thing):
    """Copy a model, tensor or tuple of tensors to the second device."""
    if isinstance(thing, torch.nn.Module):
        import copy

        copied = copy.deepcopy(thing)
        for module in copied.modules():
            for key, value in list(module._parameters.items()):
                if value is not None:
                    module._parameters[key] = torch.nn.Parameter(
                        Far(value.detach().clone()), value.requires_grad
                    )
            for key, value in list(module._buffers.items()):
                if value is not None:
                    module._buffers[key] = Far(value.detach().clone())
        return copied
    if isinstance(thing, torch.Tensor):
        return Far(thing.detach().clone())
    return type(thing)(map(send, thing))


def fetch(thing):
    """The numbers of a tensor of the second device, uncounted."""
    return thing.inner if _is(thing) else thing
