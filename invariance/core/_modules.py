"""Helpers that read a module without leaving a trace on it."""

from __future__ import annotations

import copy
import fnmatch
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pickle import PickleError
from types import CellType, FunctionType, MethodType

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError, ModelError, UsageError, unknown_name

#: The modules that hold a weight matrix or kernel: "weight layers" everywhere here.
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def require_module(model: object, needed: str = "Expected an nn.Module as the model") -> nn.Module:
    """Refuse what is no module where a model is meant."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"{needed}. {no_module(model)}")
    return model


def no_module(model: object) -> str:
    """Say what was given in a module's place, and what to give."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"Got the class {model.__name__}; call it: {model.__name__}(...)."
    remedy = ""
    if isinstance(getattr(model, "model", None), nn.Module):
        remedy = "; take its .model"
    elif isinstance(model, torch.export.ExportedProgram):
        remedy = "; pass the module that it was exported from"
    return f"Got {type(model).__name__}{remedy}."


def floating_dtype(dtype: object) -> torch.dtype:
    """Return a floating-point type given as such or by its name, such as ``"float64"``."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(
            f"dtype must be a floating-point type, such as torch.float64. Got {dtype!r}."
        )
    return found


def clone(model: nn.Module) -> nn.Module:
    """Return an independent deep copy of ``model`` without its gradients.

    A tensor that was computed from parameters and kept (as pruning keeps its masked weight until
    the next pass computes it anew) is copied as the numbers it holds.
    """
    require_module(model)
    # deepcopy refuses non-leaf tensors and copies gradients: hide the latter meanwhile.
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in grads:
            parameter.grad = None
        return _Copier(model).module(model)
    except (RuntimeError, TypeError, PickleError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}), and a measure never works on "
            "your own module. Make it deep-copyable: a scripted function, a lock or an open file "
            "can be held by the class instead of the instance."
        ) from error
    finally:
        for parameter, grad in grads:
            parameter.grad = grad


class _Copier:
    """What ``copy.deepcopy`` does, four times as fast for modules that copy the default way.

    Most of its time goes into a dozen empty dictionaries of hooks that every module has. And
    what ``copy.deepcopy`` takes for constants, functions that hold the module in a closure or a
    default (a ``forward`` or a hook that was set on the instance), is bound to the copy here:
    otherwise the copy would compute with the original's parameters.
    """

    def __init__(self, root: nn.Module) -> None:
        self.memo: dict[int, object] = {}
        self._inside = {
            id(entry) for entry in (*root.modules(), *root.parameters(), *root.buffers())
        }

    def module(self, module: nn.Module) -> nn.Module:
        """Copy one module with all below it."""
        kind = type(module)
        if id(module) in self.memo or not _copies_by_default(kind):
            return copy.deepcopy(module, self.memo)
        new = kind.__new__(kind)
        self.memo[id(module)] = new
        state: dict[str, object] = {}
        for name, value in module.__dict__.items():
            if name == "_compiled_call_impl":  # it would run the original (nn.Module.compile)
                continue
            if name == "_modules":
                state[name] = type(value)(
                    (key, child if child is None else self.module(child))
                    for key, child in value.items()
                )
            elif type(value) in _IMMUTABLE:
                state[name] = value
            elif type(value) in _EMPTIED and not value and id(value) not in self.memo:
                state[name] = self.memo[id(value)] = type(value)()
            elif name in _HOOKS and id(value) not in self.memo:
                rebound = ((key, self._value(hook)) for key, hook in value.items())
                state[name] = self.memo[id(value)] = type(value)(rebound)
            else:
                state[name] = self._value(value)
        new.__setstate__(state)  # type: ignore[no-untyped-call]
        return new

    def _value(self, value: object) -> object:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType) and id(value.__self__) in self._inside:
            return self._held(value)
        if isinstance(value, Tensor) and not value.is_leaf:
            self.memo[id(value)] = value.detach().clone()
        return copy.deepcopy(value, self.memo)

    def _function(self, function: FunctionType) -> FunctionType:
        """Bind to the copy whatever of the module a function holds; itself if that is nothing."""
        if id(function) in self.memo:
            return self.memo[id(function)]  # type: ignore[return-value]
        self.memo[id(function)] = function  # a function may hold itself
        cells = function.__closure__ or ()
        defaults, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
        old = [*map(_contents, cells), *defaults, *keywords.values()]
        new = [self._held(value) for value in old]
        if all(mine is theirs for mine, theirs in zip(new, old, strict=True)):
            return function
        # An empty cell stands for itself.
        closure = tuple(v if isinstance(v, CellType) else CellType(v) for v in new[: len(cells)])
        positional = tuple(new[len(cells) : len(cells) + len(defaults)])
        code, scope = function.__code__, function.__globals__
        made = FunctionType(code, scope, function.__name__, positional or None, closure)
        made.__kwdefaults__ = dict(zip(keywords, new[len(cells) + len(defaults) :], strict=True))
        made.__dict__.update(function.__dict__)
        self.memo[id(function)] = made
        return made

    def _held(self, value: object) -> object:
        if isinstance(value, FunctionType):
            return self._function(value)
        owner = value.__self__ if isinstance(value, MethodType) else value
        if id(owner) not in self._inside:
            return value
        new: object
        if isinstance(owner, nn.Module):
            new = self.module(owner)
        else:
            new = copy.deepcopy(owner, self.memo)
        return MethodType(value.__func__, new) if isinstance(value, MethodType) else new


def _contents(cell: CellType) -> object:
    """What a closure's cell holds; the cell itself while it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


