"""What a transform is: a map of modules that keeps the function, and says how it acted.

A transform returns a new module together with

* a :class:`Verification`, the measured difference between the two functions, and
* an :class:`Action`, how every new parameter relates to an old one, from which exact
  laws follow (``H'_ii = c_i^2 H_jj``), or ``None`` where no such relation exists.

To add a transform: subclass :class:`Transform` in a file of this folder, implement
``apply``, and export it from ``__init__``. To add a kind of map: give it a name and an entry in
:mod:`invariance.core._groups`, and the transform a place in ``KINDS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invariance.core._errors import UsageError
from invariance.core._groups import Group
from invariance.core._rng import generator


@dataclass(frozen=True)
class ParameterAction:
    """How one parameter of the new model relates to the old model's parameters.

    Entry ``i`` of the new parameter moves the network's output exactly ``gradient[i]``
    times as much as entry ``index[i]`` of the old parameter ``source``. For a scaling
    ``theta' = D theta`` that is ``gradient = 1 / D`` and ``index`` the identity.

    Attributes:
        source: Name of the old parameter; ``None`` if the new one has no counterpart
            and no influence on the output to first order.
        gradient: ``(shape of the new parameter)`` factors ``c``, in float64.
        index: Flat indices into the old parameter, same shape; ``None`` for identity.
    """

    source: str | None
    gradient: Tensor
    index: Tensor | None = None


@dataclass(frozen=True)
class Action:
    """How a transform acted on the parameters, for laws of second derivatives.

    Attributes:
        parameters: New parameter name to its :class:`ParameterAction`. Every parameter
            of the new model is present.
    """

    parameters: Mapping[str, ParameterAction]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def diagonal(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict the new Hessian diagonal from the old one: ``c_i^2 H_jj``.

        Args:
            old: Old parameter name to its Hessian diagonal, in the parameter's shape.

        Returns:
            New parameter name to its predicted Hessian diagonal, in float64.
        """
        predicted = {}
        for name, act in self.parameters.items():
            if act.source is None:
                predicted[name] = torch.zeros_like(act.gradient)
                continue
            source = old[act.source].to(act.gradient)
            if act.index is not None:
                source = source.reshape(-1)[act.index.reshape(-1)].reshape(act.gradient.shape)
            predicted[name] = act.gradient.square() * source
        return predicted

    def then(self, second: Action) -> Action:
        """Compose with a later action: first ``self``, then ``second``."""
        composed = {}
        for name, late in second.parameters.items():
            early = None if late.source is None else self.parameters[late.source]
            if early is None or early.source is None:
                composed[name] = ParameterAction(None, torch.zeros_like(late.gradient))
                continue
            shape = late.gradient.shape
            where = (
                torch.arange(early.gradient.numel(), device=late.gradient.device).reshape(shape)
                if late.index is None
                else late.index
            )
            flat = where.reshape(-1)
            gradient = late.gradient * early.gradient.reshape(-1)[flat].reshape(shape)
            index = where if early.index is None else early.index.reshape(-1)[flat].reshape(shape)
            composed[name] = ParameterAction(early.source, gradient, index)
        return Action(composed)


@dataclass(frozen=True)
class Verification:
    """The measured difference between a model and its transformed copy.

    Attributes:
        max_abs_logit_diff: Largest absolute difference of any output entry.
        labels_changed: How many rows changed their arg-max.
        bitwise: True if every output is bitwise equal.
        output_scale: Largest absolute output entry, to read the difference against.
        rows: How many input rows were compared.
        compared: ``"logits"``, or ``"softmax"`` for a transform that keeps only that.
    """

    max_abs_logit_diff: float
    labels_changed: int
    bitwise: bool
    output_scale: float
    rows: int
    compared: str = "logits"


@dataclass(frozen=True)
class Applied:
    """A transformed copy of a model, with the evidence.

    Attributes:
        model: The new module; shares no storage with the old one.
        verification: Measured difference of the two functions; ``None`` when there was
            no input to compare them on.
        action: How the parameters were acted on; ``None`` if no per-entry relation holds.
        description: What was done, in one line (site, factors).
        detail: Transform-specific facts (drawn factors, permutation, ...).
    """

    model: nn.Module
    verification: Verification | None
    action: Action | None
    description: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)


def uniform(seed: int, group: Group) -> float:
    """Draw the number in [0, 1) that decides a random member of one kind of map."""
    source = generator(seed, "member", group.value)
    return float(torch.rand((), generator=source, dtype=torch.float64))


class Transform(ABC):
    """A function-preserving map of modules. Calling it returns a new module.

    Subclasses set ``group`` and implement ``apply``; they never modify their argument. One that
    cannot be made from a seed alone overrides :meth:`random_member` as well.
    """

    #: The kind of symmetry, which measures' declarations refer to.
    group: ClassVar[Group]

    @property
    def name(self) -> str:
        """The transform's Python name, as reports print it."""
        return type(self).__name__

    @property
    def groups(self) -> tuple[Group, ...]:
        """The kinds of symmetry that this transform uses (several for a composition)."""
        return (self.group,)

    def __call__(self, model: nn.Module, example_input: Tensor | None = None) -> nn.Module:
        """Return a transformed copy of ``model``.

        Args:
            model: The module to transform; it is left as it is.
            example_input: A batch that the model accepts, to trace and verify with.
                May be omitted for a network whose first weight layer is linear.

        Returns:
            A new module that computes the same function.

        Raises:
            TransformError: If the transform does not apply; says where and why.
        """
        return self.apply(model, example_input).model

    @classmethod
    def random_member(cls, model: nn.Module, seed: int) -> Transform:
        """Draw a member of this kind of map for ``model``; it may turn out not to apply."""
        return cls(seed=seed)  # type: ignore[call-arg]

    @classmethod
    def default_members(cls, model: nn.Module, seed: int) -> tuple[Transform, ...]:
        """Return the members of this kind that a check applies."""
        return (cls.random_member(model, seed),)

    @abstractmethod
    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Like calling the transform, but with the evidence: see :class:`Applied`."""

    def inverse(self) -> Transform:
        """Return the transform that undoes this one.

        Raises:
            TransformError: If there is none.
        """
        from invariance.core._errors import TransformError

        raise TransformError(f"{self!r} has no inverse: it does not keep the architecture.")


def as_transforms(given: Transform | Iterable[Transform]) -> list[Transform]:
    """Return one transform or several as a list.

    Args:
        given: What a user passed as ``transforms``.

    Returns:
        At least one transform.

    Raises:
        UsageError: If it is empty, or holds something else; names the entry.
    """
    if isinstance(given, Transform):
        return [given]
    one = isinstance(given, (str, type)) or not isinstance(given, Iterable)
    listed: list[Any] = [given] if one else list(given)
    for number, entry in enumerate(listed):
        if not isinstance(entry, Transform):
            raise UsageError(
                f"transforms[{number}] is {entry!r}, not a transform. Give Transform objects, such "
                "as invariance.transforms.NeuronScaling()."
            )
    if not listed:
        raise UsageError("transforms is empty, so nothing would be checked. Leave it out.")
    return listed
