"""Split hidden units in two or more: a wider network that computes the same function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._arguments import as_seed
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._structures import Role
from invariance.symmetry.elements._width_surgery import Surgery
from invariance.transforms._base import Transform, uniform
from invariance.transforms._width import (
    begin_surgery,
    check_count,
    chosen_places,
    operate,
    per_entry_action,
    piecewise_linear,
)


class SplitUnits(Transform):
    """Copy hidden units and share out their outgoing weights among the copies.

    Holds for any activation: the copies compute the same feature, and their shares sum to
    one. The copies are appended to their group. The action on parameters is known entry by
    entry where units are piecewise linear: an incoming weight of a copy with share ``s``
    counts ``s`` times, so its Hessian diagonal ``s^2`` times; an outgoing weight counts as
    before. With a curved activation a second-derivative term goes with ``s`` instead of
    ``s^2``, and the action is ``None``.

    Args:
        count: How many units to split in each group.
        seed: Seed of the choice of units and of the shares.
        groups: Names of the groups (``SymmetryGroup.site``); ``None`` for every group whose
            size can change, the others being reported in ``Applied.detail["refused"]``.
        power_of_two: Shares 1/2, 1/4, ... that lose no digit. Sums still run in another
            order, so outputs agree to round-off and not always bit for bit.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [2.0]], [[3.0, 4.0]]])
        >>> x = torch.ones(1, 1).double()
        >>> wide = SplitUnits(1, seed=0)(model, x)
        >>> wide.linear1.out_features, round(wide(x).item(), 9)
        (3, 11.0)
    """

    group: ClassVar[Group] = Group.UNIT_SPLIT

    def __init__(
        self,
        count: int,
        seed: int = 0,
        *,
        groups: Sequence[str] | None = None,
        power_of_two: bool = False,
    ) -> None:
        check_count("SplitUnits", count)
        self.count, self.seed = int(count), as_seed(seed)
        self.sites = None if groups is None else tuple(groups)
        self.power_of_two = bool(power_of_two)

    def __repr__(self) -> str:
        extra = "" if self.sites is None else f", groups={self.sites!r}"
        extra += ", power_of_two=True" if self.power_of_two else ""
        return f"SplitUnits({self.count}, seed={self.seed}{extra})"

    @classmethod
    def random_member(cls, model: nn.Module, seed: int) -> SplitUnits:
        """Draw a count of one to three."""
        return cls(1 + int(3 * uniform(seed, cls.group)), seed=seed)

    @classmethod
    def default_members(cls, model: nn.Module, seed: int) -> tuple[SplitUnits, ...]:
        """Return the map with a count of two."""
        return (cls(2, seed=seed),)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a wider copy; see the base class."""
        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        surgery = begin_surgery(model, x, who, track=True)
        places, reasons = chosen_places(surgery, self.sites, who)
        surgery, done, refused, evidence = operate(
            surgery, places, self._split, (model, x), strict=self.sites is not None
        )
        linear = {surgery.found.groups[p].site: piecewise_linear(surgery.found, p) for p in places}
        curved = [site for site in done if not linear[site]]
        return Applied(
            model=surgery.model,
            verification=evidence,
            action=None if curved else per_entry_action(surgery),
            description=f"split {self.count} units at {', '.join(done)}",
            detail={"units": done, "refused": {**reasons, **refused}, "curved": tuple(curved)},
        )

    def _split(self, surgery: Surgery, place: int) -> dict[str, list[float]]:
        """Split units of one group; return the sources and shares of all its units."""
        size = surgery.size(place)
        draw = generator(self.seed, "split", surgery.found.groups[place].site)
        rounds = -(-self.count // size)  # more copies than units: some are split in several
        picks = torch.cat([torch.randperm(size, generator=draw) for _ in range(rounds)])
        source = np.concatenate([np.arange(size), np.sort(picks[: self.count].numpy())])
        raw = torch.rand(source.size, generator=draw, dtype=torch.float64) + 0.5
        shares = torch.ones(source.size, dtype=torch.float64)
        for unit in np.unique(source[size:]):
            copies = torch.from_numpy(np.flatnonzero(source == unit))
            shares[copies] = (
                _halves(copies.numel()) if self.power_of_two else raw[copies] / raw[copies].sum()
            )
        surgery.select(place, source)
        surgery.scale(place, (Role.CONSUMER,), shares)
        surgery.weigh(place, (Role.PRODUCER, Role.SLOPE, Role.STATISTIC), shares)
        return {"source": source.tolist(), "share": shares.tolist()}


def _halves(count: int) -> Tensor:
    """Return ``1/2, 1/4, ..., 2^-(count-1), 2^-(count-1)``, which sum to one."""
    powers = torch.arange(1, count + 1, dtype=torch.float64)
    powers[-1] = max(count - 1, 1)
    return torch.exp2(-powers) if count > 1 else torch.ones(1, dtype=torch.float64)