_IMMUTABLE = (bool, int, float, str, type(None))
_EMPTIED = (dict, OrderedDict, set, list)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _copies_by_default(kind: type[nn.Module]) -> bool:
    """True if neither the class nor a base but nn.Module says how it is copied or pickled."""
    hooks = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs_ex__")
    return (
        not any(hasattr(base, "__slots__") for base in kind.__mro__ if base is not object)
        and kind.__setstate__ is nn.Module.__setstate__
        and not hasattr(kind, "__getnewargs__")
        and all(getattr(kind, hook, None) is getattr(nn.Module, hook, None) for hook in hooks)
    )


def computes_as_its_class(module: nn.Module) -> bool:
    """Whether calling ``module`` runs its class's ``forward`` and nothing else."""
    own = any(vars(module)[hooks] for hooks in _HOOKS)
    return not (own or "forward" in vars(module) or has_global_hooks())


def has_global_hooks() -> bool:
    """Whether a hook is registered that acts on every module there is."""
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put ``model`` in eval mode inside the block, and every submodule back after it."""
    require_module(model)
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield model
    finally:
        for module, flag in flags:
            module.training = flag


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the weight layers (linear and convolutional) in registration order.

    Shapes: returns ``(qualified name, module)``.
    """
    require_module(model)
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, WEIGHT_LAYERS)
    ]


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer (CPU when there is none)."""
    require_module(model)
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter or buffer (else the default)."""
    require_module(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


#: The modules whose train mode is another function: batch statistics, random masks.
TRAIN_MODE_MATTERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
)


def in_train_mode(
    model: nn.Module, kinds: tuple[type[nn.Module], ...] = TRAIN_MODE_MATTERS
) -> str | None:
    """Name the first submodule of one of ``kinds`` that is in train mode, if any.

    A dropout that drops nothing does not count.
    """
    require_module(model)
    for name, module in model.named_modules():
        share = getattr(module, "p", getattr(module, "dropout", 1.0))
        if isinstance(module, kinds) and module.training and share != 0:
            return name or type(module).__name__
    return None


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in for parameters of ``dtype``: never less than float32.

    Half precision rounds small perturbations away, and has no decompositions.
    """
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32


def lifted(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Return ``model``, or a copy that computes with its parameters in a wider ``dtype``.

    The dtype is that of :func:`computing_dtype` by default. A device without float64 hands over
    to the CPU.
    """
    own = model_dtype(model)
    wide = computing_dtype(own) if dtype is None else dtype
    if wide == own:
        return model
    copied = clone(model)
    if wide == torch.float64 and model_device(copied).type == "mps":
        copied = copied.cpu()
    copied = copied.to(wide)
    # A weak reference stays what it is in copies of the copy, and keeps nothing alive.
    copied.__dict__["lifted_from"] = weakref.ref(origin(model))
    return copied


