"""What the analysis of a module's graph finds: symmetry groups, their legs, and the stops.

Read this file first; everything else in this folder produces or consumes what is here.

A **unit** is one degree of freedom of a group: a hidden neuron, a convolution's channel, one
direction of a residual stream. A :class:`SymmetryGroup` is a set of interchangeable units of
one :class:`SymmetryKind`, numbered ``0 .. size - 1``. A :class:`Leg` says where the group touches
one parameter or buffer: ``leg.units`` holds the unit's number for every entry (``-1`` where the
group does not touch the entry), in an array that broadcasts against the tensor, so the rows
of a linear layer's weight have ``units`` of shape ``(out, 1)`` and its columns ``(1, in)``.

How each kind acts on the tensor ``theta`` of a leg:

* scaling kinds, one factor ``f > 0`` a unit::

      theta' = theta * f[units] ** leg.power                        (leg.shift == 0)
      theta' = (theta + shift) * f[units] ** leg.power - shift      (running variances)

  The legs of one group multiply; several legs may name the same parameter.
* sign flips, one ``s`` in ``{-1, +1}`` a unit: ``theta' = theta * s[units] ** leg.sign_power``.
* permutations, ``order`` a permutation of the units: unit ``j`` of the new network is unit
  ``order[j]`` of the old one. The entry with unit ``j`` and address ``a`` takes its value from
  the entry with unit ``order[j]`` and the same address. Addresses tell apart the entries that
  one unit owns (the pixels of a channel behind a flatten); ``leg.addresses`` broadcasts like
  ``leg.units``, and further dimensions of the tensor (where both have size 1) stay in place.
* linear mixing, an invertible ``A``: a leg with ``power = +1`` is multiplied by ``A`` along its
  units, one with ``power = -1`` by ``A`` inverse transposed (addresses and further dimensions
  stay in place). Only legs of :attr:`Role.PRODUCER` and :attr:`Role.CONSUMER` occur.
* translations, one number ``c`` a unit: ``theta' = theta + c[units]``, without influence on
  the function whatever the other parameters are.

``leg.role`` says what the tensor is to the unit: a producer makes it (rows of the weight
before, its bias, an embedding's columns), a consumer reads it linearly (columns of the weight
after), a statistic normalises it (BatchNorm's running moments), a slope shapes it (PReLU).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from invariance.core._repr import facts_table
from invariance.symmetry.analysis._table import render

IntArray = npt.NDArray[np.int64]


class SymmetryKind(StrEnum):
    """A kind of symmetry group, as the table of ``symmetries`` prints it."""

    SCALING = "scaling"
    PERMUTATION = "permutation"
    SIGN_FLIP = "sign_flip"
    LINEAR_MIXING = "linear_mixing"
    BATCHNORM_AFFINE = "batchnorm_affine"
    BATCHNORM_WEIGHT_SCALE = "batchnorm_weight_scale"
    LOGIT_SHIFT = "logit_shift"
    TRANSLATION = "translation"


#: The kinds whose elements are one positive factor a unit.
SCALING_KINDS = (
    SymmetryKind.SCALING,
    SymmetryKind.BATCHNORM_AFFINE,
    SymmetryKind.BATCHNORM_WEIGHT_SCALE,
)


class Role(StrEnum):
    """What a tensor is to the units that a leg touches."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    STATISTIC = "statistic"
    SLOPE = "slope"


@dataclass(frozen=True, eq=False)
class Leg:
    """Where a group touches one parameter or buffer; see the module's docstring.

    Attributes:
        parameter: Qualified name of the parameter or buffer (the first one, if shared).
        units: ``(1 or n_0, 1 or n_1, ...)`` unit of every entry, ``-1`` for untouched ones.
        power: Exponent of the unit's factor under scaling; 0 on permutation-only legs.
        sign_power: Exponent of the unit's sign under a sign flip.
        role: What the tensor is to the units.
        addresses: Like ``units``: tells apart the entries that one unit owns.
        shift: Added before and subtracted after scaling (``eps`` of a running variance).
        site: Name of the module or source line that uses the tensor in this way.
    """

    parameter: str
    units: IntArray
    power: int
    sign_power: int
    role: Role
    addresses: IntArray
    shift: float = 0.0
    site: str = ""

    def __post_init__(self) -> None:
        self.units.setflags(write=False)
        self.addresses.setflags(write=False)

    @property
    def dim(self) -> int | None:
        """The one dimension along which the units lie; ``None`` if there are several."""
        dims = [d for d, n in enumerate(self.units.shape) if n > 1]
        return dims[0] if len(dims) == 1 else (0 if not dims else None)


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """One set of interchangeable units and everything that it touches.

    Attributes:
        kind: What may be done to the units.
        site: The group's name for a reader: the parameter that first produces it.
        size: How many units there are.
        dof: Degrees of freedom: ``size`` for scalings and sign flips (the latter discrete),
            ``size ** 2`` for linear mixing, ``size`` for translations, 0 for a permutation (a
            finite group).
        legs: Where it touches parameters and buffers.
        order: Position in the order of execution, to sort by.
        stream: Label of the family of units: two groups of different kinds with an equal
            ``stream`` act on the same units, numbered alike.
    """

    kind: SymmetryKind
    site: str
    size: int
    dof: int
    legs: tuple[Leg, ...]
    order: int = 0
    stream: int = -1

    def _names(self, *roles: Role) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leg.parameter for leg in self.legs if leg.role in roles))

    @property
    def producers(self) -> tuple[str, ...]:
        """Parameters that make the units."""
        return self._names(Role.PRODUCER)

    @property
    def consumers(self) -> tuple[str, ...]:
        """Parameters that read the units linearly."""
        return self._names(Role.CONSUMER)

    @property
    def others(self) -> tuple[str, ...]:
        """Running statistics and slopes that have to follow."""
        return self._names(Role.STATISTIC, Role.SLOPE)

    def to_dict(self) -> dict[str, Any]:
        """Return the group as plain data (names and counts, not the index arrays)."""
        return {
            "kind": str(self.kind),
            "site": self.site,
            "size": self.size,
            "dof": self.dof,
            "producers": list(self.producers),
            "consumers": list(self.consumers),
            "others": list(self.others),
        }


