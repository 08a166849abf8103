"""Other coordinates for the same network: a change of the measure, not of the point.

``theta = g(eta)`` leaves the function and the point alone and gives every derivative
another value, so it is not a symmetry: what moves is the coordinate system that a
non-covariant measure silently depends on (Dinh et al., 2017, section 5). The law and the
covariant trace are in :mod:`invariance.transforms._reparametrize_law`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invariance.core._applied import Applied
from invariance.core._errors import TransformError, unknown_name
from invariance.core._groups import Group
from invariance.core._modules import clone, weight_layers
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._verify import verify
from invariance.transforms._base import Transform
from invariance.transforms._reparametrize_maps import Coordinates, Dinh, ExpLog, WeightNorm

_NAMED: dict[str, type[WeightNorm] | type[ExpLog] | type[Dinh]] = {
    "weight_norm": WeightNorm,
    "exp": ExpLog,
    "dinh": Dinh,
}


class Reparametrize(Transform):
    """Write weights in other coordinates, through ``torch.nn.utils.parametrize``.

    Args:
        coordinates: ``"weight_norm"``, ``"exp"``, ``"dinh"``, or a :class:`Coordinates`:
            ``WeightNorm()``, ``ExpLog()``, ``Dinh(power, offset, center)`` or the user's
            own ``Diffeomorphism(decode, encode)``.
        only: Parameter names; ``None`` for the weight of every weight layer.
    """

    group: ClassVar[Group] = Group.COORDINATES

    def __init__(
        self, coordinates: Coordinates | str = "weight_norm", *, only: Sequence[str] | None = None
    ) -> None:
        if isinstance(coordinates, str):
            if coordinates not in _NAMED:
                raise unknown_name("kind of coordinates", coordinates, _NAMED)
            coordinates = _NAMED[coordinates]()
        self.coordinates = coordinates
        self.only = None if only is None else tuple(only)

    def __repr__(self) -> str:
        only = "" if self.only is None else f", only={self.only!r}"
        return f"Reparametrize({self.coordinates!r}{only})"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy in the new coordinates; see the base class."""
        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        names = _names(model, self.only, who)
        new = clone(model)
        for name in names:
            owner, _, attribute = name.rpartition(".")
            module = new.get_submodule(owner)
            _own_class(module)
            chart = self.coordinates.chart(name, getattr(module, attribute).detach())
            parametrize.register_parametrization(module, attribute, chart)
        return Applied(
            model=new,
            verification=verify(model, new, x, who),
            action=None,
            description=f"{self.coordinates!r} on {', '.join(names)}",
            detail={"parameters": names},
        )

    def inverse(self) -> Transform:
        """Return the transform that goes back to plain weights."""
        return Unparametrize(only=self.only)


class Unparametrize(Transform):
    """Turn parametrized weights into plain ones of the same value.

    Args:
        only: Names of the plain weights, such as ``"0.weight"``; ``None`` for all.
    """

    group: ClassVar[Group] = Group.COORDINATES

    def __init__(self, *, only: Sequence[str] | None = None) -> None:
        self.only = None if only is None else tuple(only)

    def __repr__(self) -> str:
        return "Unparametrize()" if self.only is None else f"Unparametrize(only={self.only!r})"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy with plain weights; see the base class."""
        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        found = parametrized(model)
        names = found if self.only is None else self.only
        missing = [name for name in names if name not in found]
        if missing or not names:
            raise TransformError(
                f"{who}: {repr(missing[0]) if missing else 'the model'} is not parametrized. "
                f"Parametrized here: {', '.join(found) or 'nothing'}."
            )
        new = clone(model)
        for name in names:
            owner, _, attribute = name.rpartition(".")
            remove_chart(new.get_submodule(owner), attribute)
        return Applied(
            model=new,
            verification=verify(model, new, x, who),
            action=None,
            description=f"plain weights for {', '.join(names)}",
            detail={"parameters": tuple(names)},
        )


def parametrized(model: nn.Module) -> tuple[str, ...]:
    """Name every parametrized tensor, as it would be called without parametrization."""
    return tuple(
        f"{prefix}.{attribute}" if prefix else attribute
        for prefix, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for attribute in module.parametrizations
    )


def remove_chart(module: nn.Module, attribute: str) -> None:
    """Make one parametrized tensor of ``module`` a plain parameter again, in place.

    Unlike ``torch.nn.utils.parametrize.remove_parametrizations`` this leaves every copy of
    the module alone: torch edits the injected class, which deep copies share.
    """
    with torch.no_grad():
        value = getattr(module, attribute).clone()
    charts = module.get_submodule("parametrizations")
    trainable = any(p.requires_grad for p in charts.get_submodule(attribute).parameters())
    _own_class(module)
    delattr(type(module), attribute)
    delattr(charts, attribute)
    if not list(charts.children()):
        delattr(module, "parametrizations")
        module.__class__ = type(module).__bases__[0]
    others = dict(module.named_parameters(recurse=False))
    for name in others if attribute == "weight" else ():
        delattr(module, name)  # so that the weight comes first again, as torch has it
    module.register_parameter(attribute, nn.Parameter(value, requires_grad=trainable))
    for name, parameter in others.items() if attribute == "weight" else ():
        module.register_parameter(name, parameter)


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module its own copy of the class that torch injected."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        kept = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, kept)


def _names(model: nn.Module, only: tuple[str, ...] | None, who: str) -> tuple[str, ...]:
    """Resolve ``only`` and refuse what cannot be parametrized on its own."""
    already = set(parametrized(model))
    every: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    if only is None:
        names = tuple(f"{n}.weight" if n else "weight" for n, _ in weight_layers(model))
    else:
        names = only
    if not names:
        raise TransformError(f"{who}: the model has no weight layer. Name parameters in only=.")
    for name in names:
        if name in already:
            raise TransformError(
                f"{who}: {name!r} is parametrized already. Call Unparametrize() first, or leave "
                "it out with only=(...)."
            )
        if name not in every:
            raise unknown_name("parameter", name, every)
        twins = [n for n, p in every.items() if p is every[name] and n != name]
        if twins:
            raise TransformError(
                f"{who}: {name!r} is tied to {twins[0]!r}; parametrizing one would untie them."
            )
    return names
