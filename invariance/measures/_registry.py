"""The one list of measures, each with what theory says about it under every group.

To add a measure, write one small file in this folder:

    @measure(invariant_under=[Group.LAYER_SCALING], law={Group.NEURON_SCALING: my_law})
    def my_measure(model, x, y) -> Estimate: ...

A group that is neither declared invariant nor given a law is declared ``varies``, if it is one of
:data:`CONSIDERED` or named in ``varies_under``; under any other kind of map nothing is claimed.
The arguments after ``model`` are filled from a task by their names.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol

from torch import Tensor, nn

from invariance.core._errors import (
    DataError,
    EndedProgramError,
    MeasureError,
    UsageError,
    unknown_name,
)
from invariance.core._estimate import Estimate
from invariance.core._foreign import account
from invariance.core._groups import Group
from invariance.core._intake import takes_any

if TYPE_CHECKING:
    from invariance.core._applied import Applied
    from invariance.data import Task

Declaration = Literal["invariant", "law", "varies"]
Cost = Literal["cheap", "solver", "sampling"]
P = ParamSpec("P")

#: The kinds of map that a registered measure speaks about without naming them: silence means
#: that it varies. A kind that is added later is not among them, so that nobody's silence about
#: it is taken for a claim.
CONSIDERED: frozenset[Group] = frozenset(
    {
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LINEAR_MIXING,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_FOLD,
        Group.BATCHNORM_SCALING,
        Group.UNIT_SPLIT,
        Group.DORMANT_UNITS,
        Group.COORDINATES,
    }
)

#: Argument names that a measure may use, and the task's field that fills each.
TASK_FIELDS: Mapping[str, str] = MappingProxyType(
    {name: name for name in ("x_train", "y_train", "x_test", "y_test", "x_unseen", "y_unseen")}
    | {"x": "x_train", "y": "y_train"}
)


@dataclass(frozen=True)
class Setting:
    """What a law may look at: the model before, what was done, and the data.

    Attributes:
        model: The model before the transform.
        applied: The transform's result, with its action on the parameters.
        inputs: The keyword arguments that the measure was called with.
        before: The measure's estimate before the transform.
        shared: A scratch dictionary for work that several laws share (a Hessian
            diagonal, say) for one ``model`` and one set of ``inputs``.
    """

    model: nn.Module
    applied: Applied
    inputs: Mapping[str, Any]
    before: Estimate
    shared: dict[str, Any] = field(default_factory=dict)


class Law(Protocol):
    """Predicts a measure's value after a transform, or ``None`` where it does not apply."""

    def __call__(self, setting: Setting) -> float | None:
        """Return the predicted value for ``setting``."""
        ...


@dataclass(frozen=True)
class Measure:
    """One registered measure with its declarations.

    Attributes:
        name: The Python name of the function.
        function: The measure itself.
        invariant_under: Groups under which its value is declared exactly fixed.
        laws: Groups under which its new value follows a stated law.
        fields: Argument name to the task's field that fills it.
        summary: First line of the docstring.
        discrete: True if the value is a count, which round-off cannot nudge.
        cost: ``"cheap"``; ``"solver"`` for one that solves many programs; ``"sampling"`` for
            one that draws samples, which a check leaves out unless it is named.
        ensemble: ``ensemble(models, ...)``, the same measure of many networks in one call,
            where that is faster than one after another.
        considered: Groups that it says something about, if only that its value varies.
    """

    name: str
    function: Callable[..., Any]
    invariant_under: frozenset[Group]
    laws: Mapping[Group, Law]
    fields: Mapping[str, str]
    summary: str
    discrete: bool = False
    cost: Cost = "cheap"
    ensemble: Callable[..., Sequence[Estimate]] | None = None
    considered: frozenset[Group] = CONSIDERED

    def claims(self, groups: Iterable[Group]) -> bool:
        """Return whether anything is claimed about maps made of ``groups``."""
        return self.considered.issuperset(groups)

    def declared(self, groups: Iterable[Group]) -> Declaration:
        """What theory says happens under a map made of ``groups``."""
        kinds = tuple(groups)
        if all(kind in self.invariant_under for kind in kinds):
            return "invariant"
        if all(kind in self.invariant_under or kind in self.laws for kind in kinds):
            return "law"
        return "varies"

    def inputs(self, task: Task) -> dict[str, Tensor]:
        """Collect the tensors that this measure needs from ``task``."""
        found = {name: getattr(task, source) for name, source in self.fields.items()}
        if empty := [name for name, value in found.items() if value.shape[0] == 0]:
            raise DataError(
                f"The task has no rows for {', '.join(empty)}; load it with n_unseen > 0."
            )
        return found

    def __call__(self, model: nn.Module, **inputs: Any) -> Estimate:
        """Evaluate the measure on ``model`` with the arguments of its function."""
        try:
            result = self.function(model, **inputs)
        except SystemExit as error:
            raise EndedProgramError(f"measure {self.name!r} {account(error)}.") from error
        if isinstance(result, Estimate):
            return result
        try:
            return Estimate(result)
        except (TypeError, ValueError) as error:
            raise MeasureError(
                f"measure {self.name!r} must return a number or an Estimate. Got {result!r}, a "
                f"{type(result).__name__}."
            ) from error

    def of_many(self, models: Sequence[nn.Module], **inputs: Any) -> list[Estimate]:
        """Evaluate the measure on several models, in one call where it has one for that."""
        if self.ensemble is None:
            return [self(model, **inputs) for model in models]
        return list(self.ensemble(models, **inputs))


