"""Where a BatchNorm can be folded into a neighbouring weight layer exactly."""

from __future__ import annotations

import numpy as np
from torch import nn

from invariance.symmetry._structures import IntArray, NormSite
from invariance.symmetry.analysis._context import Context, NormCall, WeightCall
from invariance.symmetry.analysis._threads import distinct, unique_rows


def norm_sites(context: Context, model: nn.Module) -> tuple[NormSite, ...]:
    """Decide for every BatchNorm of the graph where it can go."""
    if not context.norms:
        return ()
    readers = _Readers(context)
    seen: dict[str, int] = {}
    for norm in context.norms:
        seen[norm.name] = seen.get(norm.name, 0) + 1
    sites = []
    for norm in {norm.name: norm for norm in reversed(context.norms)}.values():
        into, after, why = _where(context, readers, norm, seen[norm.name], model)
        columns = None if after is None else after.inputs - norm.outputs[0]
        sites.append(
            NormSite(
                norm.name,
                norm.tensors,
                norm.eps,
                norm.input_width,
                seen[norm.name],
                None if into is None else _owner(into, model),
                None if after is None else _owner(after, model),
                why,
                columns,
            )
        )
    return tuple(reversed(sites))


class _Readers:
    """Which operations read which threads."""

    def __init__(self, context: Context) -> None:
        reads = context.relations.reads
        pairs = [np.stack([distinct(threads), np.zeros_like(distinct(threads)) + node], axis=1)
                 for threads, node in reads]  # fmt: skip
        table = unique_rows(np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64))[0]
        self._threads, self._nodes = table[:, 0], table[:, 1]

    def only(self, threads: IntArray, node: int) -> bool:
        """Whether ``node`` alone reads the threads."""
        start = np.searchsorted(self._threads, threads, "left")
        end = np.searchsorted(self._threads, threads, "right")
        once = self._nodes[np.minimum(start, self._nodes.size - 1)] == node
        return bool(((end == start) | ((end == start + 1) & once)).all())


def _where(
    context: Context, readers: _Readers, norm: NormCall, uses: int, model: nn.Module
) -> tuple[WeightCall | None, WeightCall | None, str]:
    if uses > 1:
        return None, None, "the module is used more than once"
    if any(len(context.relations.uses.get(name, ())) > 1 for name in norm.tensors.values()):
        return None, None, "its tensors are shared with another layer"
    reasons = []
    for layer in context.weights:
        if np.array_equal(layer.outputs, norm.inputs):
            reason = _shared(context, layer, model) or _not_before(readers, norm, layer)
            if not reason:
                return layer, None, ""
            reasons.append(reason)
    for layer in context.weights:
        if np.isin(layer.inputs, norm.outputs).any():
            reason = _shared(context, layer, model) or _not_after(readers, norm, layer)
            if not reason:
                return None, layer, ""
            reasons.append(reason)
    fallback = "neither the layer before it nor the one after it is a linear map of it alone"
    return None, None, "; ".join(dict.fromkeys(reasons)) or fallback


def _not_before(readers: _Readers, norm: NormCall, layer: WeightCall) -> str:
    if not readers.only(layer.outputs, norm.node):
        return f"the output of `{layer.name}` goes elsewhere, too"
    return ""


def _not_after(readers: _Readers, norm: NormCall, layer: WeightCall) -> str:
    if not np.isin(layer.inputs, norm.outputs).all():
        return f"`{layer.name}` reads other channels, too"
    if not readers.only(norm.outputs, layer.node):
        return "its output goes to several places"
    if not layer.exact_shift:
        return f"`{layer.name}` pads with zeros, which a folded shift would change"
    if layer.groups > 1:
        return f"`{layer.name}` is a grouped convolution that reads it"
    return ""


def _shared(context: Context, layer: WeightCall, model: nn.Module) -> str:
    if _owner(layer, model) is None:
        return f"`{layer.name}` is not a plain weight layer"
    for name in (layer.weight, layer.bias):
        if name is not None and len(context.relations.uses.get(name, ())) > 1:
            return f"`{layer.name}` shares its {name.rsplit('.', 1)[-1]} with another use"
    module = model.get_submodule(str(_owner(layer, model)))
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and layer.groups > 1:
        return f"`{layer.name}` is a grouped transposed convolution"
    return ""


def _owner(layer: WeightCall, model: nn.Module) -> str | None:
    """Return the name of the module whose weight a call uses, also of one of a subclass."""
    if layer.weight is None:
        return None
    owner, _, attribute = layer.weight.rpartition(".")
    module = model.get_submodule(owner)
    plain = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and attribute == "weight"
    own_bias = layer.bias in (None, f"{owner}.bias".removeprefix("."))
    return owner if plain and own_bias and (layer.bias is None) == (module.bias is None) else None
