"""Change how many units a group has: the surgery behind splitting, inserting and merging.

A permutation group of the analysis knows every tensor entry of each of its units. To give it
another set of units is to select, along one dimension of every tensor that it touches, the
entries of the units wanted, and to tell the modules their new sizes. Where the forward pass
hard-codes a size, or mixes the units in a way that no parameter shows (a normalisation over
them, a mean), the new network computes something else or fails: every surgery is therefore
verified by running it, and refused if it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import TransformError
from invariance.core._modules import BATCH_NORMS, clone
from invariance.symmetry._structures import (
    IntArray,
    Leg,
    Role,
    Symmetries,
    SymmetryGroup,
    SymmetryKind,
)
from invariance.symmetry.elements._group_elements import compact

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CHANNELWISE = (
    *BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_FIXED = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.MultiheadAttention, nn.RNNBase)


@dataclass
class _Line:
    """The units along one dimension of one tensor; changes as the surgery goes on."""

    parameter: str
    dim: int
    units: IntArray
    role: Role


class Surgery:
    """A copy of a network whose groups can be given other units.

    Attributes:
        model: The copy, as changed so far.
        index: If tracked: for each parameter, the old flat index of each entry.
        gradient: If tracked: for each parameter, how much an entry moves the output compared
            with that old entry.
    """

    def __init__(
        self, model: nn.Module, found: Symmetries, who: str, *, track: bool = False
    ) -> None:
        self.model = clone(model)
        self.found = found
        self.who = who
        self.index: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters() if track else ():
            self.index[name] = torch.arange(parameter.numel()).reshape(parameter.shape)
            self.gradient[name] = torch.ones(parameter.shape, dtype=torch.float64)
        self.refused: dict[int, str] = {}
        self._lines: dict[int, list[_Line]] = {}
        for place, group in enumerate(found.groups):
            if group.kind is SymmetryKind.PERMUTATION:
                try:
                    self._lines[place] = self._read(group)
                except TransformError as error:
                    self.refused[place] = str(error)

    @property
    def places(self) -> tuple[int, ...]:
        """The groups that can be resized as far as their tensors show."""
        return tuple(place for place in self._lines if place not in self.refused)

    def copy(self) -> Surgery:
        """Return an independent copy, to go back to when a step fails."""
        twin = object.__new__(Surgery)
        twin.model, twin.found, twin.who = clone(self.model), self.found, self.who
        twin.index, twin.gradient = dict(self.index), dict(self.gradient)
        twin.refused = dict(self.refused)
        twin._lines = {
            place: [_Line(e.parameter, e.dim, e.units.copy(), e.role) for e in lines]
            for place, lines in self._lines.items()
        }
        return twin

    def size(self, place: int) -> int:
        """Return how many units a group has now."""
        return int(max(line.units.max() for line in self._lines[place])) + 1

    def tensors(self, place: int) -> list[tuple[str, int, IntArray, Role]]:
        """List name, dimension, units along it and role of every tensor that a group touches."""
        return [(e.parameter, e.dim, e.units, e.role) for e in self._lines[place]]

    def rows(
        self, place: int, roles: tuple[Role, ...], tensors: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Collect every unit's entries in tensors of some roles, ``(units, entries)``, float64."""
        pieces = [torch.zeros(self.size(place), 0, dtype=torch.float64)]
        for line in self._lines[place]:
            if line.role not in roles:
                continue
            value = self.tensor(line.parameter) if tensors is None else tensors[line.parameter]
            along = torch.movedim(value.detach().double().cpu(), line.dim, 0)
            at = np.flatnonzero(line.units >= 0)
            at = at[np.argsort(line.units[at], kind="stable")]
            pieces.append(along[torch.from_numpy(at)].reshape(self.size(place), -1))
        return torch.cat(pieces, dim=1)

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer of the copy."""
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.model.get_submodule(owner), attribute)
        assert isinstance(value, Tensor)
        return value

    def select(self, place: int, source: IntArray) -> None:
        """Give a group new units: unit ``k`` becomes a copy of unit ``source[k]``."""
        if place in self.refused:
            raise TransformError(self.refused[place])
        plans: dict[tuple[str, int], tuple[IntArray, IntArray]] = {}
        for line in self._lines[place]:
            positions, units = self._plan(line, source)
            known = plans.setdefault((line.parameter, line.dim), (positions, units))
            if not np.array_equal(known[0], positions):
                raise TransformError(f"{self.who}: {line.parameter!r} is used in two layouts.")
        for (name, dim), (positions, _) in plans.items():
            self._take(name, dim, positions)
        for other, lines in self._lines.items():
            for line in lines:
                plan = plans.get((line.parameter, line.dim))
                if plan is not None:
                    line.units = plan[1] if other == place else line.units[plan[0]]

    def scale(self, place: int, roles: tuple[Role, ...], factors: Tensor) -> None:
        """Multiply every unit's entries in tensors of some roles by a factor a unit."""
        for name, dim, factor in self._spread(place, roles, factors):
            tensor = self.tensor(name)
            with torch.no_grad():
                tensor.mul_(factor.to(tensor))
            del dim

    def combine(self, place: int, roles: tuple[Role, ...], matrix: Tensor) -> None:
        """Replace every unit's entries in tensors of some roles by combinations of units.

        Shapes: ``matrix (units, units)``.
        """
        seen = set()
        for line in self._lines[place]:
            if line.role not in roles or (line.parameter, line.dim) in seen:
                continue
            seen.add((line.parameter, line.dim))
            tensor = self.tensor(line.parameter)
            at = np.flatnonzero(line.units >= 0)
            at = at[np.argsort(line.units[at], kind="stable")]
            where = torch.from_numpy(at).to(tensor.device)
            with torch.no_grad():
                along = torch.movedim(tensor, line.dim, 0)
                entries = along[where].double().reshape(matrix.shape[0], -1)
                mixed = (matrix.to(entries) @ entries).reshape(at.size, *along.shape[1:])
                along[where] = mixed.to(tensor)

    def weigh(self, place: int, roles: tuple[Role, ...], factors: Tensor) -> None:
        """Multiply the recorded influence of every unit's entries by a factor a unit."""
        for name, _, factor in self._spread(place, roles, factors):
            if name in self.gradient:
                self.gradient[name] = self.gradient[name] * factor

    def _spread(
        self, place: int, roles: tuple[Role, ...], factors: Tensor
    ) -> list[tuple[str, int, Tensor]]:
        """Spread one factor a unit along each tensor's dimension."""
        padded = torch.cat([factors.double(), torch.ones(1, dtype=torch.float64)])
        result, seen = [], set()
        for line in self._lines[place]:
            if line.role in roles and (line.parameter, line.dim) not in seen:
                seen.add((line.parameter, line.dim))
                shape = [1] * self.tensor(line.parameter).dim()
                shape[line.dim] = -1
                along = padded[torch.from_numpy(line.units)].reshape(shape)
                result.append((line.parameter, line.dim, along))
        return result

    def _read(self, group: SymmetryGroup) -> list[_Line]:
        """Write a group's legs as units along one dimension each."""
        lines: dict[tuple[str, int], _Line] = {}
        if not (group.producers and group.consumers):
            raise TransformError(
                f"{self.who}: the units of {group.site!r} have no "
                f"{'consumer' if group.producers else 'producer'} with weights of its own."
            )
        uses: dict[tuple[str, int], dict[str, set[Role]]] = {}
        for leg in group.legs:
            dim, units = self._along(group, leg)
            key = (leg.parameter, dim)
            uses.setdefault(key, {}).setdefault(leg.site, set()).add(leg.role)
            line = lines.setdefault(key, _Line(leg.parameter, dim, units, leg.role))
            line.units = np.maximum(line.units, units)
        for key, sites in uses.items():
            # One use that reads a unit and makes it again (a depthwise kernel, a gain) lies
            # inside the unit, like a slope.
            inside = [
                Role.SLOPE if len(r) > 1 and Role.CONSUMER in r else min(r) for r in sites.values()
            ]
            if Role.CONSUMER in inside and set(inside) != {Role.CONSUMER}:
                raise TransformError(
                    f"{self.who}: {key[0]!r} both produces and consumes the units of "
                    f"{group.site!r} (tied weights)."
                )
            lines[key].role = inside[0]
        return list(lines.values())

    def _along(self, group: SymmetryGroup, leg: Leg) -> tuple[int, IntArray]:
        dims, units, _ = compact(leg)
        owner_name, _, attribute = leg.parameter.rpartition(".")
        owner = self.model.get_submodule(owner_name)
        if ".parametrizations." in f".{leg.parameter}":
            raise TransformError(
                f"{self.who}: {leg.parameter!r} is parametrized; apply Unparametrize() first."
            )
        if isinstance(owner, _FIXED):
            raise TransformError(
                f"{self.who}: {type(owner).__name__} {owner_name!r} works on all units of "
                f"{group.site!r} together, so their number cannot change."
            )
        if len(dims) > 1:
            raise TransformError(
                f"{self.who}: {leg.parameter!r} belongs to a grouped convolution, which ties the "
                f"number of units of {group.site!r} to its groups."
            )
        shape = self.tensor(leg.parameter).shape
        dim = dims[0] if dims else _only_dim(owner, attribute, leg.role, len(shape))
        if isinstance(owner, (*_CONVS, *_TRANSPOSED)) and owner.groups > 1:
            depthwise = owner.groups == owner.in_channels == owner.out_channels
            if not depthwise:
                raise TransformError(
                    f"{self.who}: {owner_name!r} is a grouped convolution, which ties the number "
                    f"of units of {group.site!r} to its {owner.groups} groups."
                )
        return dim, np.broadcast_to(units, (shape[dim],)).copy()

    def _plan(self, line: _Line, source: IntArray) -> tuple[IntArray, IntArray]:
        """Return the old position and the new unit of each new position along one dimension."""
        units = line.units
        size = int(units.max()) + 1
        starts = np.flatnonzero(np.concatenate([[True], np.diff(units) != 0]))
        ends = np.concatenate([starts[1:], [units.size]])
        positions: list[IntArray] = []
        fresh: list[IntArray] = []
        run = 0
        while run < starts.size:
            if units[starts[run]] < 0:
                span = np.arange(starts[run], ends[run])
                positions.append(span)
                fresh.append(np.full(span.size, -1))
                run += 1
                continue
            runs = slice(run, run + size)  # one pass over all units, a run of positions each
            if not np.array_equal(units[starts[runs]], np.arange(size)):
                raise TransformError(
                    f"{self.who}: the units along dimension {line.dim} of {line.parameter!r} are "
                    "not laid out one after another, so none can be added or removed."
                )
            for unit, old in enumerate(source):
                span = np.arange(starts[runs][old], ends[runs][old])
                positions.append(span)
                fresh.append(np.full(span.size, unit))
            run += size
        return np.concatenate(positions), np.concatenate(fresh)

    def _take(self, name: str, dim: int, positions: IntArray) -> None:
        """Select entries along one dimension of a tensor, everywhere it is registered."""
        old = self.tensor(name)
        at = torch.from_numpy(positions)
        new = old.detach().index_select(dim, at.to(old.device))
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
            for record in (self.index, self.gradient):
                if name in record:
                    record[name] = record[name].index_select(dim, at)
        for alias in self._names(name):
            owner_name, _, attribute = alias.rpartition(".")
            owner = self.model.get_submodule(owner_name)
            table = owner._parameters if isinstance(new, nn.Parameter) else owner._buffers
            table[attribute] = new  # type: ignore[assignment]
            _tell_size(owner, attribute, dim, int(new.shape[dim]))

    def _names(self, name: str) -> tuple[str, ...]:
        return tuple({name, *(a for a, first in self.found.aliases.items() if first == name)})


def _only_dim(owner: nn.Module, attribute: str, role: Role, ndim: int) -> int:
    """Say along which dimension a group of one single unit lies."""
    if ndim == 1:
        return 0
    first = 1 if isinstance(owner, (*_TRANSPOSED, nn.Embedding, nn.EmbeddingBag)) else 0
    del attribute
    return first if role is not Role.CONSUMER else 1 - first


def _tell_size(owner: nn.Module, attribute: str, dim: int, size: int) -> None:
    """Update the size that a module keeps beside its tensors."""
    module: nn.Module | None = owner
    if attribute == "weight" and isinstance(module, nn.Linear):
        setattr(module, ("out_features", "in_features")[dim], size)
    elif attribute == "weight" and isinstance(module, (*_CONVS, *_TRANSPOSED)):
        if module.groups > 1:
            module.groups = module.in_channels = module.out_channels = size
        elif dim < 2:
            first_is_out = isinstance(module, _CONVS)
            setattr(module, "out_channels" if (dim == 0) == first_is_out else "in_channels", size)
    elif isinstance(module, _CHANNELWISE):
        module.num_features = size
    elif isinstance(module, nn.PReLU):
        module.num_parameters = size
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and dim == 1:
        module.embedding_dim = size
