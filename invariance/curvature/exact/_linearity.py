"""In which parameters is a network piecewise linear? Read off its traced graph.

The network is traced to PyTorch's primitive ("aten") operations, and for every
intermediate result we keep the set of parameters that it depends on, and for each of
them whether the dependence is known to be piecewise linear with all other parameters
fixed. The rules are a whitelist: an operation that is not on it makes everything that
passes through it nonlinear. Products are allowed between factors that share no parameter,
which is what makes a layer ``W a`` linear in W and piecewise linear in what made a, and
what rules out a weight that is used twice in a row (but not one used twice in parallel).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from invariance.core._activations import BY_CALL
from invariance.core._forward import run
from invariance.core._modules import autocasting, computes_as_its_class, has_global_hooks

#: Operations that are piecewise linear in all their tensors jointly.
_PIECEWISE_LINEAR = frozenset(
    """
    view _unsafe_view reshape t transpose permute expand expand_copy clone contiguous squeeze
    unsqueeze slice select split split_with_sizes unbind chunk cat stack flip roll
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d _to_copy detach alias lift_fresh lift_fresh_copy add
    sub rsub neg sum mean avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d repeat
    index gather index_select cumsum pixel_shuffle pixel_unshuffle im2col col2im as_strided
    select_scatter slice_scatter tril triu diagonal diag_embed view_copy copy permute_copy
    transpose_copy t_copy squeeze_copy unsqueeze_copy slice_copy select_copy fill
    clamp clamp_min clamp_max maximum minimum amax amin max min max_pool2d_with_indices
    max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d sort topk
    median
    """.split()  # noqa: SIM905 - a table of words reads better than a list of strings
) | {name for name, known in BY_CALL.items() if known.piecewise_linear and known.slopes}

#: Operations whose result is piecewise constant, so that nothing is differentiated through.
_PIECEWISE_CONSTANT = frozenset(
    """
    gt lt ge le eq ne sign floor ceil round trunc argmax argmin logical_and logical_or
    logical_not logical_xor bitwise_and bitwise_or bitwise_not isnan isinf isfinite zeros_like
    ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty
    zeros ones full empty arange eye scalar_tensor
    """.split()  # noqa: SIM905
)

#: Products (of which some add a summand): operation to the positions of its two factors.
_PRODUCTS: Mapping[str, tuple[int, int]] = {
    "mul": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "matmul": (0, 1),
    "_prelu_kernel": (0, 1),
    "addmm": (1, 2),
    "addmv": (1, 2),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "addcmul": (1, 2),
    "linear": (0, 1),
    "convolution": (0, 1),
}

#: Parameter name to why the dependence is not piecewise linear, ``None`` where it is.
Dependence = dict[str, "str | None"]


@dataclass(frozen=True)
class Linearity:
    """What the graph says about each parameter.

    Attributes:
        reasons: Parameter name to why the outputs are not known to be piecewise linear in
            it; parameters in which they are do not occur.
        uses: Parameter name to how many operations read it (0: without influence).
        silent: Parameters on which the outputs do not depend.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)
    uses: Mapping[str, int] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", MappingProxyType(dict(self.reasons)))
        object.__setattr__(self, "uses", MappingProxyType(dict(self.uses)))


def analyse_linearity(model: nn.Module, rows: Tensor) -> Linearity:
    """Trace a network and find the parameters in which it is piecewise linear."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def outputs(params: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(model, x, {**params, **state})

    try:
        with torch.no_grad():
            tracer = make_fx(outputs, tracing_mode="fake")
            graph = tracer(parameters, buffers, rows).graph
    except Exception as error:  # the tracer raises whatever the user's forward provokes
        why = f"its graph could not be traced ({type(error).__name__}: {_first_line(error)})"
        return Linearity(dict.fromkeys(parameters, why), dict.fromkeys(parameters, 1))
    return _read(graph, list(parameters))


#: Packages whose modules compute what their class and attributes say, whatever the values of
#: their parameters: for networks of these, equal structure is equal linearity.
_TRUSTED = ("torch.nn.modules.", "invariance.models.")

#: How many structures are remembered.
_REMEMBERED = 64

_known: OrderedDict[Hashable, Linearity] = OrderedDict()


def linearity_of(model: nn.Module, rows: Tensor) -> Linearity:
    """Return :func:`analyse_linearity`, remembered by structure where that tells all."""
    key = _structure(model, rows)
    if key is None:
        return analyse_linearity(model, rows)
    if key not in _known:
        _known[key] = analyse_linearity(model, rows)
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
    return _known[key]


def _structure(model: nn.Module, rows: Tensor) -> Hashable:
    """Describe all that a trace of ``model`` can depend on; ``None`` where something is foreign."""
    if has_global_hooks() or autocasting(rows.device.type):
        return None
    order: dict[int, int] = {}
    parts: list[Hashable] = [(rows.shape, rows.dtype, rows.device)]
    for name, module in model.named_modules(remove_duplicate=False):
        if not type(module).__module__.startswith(_TRUSTED) or not computes_as_its_class(module):
            return None
        tensors = [
            (leaf, order.setdefault(id(value), len(order)), type(value), value.shape, value.dtype)
            for leaf, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        ]
        settings = []
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            plain = tuple(sorted(value)) if isinstance(value, set) else value
            if isinstance(value, dict) and not value:  # no hooks
                plain = ()
            if not _is_plain(plain):
                return None
            settings.append((attribute, type(value), plain))
        children = tuple((key, child is None) for key, child in module._modules.items())
        parts.append((name, id(module) in order, type(module), *tensors, *settings, children))
        order.setdefault(id(module), len(order))
    return tuple(parts)


def _is_plain(value: object) -> bool:
    """Whether a value is immutable, and equal values mean the same."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(
        value, (bool, int, float, str, torch.dtype, torch.device, torch.Size)
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