#: What a user may hand over as a measure: a registered name, a measure, a plain function.
AnyMeasure = str | Measure | Callable[..., Any]

_REGISTRY: dict[str, Measure] = {}


def measure(
    *,
    invariant_under: Iterable[Group] = (),
    law: Mapping[Group, Law] | None = None,
    fields: Mapping[str, str] | None = None,
    discrete: bool = False,
    cost: Cost = "cheap",
    ensemble: Callable[..., Sequence[Estimate]] | None = None,
    varies_under: Iterable[Group] = (),
    streams: bool = False,
) -> Callable[[Callable[P, Estimate]], Callable[P, Estimate]]:
    """Register a function as a measure and declare its behaviour.

    Args:
        invariant_under: Groups that leave the value exactly unchanged.
        law: Group to a function that predicts the value after the transform.
        fields: Overrides of which task field fills an argument, for example
            ``{"x": "x_unseen"}``.
        discrete: True for counts.
        cost: See :class:`Measure`.
        ensemble: See :class:`Measure`.
        varies_under: Further groups that move the value; see :data:`CONSIDERED`.
        streams: Whether it reads batches by itself; otherwise they are put together for it.

    Returns:
        A decorator. The function then takes any model and data that
        :func:`invariance.core._intake.take` understands.

    Raises:
        MeasureError: If a group is declared twice, or the name is taken.
    """

    def register(plain: Callable[P, Estimate]) -> Callable[P, Estimate]:
        function = takes_any(streams=streams)(plain)
        made = as_measure(
            function,
            invariant_under=invariant_under,
            law=law,
            fields=fields,
            discrete=discrete,
            cost=cost,
            ensemble=ensemble,
            varies_under=CONSIDERED.union(varies_under),
        )
        if made.name in _REGISTRY:
            raise MeasureError(f"A measure named {made.name!r} is registered already. Rename one.")
        _REGISTRY[made.name] = made
        return function

    return register


def as_measure(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    invariant_under: Iterable[Group] = (),
    law: Mapping[Group, Law] | None = None,
    fields: Mapping[str, str] | None = None,
    discrete: bool = False,
    cost: Cost = "cheap",
    ensemble: Callable[..., Sequence[Estimate]] | None = None,
    varies_under: Iterable[Group] = (),
) -> Measure:
    """Describe any function as a measure, without registering it."""
    title = str(name or getattr(function, "__name__", type(function).__name__))
    fixed, laws = frozenset(invariant_under), dict(law or {})
    if both := fixed & laws.keys():
        raise MeasureError(
            f"Measure {title!r} declares both invariance and a law under {sorted(both)}. Keep one."
        )
    sources = dict(fields or {})
    arguments = list(dict.fromkeys((*_required_arguments(function), *sources)))
    for argument in arguments:
        if argument not in sources and argument not in TASK_FIELDS:
            raise MeasureError(
                f"Measure {title!r} has a required argument {argument!r} that no task fills. "
                f"Use one of {', '.join(TASK_FIELDS)}, or give it a default."
            )
    return Measure(
        name=title,
        function=function,
        invariant_under=fixed,
        laws=MappingProxyType(laws),
        fields=MappingProxyType(
            {argument: sources.get(argument) or TASK_FIELDS[argument] for argument in arguments}
        ),
        summary=(inspect.getdoc(function) or "").split("\n", 1)[0],
        discrete=discrete,
        cost=cost,
        ensemble=ensemble,
        considered=fixed.union(laws, varies_under),
    )


def _required_arguments(function: Callable[..., Any]) -> list[str]:
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise MeasureError(
            f"The arguments of {function!r} cannot be read. Wrap it in a function (model, x, y)."
        ) from error
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in skipped
    ][1:]


def get_measure(name: str) -> Measure:
    """Return the registered measure called ``name``."""
    if name not in _REGISTRY:
        raise unknown_name("measure", name, all_measures())
    return _REGISTRY[name]


def registered(entry: AnyMeasure) -> Measure | None:
    """Return the measure with its declarations, if ``entry`` is or names a registered one."""
    # The registry fills as the measures are imported.
    importlib.import_module("invariance.measures")
    if isinstance(entry, Measure):
        return entry
    if isinstance(entry, str):
        return get_measure(entry)
    # A registered function given as itself brings its declarations along.
    found = _REGISTRY.get(getattr(entry, "__name__", ""))
    return found if found is not None and found.function is entry else None


def resolve(measures: Iterable[AnyMeasure] | AnyMeasure | None) -> list[Measure]:
    """Turn names, measures and plain functions into measures; ``None`` gives the defaults."""
    importlib.import_module("invariance.measures")
    given: Any = default_measures() if measures is None else measures
    one = isinstance(given, str) or callable(given) or not isinstance(given, Iterable)
    found = [registered(entry) or _described(entry) for entry in ([given] if one else given)]
    if not found:
        raise UsageError("measures is empty, so nothing would be checked. Leave it out.")
    return found


def _described(entry: Any) -> Measure:
    if not callable(entry):
        raise UsageError(
            f"Expected a measure: a function (model, x, y) -> number, or a registered name. "
            f"Got {entry!r}."
        )
    return as_measure(entry)


def all_measures() -> tuple[str, ...]:
    """Return the names of all registered measures, in order of registration."""
    return tuple(_REGISTRY)


def default_measures() -> tuple[str, ...]:
    """Return the names that a check uses when none are given: all that do not sample."""
    return tuple(name for name, entry in _REGISTRY.items() if entry.cost != "sampling")
