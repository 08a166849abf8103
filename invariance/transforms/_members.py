"""Members of every kind of map: those that a check applies, and random ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

import invariance.transforms as T
from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._errors import UsageError
from invariance.core._groups import ABOUT, Group
from invariance.transforms._base import Transform


def default_transforms(model: nn.Module, *, seed: int = 0) -> list[Transform]:
    """One or two members of every kind of map; those that do not apply get refused later."""
    found = [member for kind in T.KINDS for member in kind.default_members(model, seed)]
    return [*found, T.Compose([T.NeuronScaling(seed=seed + 1), T.Permutation(seed=seed + 1)])]


def draw_member(group: Group | str, model: nn.Module, seed: int) -> Transform:
    """Draw a member of one kind of map for ``model``.

    Args:
        group: The kind.
        model: What it will be applied to, for its number of layers.
        seed: Decides the member.

    Returns:
        A transform; whether the model admits it shows when it is applied.

    Raises:
        UsageError: If there is no member of this kind to draw.
    """
    wanted = Group(group)
    for kind in T.KINDS:
        if kind.group is wanted:
            return kind.random_member(model, seed)
    raise UsageError(f"No random member of the kind {wanted.value!r} can be drawn.")


def members(
    model: nn.Module, groups: Iterable[Group], seed: int, examples: int = 1
) -> Iterator[Transform]:
    """Draw members of the given kinds of map; compositions only if every part is wanted."""
    wanted = frozenset(groups)
    for transform in default_transforms(model, seed=seed):
        if all(group in wanted for group in transform.groups):
            yield transform
    for number in range(1, examples):
        for group in Group:
            if group in wanted and ABOUT[group].members == "many":
                yield draw_member(group, model, seed + number)


class MemberOf(Transform):
    """A member of one kind of map that is drawn when it meets its model.

    Args:
        group: The kind.
        seed: Decides the member.
    """

    def __init__(self, group: Group | str, seed: int = 0) -> None:
        self.kind, self.seed = Group(group), as_seed(seed)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The one kind of map that this is."""
        return (self.kind,)

    def __repr__(self) -> str:
        return f"MemberOf({self.kind.value!r}, seed={self.seed})"

    def resolve(self, model: nn.Module) -> Transform:
        """Return the drawn member."""
        return draw_member(self.kind, model, self.seed)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Draw the member and apply it; see the base class."""
        return self.resolve(model).apply(model, example_input)


def resolve_all(transforms: Iterable[Transform], model: nn.Module) -> list[Transform]:
    """Replace every :class:`MemberOf` by the member drawn for ``model``."""
    return [entry.resolve(model) if isinstance(entry, MemberOf) else entry for entry in transforms]
