"""One network, and its transformed copies: made, proven to keep the function, and kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invariance.checking._check import prove
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._modules import clone
from invariance.testing.gate._faults import isolated
from invariance.transforms._base import Applied, Transform

#: How far a transform may move the outputs, relative to their scale, and still count as
#: function-preserving. The smallest published mistake is 5e-6 (a BatchNorm left in place).
FUNCTION_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}


class BrokenTransformError(TransformError, AssertionError):
    """A transform under test does not keep the function, so it proves nothing about a measure."""


class Stage:
    """A network on which measures are tried, and where transforms are put to it.

    Args:
        model: A private copy of the network, in the precision to work in.
        example: Input rows to trace and to prove transforms on.
        keep: Make each transformed copy once, for all measures that share this stage.
    """

    def __init__(self, model: nn.Module, example: Tensor, *, keep: bool = False) -> None:
        self.model, self.example, self.keep = model, example, keep
        # By identity; the transform is held too, so that no other can get its address.
        self._kept: dict[int, tuple[Transform, Applied]] = {}

    def put(self, transform: Transform, measure: str = "any measure") -> Applied:
        """Apply ``transform`` to the network, and prove that the function stayed.

        Args:
            transform: The map.
            measure: What it is to be tried on, for the message.

        Returns:
            The transformed copy with its evidence.

        Raises:
            TransformError: If the transform does not apply.
            BrokenTransformError: If it changes the function.
        """
        if id(transform) in self._kept:
            return self._kept[id(transform)][1]
        with isolated():
            applied = transform.apply(self.model, self.example)
        self._require_same_function(transform, applied.model, measure)
        if self.keep:
            self._kept[id(transform)] = (transform, applied)
        return applied

    def models(self) -> tuple[nn.Module, ...]:
        """Return the network and every transformed copy that is kept."""
        return (self.model, *(applied.model for _, applied in self._kept.values()))

    def _require_same_function(self, transform: Transform, after: nn.Module, measure: str) -> None:
        if Group.COORDINATES in transform.groups:
            return  # verified on its own; what it changes is the parameters' meaning
        with isolated():
            proof = prove(transform, clone(self.model), after, self.example)
        allowed = FUNCTION_RTOL.get(self.example.dtype, 5e-2) * max(proof.output_scale, 1e-300)
        if proof.max_abs_logit_diff <= allowed:
            return
        relative = proof.max_abs_logit_diff / (proof.output_scale or math.nan)
        raise BrokenTransformError(
            f"{transform!r} does not keep the function: the {proof.compared} move by "
            f"{proof.max_abs_logit_diff:.3g} ({100 * relative:.2g} % of their scale) and "
            f"{proof.labels_changed} of {proof.rows} labels change. It can prove nothing about "
            f"{measure!r}; mend the transform first."
        )
