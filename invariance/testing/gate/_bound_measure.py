"""A measure bound to a model and data, and the maps that a claim about it is tried under."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from invariance.checking._default_maps import default_transforms
from invariance.core._errors import UsageError, unknown_name
from invariance.core._groups import Group
from invariance.core._modules import model_device
from invariance.measures._registry import Measure
from invariance.testing.gate._applied_maps import Stage
from invariance.testing.gate._binding import (
    AnyMeasure,
    bind_inputs,
    bind_measure,
    cast,
    cast_inputs,
    registered,
    require_evaluation_mode,
)
from invariance.testing.gate._evaluation import EXAMPLE_ROWS, Evaluator
from invariance.testing.gate._random_members import draw_member, resolve_all
from invariance.transforms._base import Transform

#: Value and change are compared to this relative tolerance unless told otherwise.
RTOL = 1e-6


@dataclass(frozen=True)
class Subject:
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
        stage: Copies made once for several measures; each makes its own by default.
    """

    measure: Measure
    plain: bool
    model: nn.Module
    inputs: Mapping[str, Any]
    x: Tensor
    rtol: float
    seed: int
    allow_constant: bool
    stage: Stage | None = None

    def evaluator(self, dtype: torch.dtype, zero: float = 0.0) -> Evaluator:
        """Return an evaluator on copies in the given precision."""
        stage = self.stage
        if stage is None or stage.example.dtype != dtype:
            stage = make_stage(self.model, self.x, dtype)
        return Evaluator(
            self.measure,
            stage,
            cast_inputs(self.inputs, model_device(stage.model), dtype),
            rtol=self.rtol,
            seed=self.seed,
            allow_constant=self.allow_constant,
            zero=zero,
        )


def make_stage(model: nn.Module, x: Tensor, dtype: torch.dtype, *, keep: bool = False) -> Stage:
    """Copy a model and the rows that transforms are proven on, in the given precision."""
    copied, moved = cast(model, {"x": x[:EXAMPLE_ROWS]}, dtype)
    return Stage(copied, moved["x"], keep=keep)


def subject(
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
    stage: Stage | None = None,
) -> Subject:
    """Bind a measure to a model and data; see :func:`assert_invariant` for the arguments."""
    require_evaluation_mode(model)
    if not 0 <= rtol < 1:
        raise UsageError(f"rtol must be in [0, 1). Got {rtol!r}.")
    bound = bind_measure(measure, name)
    inputs = bind_inputs(bound, x, y, data)
    plain = registered(measure) is None
    return Subject(bound, plain, model, inputs, x, rtol, seed, allow_constant, stage)


def choose(
    bound: Subject,
    transforms: Sequence[Transform] | Transform | None,
    groups: Iterable[Group | str] | None,
    examples: int = 1,
    *,
    laws: bool = False,
) -> tuple[list[Transform], bool]:
    """Decide what to apply.

    Args:
        bound: The bound measure.
        transforms: What the user named, if anything.
        groups: Kinds that the user named, if any.
        examples: Random members of each default kind.
        laws: Include groups for which the measure declares a law.

    Returns:
        The maps, and whether the user named them one by one.

    Raises:
        UsageError: If ``transforms`` holds something else, or a group is unknown.
    """
    if transforms is not None:
        maps = [transforms] if isinstance(transforms, Transform) else list(transforms)
        for entry in maps:
            if not isinstance(entry, Transform):
                raise UsageError(
                    f"transforms must hold Transform objects, such as Permutation(seed=1). "
                    f"Got {entry!r}."
                )
        if not maps:
            raise UsageError("transforms is empty, so nothing would be checked. Leave it out.")
        return resolve_all(maps, bound.model), True
    wanted = wanted_groups(bound, groups, laws=laws)
    if not wanted:
        raise UsageError(
            f"Measure {bound.measure.name!r} declares no group to be checked under. Name some "
            "with groups=[...] or transforms=[...]."
        )
    return list(members(bound.model, bound.x, wanted, bound.seed, examples)), False


def wanted_groups(
    bound: Subject, groups: Iterable[Group | str] | None, *, laws: bool = False
) -> frozenset[Group]:
    """Return the groups to check: the named ones, the declared ones, or all."""
    if groups is not None:
        return frozenset(as_group(entry) for entry in groups)
    if bound.plain:
        return frozenset(set(Group) - {Group.COORDINATES})
    declared = set(bound.measure.invariant_under)
    if laws:
        declared |= set(bound.measure.laws)
    return frozenset(declared - {Group.COORDINATES})


def as_group(entry: Group | str) -> Group:
    """Return the group for its name.

    Raises:
        UsageError: For an unknown name; lists the known ones.
    """
    try:
        return Group(entry)
    except ValueError:
        raise unknown_name("group", entry, [group.value for group in Group]) from None


def members(
    model: nn.Module, x: Tensor, groups: Iterable[Group], seed: int, examples: int = 1
) -> Iterator[Transform]:
    """Draw members of the given kinds of map; compositions only if every part is wanted."""
    wanted = frozenset(groups)
    for transform in default_transforms(model, seed=seed):
        if all(group in wanted for group in transform.groups):
            yield transform
    for number in range(1, examples):
        for group in Group:
            # One fold is all the folds there are; other kinds have as many members as seeds.
            if group in wanted - {Group.BATCHNORM_FOLD, Group.COORDINATES}:
                yield draw_member(group, model, seed + number)
