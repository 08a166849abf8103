"""What a transform is: a map of modules that keeps the function, and says how it acted.

A transform returns a new module together with

* a :class:`~invariance.core._applied.Verification`, the measured difference between the two
  functions, and
* an :class:`~invariance.core._applied.Action`, how every new parameter relates to an old one,
  from which exact laws follow (``H'_ii = c_i^2 H_jj``), or ``None`` where no such relation
  exists.

To add a transform: subclass :class:`Transform` in a file of this folder, implement
``apply``, and export it from ``__init__``. To add a kind of map: give it a name and an entry in
:mod:`invariance.core._groups`, and the transform a place in ``KINDS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._errors import UsageError
from invariance.core._groups import Group
from invariance.core._rng import generator


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
        """Return a transformed copy of ``model``."""
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
    """Return one transform or several as a list."""
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
