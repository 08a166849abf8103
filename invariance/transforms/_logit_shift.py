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

from invariance.core._applied import Action, Applied, ParameterAction
from invariance.core._arguments import as_seed
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._modules import clone
from invariance.core._rng import generator
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._verify import verify
from invariance.symmetry.analysis._logits import logit_shift_group
from invariance.symmetry.elements._group_elements import named_tensors, write_tensors
from invariance.transforms._base import Transform


class LogitShift(Transform):
    """Add one random row to all rows of the last linear layer, and one number to its bias.

    Applies only where the network's output is a linear layer's output directly. Keeps the
    softmax and not the logits, which the verification therefore compares.

    Args:
        seed: Seed of the row and the number.
        scale: Their standard deviation.
        inverted: Subtract instead of add.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model, x = inv.models.from_weights([[[1.0], [2.0]]]), torch.ones(1, 1).double()
        >>> shifted = LogitShift(seed=0)(model, x)(x)
        >>> round((shifted[0, 1] - shifted[0, 0]).item(), 9)  # the logits differ as they did
        1.0
    """

    group: ClassVar[Group] = Group.LOGIT_SHIFT

    def __init__(self, seed: int = 0, *, scale: float = 1.0, inverted: bool = False) -> None:
        if not (scale > 0 and math.isfinite(scale)):
            raise TransformError(f"LogitShift: scale must be positive and finite. Got {scale}.")
        self.seed, self.scale, self.inverted = as_seed(seed), float(scale), bool(inverted)

    def __repr__(self) -> str:
        extra = "" if self.scale == 1.0 else f", scale={self.scale!r}"
        extra += ", inverted=True" if self.inverted else ""
        return f"LogitShift(seed={self.seed}{extra})"

    def inverse(self) -> LogitShift:
        """Return the transform that undoes this one, up to round-off."""
        return LogitShift(self.seed, scale=self.scale, inverted=not self.inverted)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return a copy with shifted logits; see the base class."""
        who = repr(self)
        refuse_train_mode(model, who)
        x = example_or_default(model, example_input, who)
        group = logit_shift_group(model, x)
        if isinstance(group, str):
            raise TransformError(f"{who} does not apply to {type(model).__name__}: {group}.")
        tensors = named_tensors(model)
        draw = generator(self.seed, "logit shift")
        shifts = {}
        for leg in group.legs:
            shift = self._shift(tensors[leg.parameter], draw)
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
            verification=verify(model, new, x, who, softmax=True),
            action=Action(same),
            description=f"shifted all rows of {', '.join(shifts)} alike",
            detail={"shifts": shifts},
        )

    def _shift(self, tensor: Tensor, draw: torch.Generator) -> Tensor:
        """Draw what is added to one tensor: constant over the logits, free along the rest."""
        shape = (1, *tensor.shape[1:])
        size = -self.scale if self.inverted else self.scale
        noise = torch.randn(shape, generator=draw, dtype=torch.float64) * size
        return noise.to(tensor).expand_as(tensor)
