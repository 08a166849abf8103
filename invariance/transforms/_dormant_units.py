"""Units that nothing listens to: insert them, or move the ones that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._structures import Role
from invariance.symmetry.elements._width_surgery import Surgery
from invariance.transforms._base import Transform, uniform
from invariance.transforms._width import begin_surgery, check_count, chosen_places, operate


class DormantUnits(Transform):
    """Insert hidden units with random incoming and zero outgoing weights, or move them.

    Holds for any activation. The function stays while the features of a layer do not: a
    measure that reads features sees the new unit, one that reads the function cannot. The
    action is ``None``: the outgoing weights of a dormant unit are zero, but their
    derivatives are new and related to nothing old.

    Args:
        count: How many units to insert in each group; with ``move``, how many of the
            dormant units of each group to move (at most).
        seed: Seed of the incoming weights.
        move: Keep the architecture, and draw new incoming weights for units whose outgoing
            weights are all zero already.
        groups: Names of the groups (``SymmetryGroup.site``); ``None`` for all that can.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [2.0]], [[3.0, 4.0]]])
        >>> x = torch.ones(1, 1).double()
        >>> wide = DormantUnits(2, seed=0)(model, x)
        >>> wide.linear1.out_features, round(wide(x).item(), 9)
        (4, 11.0)
    """

    group: ClassVar[Group] = Group.DORMANT_UNITS

    def __init__(
        self,
        count: int,
        seed: int = 0,
        *,
        move: bool = False,
        groups: Sequence[str] | None = None,
    ) -> None:
        check_count("DormantUnits", count)
        self.count, self.seed, self.move = int(count), as_seed(seed), bool(move)
        self.sites = None if groups is None else tuple(groups)

    def __repr__(self) -> str:
        extra = ", move=True" if self.move else ""
        extra += "" if self.sites is None else f", groups={self.sites!r}"
        return f"DormantUnits({self.count}, seed={self.seed}{extra})"

    @classmethod
    def random_member(cls, model: nn.Module, seed: int) -> DormantUnits:
        """Draw a count of one to three."""
        return cls(1 + int(3 * uniform(seed, cls.group)), seed=seed)

    @classmethod
    def default_members(cls, model: nn.Module, seed: int) -> tuple[DormantUnits, ...]:
        """Return the map with a count of two."""
        return (cls(2, seed=seed),)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy with new or moved dormant units; see the base class."""
        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        surgery = begin_surgery(model, x, who)
        places, reasons = chosen_places(surgery, self.sites, who)
        if self.move and not any(dormant(surgery, place).size for place in places):
            raise TransformError(
                f"{who}: no unit here has outgoing weights that are all zero, so there is none "
                f"to move. Insert one first: DormantUnits({self.count}, seed={self.seed})."
            )
        surgery, done, refused, evidence = operate(
            surgery,
            # Last group first: the new rows of a later layer then have no columns yet for the
            # new units of an earlier one, which so end up dormant in every layer.
            places[::-1],
            self._move if self.move else self._insert,
            (model, x),
            strict=self.sites is not None,
        )
        verb = "moved dormant units" if self.move else f"inserted {self.count} dormant units"
        return Applied(
            model=surgery.model,
            verification=evidence,
            action=None,
            description=f"{verb} at {', '.join(done)}",
            detail={"units": done, "refused": {**reasons, **refused}},
        )

    def _insert(self, surgery: Surgery, place: int) -> list[int]:
        size = surgery.size(place)
        # New units start as copies, so that statistics and slopes have legal values.
        copied = np.arange(self.count) % size
        surgery.select(place, np.concatenate([np.arange(size), copied]))
        units = np.arange(size, size + self.count)
        listeners = torch.ones(size + self.count, dtype=torch.float64)
        listeners[size:] = 0.0
        surgery.scale(place, (Role.CONSUMER,), listeners)
        self._draw(surgery, place, units)
        return [int(unit) for unit in units]

    def _move(self, surgery: Surgery, place: int) -> list[int] | None:
        units = dormant(surgery, place)[: self.count]
        if not units.size:
            return None
        self._draw(surgery, place, units)
        return [int(unit) for unit in units]

    def _draw(self, surgery: Surgery, place: int, units: np.ndarray) -> None:
        """Give units new incoming weights, of the size of the other weights there."""
        draw = generator(self.seed, "dormant", surgery.found.groups[place].site)
        for name, dim, along, role in surgery.tensors(place):
            tensor = surgery.tensor(name)
            if role is not Role.PRODUCER or not isinstance(tensor, nn.Parameter):
                continue
            at = torch.from_numpy(np.flatnonzero(np.isin(along, units)))
            with torch.no_grad():
                front = torch.movedim(tensor, dim, 0)
                noise = torch.randn(
                    (at.numel(), *front.shape[1:]), generator=draw, dtype=torch.float64
                )
                # What no unit of this group reads belongs to a dormant unit before it, which
                # should stay one.
                read = (front != 0).any(0).cpu()
                noise = noise * read if bool(read.any()) else noise
                spread = float(tensor.double().square().mean().sqrt()) or 1.0
                front[at.to(tensor.device)] = (spread * noise).to(tensor)


def dormant(surgery: Surgery, place: int) -> np.ndarray:
    """Return the units of a group whose outgoing weights are all exactly zero."""
    outgoing = surgery.rows(place, (Role.CONSUMER,))
    return np.flatnonzero((outgoing == 0).all(1).numpy())