@dataclass(frozen=True)
class Stop:
    """A place where a symmetry ends, and why.

    Attributes:
        place: Qualified module name, or source line of a functional call.
        operation: The operation's name, for example ``"GELU"``.
        reason: Why, in a sentence without the place.
        kinds: The kinds that it stops.
    """

    place: str
    operation: str
    reason: str
    kinds: tuple[SymmetryKind, ...]

    def __str__(self) -> str:
        return f"`{self.place}` {self.operation} {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return the stop as plain data."""
        return {
            "place": self.place,
            "operation": self.operation,
            "reason": self.reason,
            "kinds": [str(kind) for kind in self.kinds],
        }


@dataclass(frozen=True)
class NormSite:
    """One BatchNorm (eval mode) of the graph, for transforms that edit it.

    Attributes:
        name: Qualified name of the module; of the running mean, for a functional call.
        tensors: Qualified names by role: ``running_mean``, ``running_var``, and where they
            exist ``weight`` and ``bias``.
        eps: Its epsilon.
        channels: How many channels it has.
        uses: How often the forward pass calls it.
        fold_into: Qualified name of the weight layer before it, if its output goes here only.
        fold_after: Qualified name of the weight layer after it, if that reads only this.
        why_not: Why it cannot be folded, ``""`` if it can.
        columns: With ``fold_after``: the channel of every input of that layer.
    """

    name: str
    tensors: Mapping[str, str]
    eps: float
    channels: int
    uses: int
    fold_into: str | None = None
    fold_after: str | None = None
    why_not: str = ""
    columns: IntArray | None = field(default=None, compare=False)

    @property
    def layer(self) -> str | None:
        """The layer that it folds into, if any."""
        return self.fold_into or self.fold_after


@dataclass(frozen=True)
class WeightUse:
    """One call of a weight layer, in execution order.

    Attributes:
        name: Qualified name of the module (or of the weight, for a functional call).
        weight: Qualified name of its weight parameter.
        bias: Qualified name of its bias, if any.
        order: Position in the order of execution.
    """

    name: str
    weight: str
    bias: str | None
    order: int


@dataclass(frozen=True)
class Symmetries:
    """Everything that the analysis of one module found.

    Attributes:
        model: The module's class name.
        groups: The symmetry groups, in the order of execution.
        stops: Every place where a symmetry ends, with its reason.
        weights: The weight layers' calls in the order of execution.
        norms: The BatchNorms in the order of execution.
        aliases: Every parameter or buffer name to the first name of the same tensor.
        unused: Parameters that the traced forward pass never reads.
        frozen: Parameters with ``requires_grad=False``.
        holds_for: What the examples had in common with the inputs that this holds for: their
            shapes, and decisions that the module took on integer inputs.
    """

    model: str
    groups: tuple[SymmetryGroup, ...]
    stops: tuple[Stop, ...]
    weights: tuple[WeightUse, ...] = ()
    norms: tuple[NormSite, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    holds_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))

    def of(self, *kinds: SymmetryKind | str) -> tuple[SymmetryGroup, ...]:
        """Return the groups of the given kinds, in the order of execution."""
        wanted = {SymmetryKind(kind) for kind in kinds}
        return tuple(group for group in self.groups if group.kind in wanted)

    def count(self, kind: SymmetryKind | str) -> int:
        """Return how many groups of ``kind`` there are."""
        return len(self.of(kind))

    def dof(self, *kinds: SymmetryKind | str) -> int:
        """Return the degrees of freedom of all groups of ``kinds`` together."""
        return sum(group.dof for group in self.of(*kinds))

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data, for JSON."""
        return {
            "model": self.model,
            "groups": [group.to_dict() for group in self.groups],
            "stops": [stop.to_dict() for stop in self.stops],
            "unused": list(self.unused),
            "frozen": list(self.frozen),
            "holds_for": list(self.holds_for),
        }

    def __str__(self) -> str:
        return render(self)

    def __repr__(self) -> str:
        kinds = Counter(str(group.kind) for group in self.groups)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no group"
        return f"Symmetries({self.model}: {found}; {len(self.stops)} stops)"

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            f"{group.kind} at {group.site}": f"{group.size} units, {group.dof} degrees of freedom"
            for group in self.groups
        }
        facts |= {f"ends at {stop.place}": f"{stop.operation} {stop.reason}" for stop in self.stops}
        return facts_table(f"Symmetries of {self.model}", facts)
