"""The smallest members of each kind of map: one site of the model's graph, one unit of it.

Transforms of :mod:`invariance.transforms` move a whole network. To say which layer breaks
a claim, and how little it takes, a failure is narrowed down to these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._errors import TransformError, UsageError
from invariance.core._groups import ABOUT, Group
from invariance.transforms._base import Transform

if TYPE_CHECKING:
    from invariance.symmetry._structures import Symmetries, SymmetryGroup

#: Kind of symmetry group, as ``inv.symmetries`` prints it, to the group of a declaration. A
#: unit's scaling is a neuron scaling: the last of the groups that act on a site.
GROUP_OF: Mapping[str, Group] = {
    site: group for group, about in ABOUT.items() for site in about.sites
}

SCALINGS = ("scaling", "batchnorm_affine", "batchnorm_weight_scale")


class AtSite(Transform):
    """Act on one site of the model's graph and leave every other alone.

    Args:
        kind: ``"scaling"``, ``"batchnorm_affine"`` or ``"batchnorm_weight_scale"``
            (multiply units by ``factor``), ``"sign_flip"`` (flip units), or
            ``"permutation"`` (swap two units).
        site: The site's name, as ``inv.symmetries`` prints it.
        factor: The factor, for scalings.
        units: Which units; ``None`` for all. Two of them for a permutation.
    """

    def __init__(
        self, kind: str, site: str, factor: float = 2.0, *, units: Sequence[int] | None = None
    ) -> None:
        if kind not in GROUP_OF:
            raise UsageError(f"Unknown kind {kind!r}. Known kinds: {', '.join(GROUP_OF)}.")
        if kind == "permutation" and (units is None or len(units) != 2):
            raise UsageError(f"A permutation at one site swaps two units. Got units={units!r}.")
        if kind in SCALINGS and not 0 < factor < float("inf"):
            raise UsageError(f"A factor must be positive and finite. Got {factor!r}.")
        self.kind, self.site, self.factor = kind, site, float(factor)
        self.units = None if units is None else tuple(int(unit) for unit in units)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The one kind of symmetry that this is; a whole layer's scaling is a layer scaling."""
        if self.kind == "scaling" and self.units is None:
            return (Group.LAYER_SCALING,)
        return (GROUP_OF[self.kind],)

    def __repr__(self) -> str:
        factor = f", {self.factor!r}" if self.kind in SCALINGS else ""
        units = "" if self.units is None else f", units={list(self.units)!r}"
        return f"AtSite({self.kind!r}, {self.site!r}{factor}{units})"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy moved at one site; see the base class."""
        from invariance.transforms._acting import prepare

        who = repr(self)
        actor = prepare(model, example_input)
        group = self._find(actor.analysis.symmetries, who)
        outside = [unit for unit in self.units or () if not 0 <= unit < group.size]
        if outside:
            raise TransformError(f"{who}: unit {outside[0]} of {group.size} does not exist.")
        chosen = slice(None) if self.units is None else list(self.units)
        if self.kind == "permutation":
            order = np.arange(group.size)
            order[chosen] = order[chosen][::-1]
            actor.permute(group, order)
        else:
            values = np.ones(group.size)
            values[chosen] = self.factor if self.kind in SCALINGS else -1.0
            (actor.scale if self.kind in SCALINGS else actor.flip)(group, values)
        return actor.finish(
            model, who, f"{self.kind} at {self.site}", actor.action(), {"site": self.site}
        )

    def inverse(self) -> Transform:
        """Return the transform that undoes this one."""
        return AtSite(self.kind, self.site, 1 / self.factor, units=self.units)

    def _find(self, found: Symmetries, who: str) -> SymmetryGroup:
        for group in found.groups:
            if group.kind == self.kind and group.site == self.site:
                return group
        known = [group.site for group in found.groups if group.kind == self.kind]
        raise TransformError(
            f"{who}: the model has no such site. Sites of kind {self.kind}: "
            f"{', '.join(known) or 'none'}."
        )


def analyse(model: nn.Module, example: Tensor | None) -> Symmetries:
    """Return what function-preserving maps ``model`` admits."""
    from invariance.symmetry.analysis._symmetries import analyse as read

    return read(model, example).symmetries
