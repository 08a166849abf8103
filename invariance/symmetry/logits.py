"""Find the linear layer whose output is the network's output: where logits can be shifted."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from invariance.core.modules import clone
from invariance.symmetry.structures import Kind, Leg, Role, SymmetryGroup
from invariance.symmetry.tracing import Call, tensors_in, watch


def logit_shift_group(model: nn.Module, inputs: tuple[Any, ...]) -> SymmetryGroup | str:
    """Return the group of logit shifts of a network, or the reason why it has none.

    ``W -> W + 1 v^T, b -> b + c 1`` adds one number to all logits of a row. That needs a
    linear layer whose output is the network's only output, untouched, and whose weight and
    bias are plain parameters that nothing else reads.

    Args:
        model: The network, in eval mode.
        inputs: Positional arguments to run it with.

    Returns:
        The group: the logits are its units, ``in_features + 1`` (or without bias
        ``in_features``) its degrees of freedom. Or a sentence that says why there is none.
    """
    copied = clone(model).eval()
    names = {id(p): name for name, p in copied.named_parameters()}
    heads: list[Call] = []
    uses: dict[str, int] = {}
    last: dict[int, Call] = {}
    held: list[Any] = []  # keeps every result alive, so that no two share an id

    def handle(call: Call) -> None:
        held.append(call.out)
        for tensor in tensors_in((call.args, dict(call.kwargs))):
            if id(tensor) in names:
                uses[names[id(tensor)]] = uses.get(names[id(tensor)], 0) + 1
        for tensor in tensors_in(call.out):
            last[id(tensor)] = call
        if call.name == "linear":
            heads.append(call)

    output = watch(copied, inputs, handle, lambda _: False)
    found = list(tensors_in(output)) or list(tensors_in(vars(output)))
    if len(found) != 1:
        return f"the network has {len(found)} outputs, and a shift is invisible in logits only"
    maker = last.get(id(found[0]))
    if maker is None or maker.name != "linear" or maker.in_place:
        what = "the input itself" if maker is None else f"made by `{maker.place}` {maker.operation}"
        return f"the network's output is {what}, not by a linear layer directly"
    weight, bias = maker.argument(1, "weight"), maker.argument(2, "bias")
    owned = [tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)]
    for tensor in owned:
        name = names.get(id(tensor))
        if name is None:
            return f"`{maker.place}` has a weight that is computed (parametrized)"
        if uses[name] > 1:
            return f"`{name}` is read in {uses[name]} places, not by the last layer alone"
    logits, features = weight.shape
    unit = np.arange(logits, dtype=np.int64)
    legs = []
    for tensor in owned:
        shape = (logits,) + (1,) * (tensor.dim() - 1)
        legs.append(
            Leg(
                names[id(tensor)],
                unit.reshape(shape).copy(),
                0,
                0,
                Role.PRODUCER,
                np.zeros((1,) * tensor.dim(), dtype=np.int64),
                site=str(maker.place),
            )
        )
    return SymmetryGroup(
        Kind.LOGIT_SHIFT,
        names[id(weight)],
        int(logits),
        int(features) + len(owned) - 1,
        tuple(legs),
        order=maker.node,
    )