class _Dependences:
    """What each tensor of the graph depends on; views and in-place results share one entry.

    An entry only ever grows: writing into a part of a tensor adds to the dependences of the
    whole, and what was read before has already been passed on.
    """

    def __init__(self) -> None:
        self._entries: dict[fx.Node, Dependence] = {}
        self._roots: dict[fx.Node, fx.Node] = {}

    def __getitem__(self, node: fx.Node) -> Dependence:
        return self._entries.get(self._root(node), {})

    def __setitem__(self, node: fx.Node, value: Dependence) -> None:
        target = node.target
        schema = getattr(target, "_schema", None)
        aliased = bool(schema and schema.returns and schema.returns[0].alias_info is not None)
        if (aliased or _operation(target) == "getitem") and isinstance(node.args[0], fx.Node):
            self._roots[node] = self._root(node.args[0])
        entry = self._entries.setdefault(self._root(node), {})
        for name, why in value.items():
            entry[name] = entry.get(name) or why

    def _root(self, node: fx.Node) -> fx.Node:
        return self._roots.get(node, node)

    def union(self, node: fx.Node) -> Dependence:
        """Join the dependences of all inputs of ``node``; a known obstacle stays."""
        joined: Dependence = {}
        for source in node.all_input_nodes:
            for name, why in self[source].items():
                joined[name] = joined.get(name) or why
        return joined

    def at(self, node: fx.Node, position: int) -> Dependence:
        """Return the dependence of one positional argument (empty for a constant)."""
        argument = node.args[position] if position < len(node.args) else None
        return self[argument] if isinstance(argument, fx.Node) else {}


def _read(graph: fx.Graph, names: list[str]) -> Linearity:
    """Propagate dependences through the graph."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    state = _Dependences()
    uses = {}
    for name, node in zip(names, placeholders, strict=False):
        state[node] = {name: None}
        uses[name] = len(node.users)
    result: Dependence = {}
    for node in graph.nodes:
        if node.op == "call_function":
            state[node] = _propagate(node, state)
        elif node.op == "output":
            result = state.union(node)
    reasons = {name: why for name, why in result.items() if why is not None}
    return Linearity(reasons, uses, frozenset(set(names) - set(result)))


def _propagate(node: fx.Node, state: _Dependences) -> Dependence:
    """Return the dependence of one operation's result."""
    operation = _operation(node.target)
    joined = state.union(node)
    if not joined or operation in _PIECEWISE_CONSTANT:
        return {}
    if operation == "rrelu_with_noise" and len(node.args) > 4 and node.args[4]:
        return dict.fromkeys(joined, "its influence passes through random slopes")
    if operation in _PIECEWISE_LINEAR or operation == "getitem":
        return joined
    if operation in _PRODUCTS:
        left, right = _PRODUCTS[operation]
        return _product(operation, joined, state.at(node, left), state.at(node, right))
    if operation in ("where", "masked_fill"):  # the condition is piecewise constant
        return joined
    if operation in ("div", "embedding") and not state.at(node, 1):
        return joined
    if operation == "pow" and len(node.args) > 1 and node.args[1] == 1:
        return joined
    if operation in ("native_batch_norm", "_native_batch_norm_legit_no_training"):
        fixed = operation.endswith("no_training") or node.args[5] is False
        if fixed and not state.at(node, 3) and not state.at(node, 4):
            return _product(operation, joined, state.at(node, 0), state.at(node, 1))
    reason = f"its influence passes through {operation!r}"
    if operation in ("native_layer_norm", "native_group_norm"):  # gain and shift act linearly
        gain = 2 if operation == "native_layer_norm" else 1
        inside = state.at(node, 0)
        outside = state.at(node, gain) | state.at(node, gain + 1)
        kept = {name: why for name, why in outside.items() if name not in inside}
        return kept | {name: why or reason for name, why in inside.items()}
    return {name: why or reason for name, why in joined.items()}


def _product(operation: str, joined: Dependence, left: Dependence, right: Dependence) -> Dependence:
    """Rule out parameters that occur in both factors."""
    return {
        name: why
        or (
            f"it occurs in both factors of {operation!r}"
            if name in left and name in right
            else None
        )
        for name, why in joined.items()
    }


def _operation(target: Callable[..., object] | str) -> str:
    """Return the plain name of an operation: ``aten.add.Tensor`` is ``add``."""
    if isinstance(target, torch._ops.OpOverload):
        name = str(target.overloadpacket.__name__)
        return name.removesuffix("_") if target._schema.is_mutable else name
    return getattr(target, "__name__", str(target))
