"""Which weight layer an index means: they are counted in the order of execution.

That is how :class:`invariance.transforms.LayerScaling` counts them too. The order in which a
module registers its layers is another one where, say, a residual block registers its
shortcut's convolution last and runs it first.
"""

from __future__ import annotations

import torch
from torch import nn

from invariance.core._errors import MeasureError
from invariance.core._forward import reading, run
from invariance.core._modules import WEIGHT_LAYERS, evaluation_mode, weight_layers
from invariance.curvature._batches import Batches
from invariance.curvature.exact._directional import move_like


def chosen_layer(model: nn.Module, batches: Batches, layer: int | str) -> str:
    """Return the name of the layer that an index or a name means."""
    registered = [name for name, _ in weight_layers(model)]
    if isinstance(layer, str):
        if layer in registered:
            return layer
        raise _no_such_layer(layer, registered)
    names = executed_layers(model, batches)
    missing = [name for name in registered if name not in names]
    if missing:
        raise MeasureError(
            f"Layer {missing[0]!r} is never called on this input (unused, or its weight is used "
            "outside it), so its place among the layers is not known, and an index may mean "
            f"another layer. Give the layer's name instead of {layer!r}: {', '.join(registered)}."
        )
    if isinstance(layer, int) and -len(names) <= layer < len(names):
        return names[layer]
    raise _no_such_layer(layer, names)


def executed_layers(model: nn.Module, batches: Batches) -> list[str]:
    """Return the weight layers' names in the order of their first call."""
    layers = weight_layers(model)
    if type(model) is nn.Sequential and not any(list(child.children()) for child in model):
        return [name for name, _ in layers]
    if not layers:
        return []
    row = move_like(batches.first()[0][:1], next(iter(model.parameters())))
    names = {id(module): name for name, module in layers}
    seen: dict[str, None] = {}

    def note(module: nn.Module, args: object) -> None:
        seen.setdefault(names[id(module)])

    handles = [
        module.register_forward_pre_hook(note)
        for module in model.modules()
        if isinstance(module, WEIGHT_LAYERS)
    ]
    try:
        with torch.no_grad(), evaluation_mode(model), reading(model, row):
            run(model, row)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen)


def _no_such_layer(layer: object, names: list[str]) -> MeasureError:
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names)) or "none"
    return MeasureError(f"There is no weight layer {layer!r}. The model has {listed}.")
