"""A measure bound to a model and data, and the maps that a claim about it is tried under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from invariance.cells import CellEngine, ComparisonPolicy, MappedNetwork
from invariance.cells._mapped_network import EXAMPLE_ROWS
from invariance.core._arguments import as_seed, as_tolerance
from invariance.core._errors import UsageError, unknown_name
from invariance.core._groups import RESCALINGS, Group
from invariance.core._modules import model_device
from invariance.measures._registry import AnyMeasure, Measure, registered
from invariance.testing.gate._binding import (
    bind_inputs,
    bind_measure,
    cast,
    cast_inputs,
    require_evaluation_mode,
)
from invariance.transforms._base import Transform, as_transforms
from invariance.transforms._members import members, resolve_all

#: Value and change are compared to this relative tolerance unless told otherwise.
RTOL = 1e-6


@dataclass(frozen=True)
class BoundMeasure:
    """A measure, a model and data, bound together and checked.

    Attributes:
        measure: The measure, with its declarations if it has any.
        plain: True if it has none.
        model: The user's model, never written to.
        inputs: The measure's arguments.
        x: Input rows.
        rtol: Relative tolerance.
        seed: Seed of random members and of round-off probes.
        allow_constant: Accept a measure that no change of weights moves.
        network: The mapped network, where several measures share it.
    """

    measure: Measure
    plain: bool
    model: nn.Module
    inputs: Mapping[str, Any]
    x: Tensor
    rtol: float
    seed: int
    allow_constant: bool
    network: MappedNetwork | None = None

    def engine(self, dtype: torch.dtype, zero: float = 0.0) -> CellEngine:
        """Return an engine on copies in the given precision."""
        network = self.network
        if network is None or network.example.dtype != dtype:
            network = mapped(self.model, self.x, dtype)
        policy = ComparisonPolicy(
            rtol=self.rtol,
            zero=zero,
            seed=self.seed,
            vetted=True,
            allow_constant=self.allow_constant,
        )
        inputs = cast_inputs(self.inputs, model_device(network.model), dtype)
        return CellEngine(self.measure, network, inputs, policy)


def mapped(model: nn.Module, x: Tensor, dtype: torch.dtype, *, keep: bool = False) -> MappedNetwork:
    """Copy a model and the rows that maps are verified on, in the given precision."""
    copied, moved = cast(model, {"x": x[:EXAMPLE_ROWS]}, dtype)
    return MappedNetwork(copied, moved["x"], keep=keep)


def bind(
    measure: AnyMeasure,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rtol: float = RTOL,
    seed: int = 0,
    data: Mapping[str, Tensor] | None = None,
    allow_constant: bool = False,
    name: str | None = None,
    network: MappedNetwork | None = None,
) -> BoundMeasure:
    """Bind a measure to a model and data, as :func:`invariance.testing.assert_invariant` says."""
    require_evaluation_mode(model)
    rtol, seed = as_tolerance(rtol), as_seed(seed)
    bound = bind_measure(measure, name)
    inputs = bind_inputs(bound, x, y, data)
    plain = registered(measure) is None
    return BoundMeasure(bound, plain, model, inputs, x, rtol, seed, allow_constant, network)


def choose(
    bound: BoundMeasure,
    transforms: Sequence[Transform] | Transform | None,
    groups: Iterable[Group | str] | None,
    examples: int = 1,
    *,
    laws: bool = False,
    claims_only: bool = True,
) -> tuple[list[Transform], bool]:
    """Decide what to apply."""
    if transforms is not None:
        return resolve_all(as_transforms(transforms), bound.model), True
    wanted = wanted_groups(bound, groups, laws=laws)
    if groups is None and not claims_only and not wanted & RESCALINGS:
        wanted |= RESCALINGS
    if not wanted:
        raise UsageError(
            f"Measure {bound.measure.name!r} declares no group to be checked under. Name some "
            "with groups=[...] or transforms=[...]."
        )
    return list(members(bound.model, wanted, bound.seed, examples)), False


def wanted_groups(
    bound: BoundMeasure, groups: Iterable[Group | str] | None, *, laws: bool = False
) -> frozenset[Group]:
    """Return the groups to check: the named ones, the declared ones, or all."""
    if groups is not None:
        return frozenset(as_groups(groups))
    if bound.plain:
        return frozenset(set(Group) - {Group.COORDINATES})
    declared = set(bound.measure.invariant_under)
    if laws:
        declared |= set(bound.measure.laws)
    return frozenset(declared - {Group.COORDINATES})


def claim_note(
    bound: BoundMeasure, groups: Iterable[Group | str] | None, *, laws: bool = False
) -> str:
    """Say what was claimed, and what the measure declares of the rest; "" if all was claimed."""
    claimed = wanted_groups(bound, groups, laws=laws)
    rest = [group for group in Group if group not in claimed | {Group.COORDINATES}]
    if not rest:
        return ""
    said = [
        f"{group.value} ({bound.measure.declared([group])})"
        if bound.measure.claims([group])
        else group.value
        for group in rest
    ]
    named = [group.value for group in Group if group in claimed]
    return f"claimed: {', '.join(named) or 'nothing'}; not claimed: {', '.join(said)}"


def as_groups(groups: Iterable[Group | str] | Group | str) -> list[Group]:
    """Return one group or several as a list."""
    if isinstance(groups, str):
        return [as_group(groups)]
    if not isinstance(groups, Iterable):
        raise UsageError(f"groups must be a list of names. Got {groups!r}.")
    return [as_group(entry) for entry in groups]


def as_group(entry: Group | str) -> Group:
    """Return the group for its name."""
    try:
        return Group(entry)
    except ValueError:
        raise unknown_name("group", entry, [group.value for group in Group]) from None