def origin(model: nn.Module) -> nn.Module:
    """Return the module whose parameters :func:`lifted` copied; itself if it is no such copy."""
    found = vars(model).get("lifted_from")
    return model if found is None else found() or model


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite.

    NaN and infinity survive summation, so a finite sum settles it in one pass (several
    times faster than ``isfinite``); a sum that is not finite may have overflowed, and only
    then are the entries looked at one by one.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    total = tensor.detach().sum()
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def require_deterministic(model: nn.Module) -> None:
    """Refuse a model whose output in its present mode is random or depends on the batch."""
    name = in_train_mode(model)
    if name is not None:
        kind = type(dict(model.named_modules()).get(name, model)).__name__
        raise ModelError(
            f"{kind} {name!r} is in train mode, where the function depends on the batch or on "
            "chance. Call model.eval() first."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"BatchNorm {name!r} keeps no running statistics, so it uses the batch's even in "
                "eval mode. Build it with track_running_stats=True."
            )
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise ModelError(
                f"Parameter {name!r} contains NaN or infinity: training diverged. "
                "Curvature is not defined there."
            )


def parameter_names(
    model: nn.Module, parameters: Iterable[str | nn.Module] | nn.Module | None = None
) -> tuple[str, ...]:
    """Choose parameters by names, patterns of them (``"*.bias"``), modules' names or modules.

    A pattern has ``*``, ``?`` or ``[``, and must match the name of some parameter.
    """
    require_module(model)
    unique = dict(model.named_parameters())
    frozen = [name for name, parameter in unique.items() if not parameter.requires_grad]
    if parameters is None:
        chosen = [name for name in unique if name not in frozen]
    else:
        wanted: list[str | nn.Module] = (
            [parameters] if isinstance(parameters, str | nn.Module) else list(parameters)
        )
        chosen = _resolve_names(model, unique, wanted)
    if not chosen:
        raise MeasureError(
            "There is no parameter to differentiate. "
            + (
                f"All of {', '.join(frozen)} are frozen; name them in parameters= to include them."
                if frozen
                else f"{type(model).__name__} has none."
            )
        )
    return tuple(chosen)


def _resolve_names(
    model: nn.Module, unique: Mapping[str, nn.Parameter], wanted: Sequence[str | nn.Module]
) -> list[str]:
    """Turn names, patterns and modules into first names, in model order."""
    first = {id(parameter): name for name, parameter in unique.items()}
    aliases = {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    picked: set[str] = set()
    for entry in wanted:
        name = _module_name(model, entry) if isinstance(entry, nn.Module) else entry
        if name in aliases:
            picked.add(aliases[name])
        elif name in modules:
            prefix = f"{name}." if name else ""
            inside = {full for alias, full in aliases.items() if alias.startswith(prefix)}
            if not inside:
                raise MeasureError(f"Module {name!r} has no parameters. Name another in it.")
            picked |= inside
        elif matching := {aliases[alias] for alias in fnmatch.filter(aliases, name)}:
            picked |= matching
        else:
            raise unknown_name("parameter", name, [*aliases, *sorted(modules - {""})])
    return [name for name in unique if name in picked]


def _module_name(model: nn.Module, module: nn.Module) -> str:
    """The name of a module of the model."""
    names: dict[int, str] = {id(found): name for name, found in model.named_modules()}
    if id(module) in names:
        return names[id(module)]
    raise MeasureError(
        f"parameters= holds a {type(module).__name__} that is no module of this "
        f"{type(model).__name__}. Give its name, as model.named_modules() lists it."
    )


def autocasting(device: str) -> bool:
    """Whether ``torch.autocast`` is in force for a kind of device; some kinds have none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch off whatever ``torch.autocast`` is in force around the block.

    Autocast rounds the operands of every matrix product to half precision: those of a model,
    and those of the measure itself.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if autocasting(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
