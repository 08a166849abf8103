"""Add numbers to parameters where nothing sees them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from invariance.core._applied import Action, Applied, ParameterAction
from invariance.core._arguments import as_seed
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._rng import generator
from invariance.symmetry._structures import SymmetryKind
from invariance.symmetry.elements._group_elements import (
    Element,
    GroupElement,
    named_tensors,
    write_tensors,
)
from invariance.transforms._acting import none_found, prepare
from invariance.transforms._base import Transform


class Translation(Transform):
    """Shift every parameter along the directions in which the function does not depend on it.

    Attention's key bias, a convolution's bias in front of an InstanceNorm, ``W + 1 v^T`` in
    front of a LayerNorm and along a stream that only LayerNorms read. As a map of parameters
    it is ``theta -> theta + s`` with ``f(theta + s) = f(theta)`` for all ``theta``, so every
    derivative of every loss stays, entry by entry, as under a logit shift, of which it has
    the kind.

    Args:
        seed: Seed of the numbers.
        scale: Their standard deviation.
        inverted: Subtract instead of add.

    Example:
        A LayerNorm takes the mean away, and with it what all of its inputs have in common:

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).double()
        >>> x = torch.rand(5, 2).double()
        >>> moved = Translation(seed=0)(model, x)
        >>> torch.allclose(moved(x), model(x)), torch.allclose(moved[0].weight, model[0].weight)
        (True, False)
    """

    group: ClassVar[Group] = Group.LOGIT_SHIFT

    def __init__(self, seed: int = 0, *, scale: float = 1.0, inverted: bool = False) -> None:
        if not (scale > 0 and math.isfinite(scale)):
            raise TransformError(f"Translation: scale must be positive and finite. Got {scale}.")
        self.seed, self.scale, self.inverted = as_seed(seed), float(scale), bool(inverted)

    def __repr__(self) -> str:
        extra = "" if self.scale == 1.0 else f", scale={self.scale!r}"
        extra += ", inverted=True" if self.inverted else ""
        return f"Translation(seed={self.seed}{extra})"

    def inverse(self) -> Translation:
        """Return the transform that undoes this one, up to round-off."""
        return Translation(self.seed, scale=self.scale, inverted=not self.inverted)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["shifts"]`` gives the numbers by parameter."""
        actor = prepare(model, example_input)
        found = actor.analysis.symmetries
        places = [
            p for p, group in enumerate(found.groups) if group.kind is SymmetryKind.TRANSLATION
        ]
        if not places:
            raise none_found(repr(self), "parameter that may be shifted", actor)
        draw = generator(self.seed, "translation")
        size = -self.scale if self.inverted else self.scale
        steps = []
        for place in places:
            group = found.groups[place]
            noise = torch.randn(group.size, generator=draw, dtype=torch.float64) * size
            steps.append((place, GroupElement(group.kind, group.site, noise)))
        write_tensors(actor.model, Element(tuple(steps)).act(named_tensors(actor.model), found))
        same = {
            name: ParameterAction(name, torch.ones(p.shape, dtype=torch.float64))
            for name, p in actor.model.named_parameters()
        }
        return actor.finish(
            model,
            repr(self),
            f"shifted {', '.join(part.site for _, part in steps)}",
            Action(same),
            {"shifts": {part.site: part.values.tolist() for _, part in steps}},
        )
