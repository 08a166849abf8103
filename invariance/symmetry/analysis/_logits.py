"""Find the linear layer whose output is the network's output: where logits can be shifted."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from invariance.core._modules import clone
from invariance.symmetry._examples import each
from invariance.symmetry._structures import Leg, Role, SymmetryGroup, SymmetryKind
from invariance.symmetry.analysis._tracing import Call, Observer, all_tensors_in, tensors_in, watch


class HeadFinder(Observer):
    """Watches a forward pass for the linear layer that makes the network's output.

    ``W -> W + 1 v^T, b -> b + c 1`` adds one number to all logits of a row. That needs a
    linear layer whose output is the network's only output, untouched, and whose weight and
    bias are plain parameters that nothing else reads.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._uses: dict[str, int] = {}
        self._last: dict[int, Call] = {}
        self._held: list[Any] = []  # keeps every result alive, so that no two share an id

    def see(self, call: Call) -> None:
        """Take down one call."""
        self._held.append(call.out)
        for tensor in tensors_in((call.args, dict(call.kwargs))):
            name = self._names.get(id(tensor))
            if name is not None:
                self._uses[name] = self._uses.get(name, 0) + 1
        for tensor in tensors_in(call.out):
            self._last[id(tensor)] = call

    def group(self, output: Any) -> SymmetryGroup | str:
        """Return the group of logit shifts, or the reason why there is none."""
        found = all_tensors_in(output)
        if len(found) != 1:
            return f"the network has {len(found)} outputs, and a shift is invisible in logits only"
        maker = self._last.get(id(found[0]))
        if maker is None or maker.name != "linear" or maker.in_place or maker.hidden:
            made = f"made by `{maker.place}` {maker.operation}" if maker else "the input itself"
            return f"the network's output is {made}, not by a linear layer directly"
        weight, bias = maker.argument(1, "weight"), maker.argument(2, "bias")
        owned = [tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)]
        for tensor in owned:
            name = self._names.get(id(tensor))
            if name is None:
                return f"`{maker.place}` has a weight that is computed (parametrized)"
            if self._uses[name] > 1:
                return f"`{name}` is read in {self._uses[name]} places, not by the last layer alone"
        logits, features = weight.shape
        legs = tuple(self._leg(tensor, str(maker.place)) for tensor in owned)
        dof = int(features) + len(owned) - 1
        site = self._names[id(weight)]
        return SymmetryGroup(
            SymmetryKind.LOGIT_SHIFT, site, int(logits), dof, legs, order=maker.node
        )

    def _leg(self, tensor: Tensor, site: str) -> Leg:
        """Return the leg along a tensor's rows; powers are zero, for nothing is multiplied."""
        rows = np.arange(tensor.shape[0], dtype=np.int64)
        ones = (1,) * (tensor.dim() - 1)
        return Leg(
            self._names[id(tensor)],
            rows.reshape(-1, *ones),
            0,
            0,
            Role.PRODUCER,
            np.zeros((1, *ones), dtype=np.int64),
            site=site,
        )


def logit_shift_group(model: nn.Module, inputs: tuple[Any, ...]) -> SymmetryGroup | str:
    """Run a network and return its group of logit shifts, or why it has none."""
    group: SymmetryGroup | str = ""
    for example in each(inputs):
        copied = clone(model).eval()
        finder = HeadFinder(copied)
        group = finder.group(watch(copied, example, finder))
        if isinstance(group, str):
            break
    return group
