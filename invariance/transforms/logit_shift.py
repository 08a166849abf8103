"""Shift all logits of a row alike: invisible to the softmax, and to every loss on it.

``W -> W + 1 v^T`` and ``b -> b + c 1`` add ``v . phi + c`` to every logit. As a map of
parameters it is a translation ``theta -> theta + s`` with ``L(theta + s) = L(theta)`` for all
``theta``, so every derivative of the loss stays, entry by entry.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from invariance.core.errors import TransformError
from invariance.core.groups import Group
from invariance.core.modules import clone
from invariance.core.rng import generator
from invariance.symmetry.elements import compact, named_tensors, write_tensors
from invariance.symmetry.structures import Kind, Leg
from invariance.transforms.base import Action, Applied, ParameterAction, Transform
from invariance.transforms.evidence import example_or_default, refuse_train_mode, verify


class LogitShift(Transform):
    """Add one random row to all rows of the last linear layer, and one number to its bias.

    Applies only where the network's output is a linear layer's output directly. Keeps the
    softmax and not the logits, which the verification therefore compares.

    Args:
        seed: Seed of the row and the number.
        scale: Their standard deviation.
        inverted: Subtract instead of add.
    """

    group: ClassVar[Group] = Group.LOGIT_SHIFT

    def __init__(self, seed: int = 0, *, scale: float = 1.0, inverted: bool = False) -> None:
        if not (scale > 0 and math.isfinite(scale)):
            raise TransformError(f"LogitShift: scale must be positive and finite. Got {scale}.")
        self.seed, self.scale, self.inverted = int(seed), float(scale), bool(inverted)

    def __repr__(self) -> str:
        extra = "" if self.scale == 1.0 else f", scale={self.scale!r}"
        extra += ", inverted=True" if self.inverted else ""
        return f"LogitShift(seed={self.seed}{extra})"

    def inverse(self) -> LogitShift:
        """Return the transform that undoes this one, up to round-off."""
        return LogitShift(self.seed, scale=self.scale, inverted=not self.inverted)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy with shifted logits; see the base class."""
        from invariance.symmetry import symmetries as analyse

        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        found = analyse(model, x)
        groups = found.of(Kind.LOGIT_SHIFT)
        if not groups:
            stops = [str(stop) for stop in found.stops if Kind.LOGIT_SHIFT in stop.kinds]
            raise TransformError(
                f"{who}: the network's output must be a linear layer's output directly, so that "
                "one number can be added to all logits of a row. "
                + ("; ".join(stops) or "It is something else here.")
            )
        tensors = named_tensors(model)
        draw = generator(self.seed, "logit shift")
        shifts = {}
        for leg in (leg for group in groups for leg in group.legs):
            shift = self._shift(tensors[leg.parameter], leg, draw)
            shifts[leg.parameter] = shift
            tensors[leg.parameter] = tensors[leg.parameter] + shift
        new = clone(model)
        write_tensors(new, tensors)
        same = {
            name: ParameterAction(name, torch.ones(p.shape, dtype=torch.float64))
            for name, p in new.named_parameters()
        }
        return Applied(
            model=new,
            verification=verify(model, new, x, who, compared="softmax"),
            action=Action(same),
            description=f"shifted all rows of {', '.join(shifts)} alike",
            detail={"shifts": shifts},
        )

    def _shift(self, tensor: Tensor, leg: Leg, draw: torch.Generator) -> Tensor:
        """Draw what is added to one tensor: constant over the logits, free along the rest."""
        dims, _, _ = compact(leg)
        along = dims or (0,)  # a single logit
        shape = [1 if d in along else n for d, n in enumerate(tensor.shape)]
        size = -self.scale if self.inverted else self.scale
        noise = torch.randn(shape, generator=draw, dtype=torch.float64) * size
        reached = torch.from_numpy((leg.units >= 0).astype("float64"))
        return (noise * reached).to(tensor).expand_as(tensor)
