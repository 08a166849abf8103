"""Whether second derivatives are symmetric, as they must be; and if not, whose fault it is.

An operation whose derivative cannot itself be differentiated correctly (some of torch's own
fused ones are such, and hand-written ones) gives products with a matrix that is no Hessian.
``u . H v = v . H u`` for two random vectors finds it at the price of two products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from invariance.core._errors import ModelError
from invariance.core._rng import generator
from invariance.curvature._objective import Objective
from invariance.curvature.products._engines import Graph
from invariance.curvature.products._output_space import OutputMatrixKind

#: Rows that the probe looks at: what is wrong with an operation is wrong on any of them.
_ROWS = 8

#: Asymmetry, in units of the square root of the machine epsilon, above which a closer look is
#: taken: in float64, and at every operation by itself.
_SUSPECT = 10.0

#: Asymmetry of a single operation, in float64, that round-off does not explain.
_GUILTY = 1e-4

#: Asymmetry that no product may have, whoever is to blame: there are no digits left.
_HOPELESS = 0.05


def require_symmetric(objective: Objective, kind: OutputMatrixKind | None) -> None:
    """Refuse an objective whose products are not those of a symmetric matrix."""
    gap = _gap(objective, kind)
    if gap <= tolerance(objective.dtype):
        return
    if objective.dtype != torch.float64:
        try:
            objective = objective.in_dtype(torch.float64)
            gap = _gap(objective, kind)
        except (RuntimeError, TypeError):
            pass  # no float64 on this device, or a precision that is fixed inside the model
        if gap <= tolerance(objective.dtype):
            return
    x, y = next(objective.chunks(_ROWS))
    with torch.enable_grad(), _Recorder() as recorder:
        value = objective.value(objective.leaves(), x, y)
    guilty = recorder.guilty() or _custom_functions(value)
    if not guilty and gap < _HOPELESS:
        return  # every operation is sound: the products cancel, as of a saturated softmax
    named = f"{', '.join(guilty)} has" if guilty else "Some operation of the model or loss has"
    raise ModelError(
        f"{named} a second derivative that is not symmetric (u.Hv and v.Hu differ by {gap:.2g} of "
        "their size), so products with it are not those of a Hessian: its backward pass cannot be "
        "differentiated correctly. Write it with plain differentiable operations, the backward of "
        "a torch.autograd.Function too."
    )


def _gap(objective: Objective, kind: OutputMatrixKind | None) -> float:
    """Return the asymmetry of an objective's products on its first rows."""
    graph = Graph(objective, kind, *next(objective.chunks(_ROWS)))

    def products(rows: Tensor) -> Tensor:
        return torch.stack([graph.products(row, batched=False) for row in rows])

    return asymmetry(products, objective.space.dim, objective.point[0])


def asymmetry(products: Callable[[Tensor], Tensor], dim: int, like: Tensor) -> float:
    """Return ``|u . A v - v . A u|`` in units of the larger product, for random u and v.

    Shapes: ``products (2, dim)``, ``dim (dim, dim)``.
    """
    draws = generator(0, "curvature", "symmetry")
    pair = torch.randn(2, dim, generator=draws, dtype=torch.float64).to(like)
    images = products(pair)
    gap = abs(float(pair[0] @ images[1]) - float(pair[1] @ images[0]))
    size = max(float(image.norm()) for image in images)
    return gap / size if size > 0 else 0.0


def tolerance(dtype: torch.dtype) -> float:
    """Return the largest :func:`asymmetry` that needs no closer look."""
    return _SUSPECT * math.sqrt(torch.finfo(dtype).eps)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps every operation that runs inside the block, with copies of its arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Callable[..., Any], list[Any], TreeSpec]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        flat, shape = tree_flatten((args, dict(kwargs or {})))
        kept = [a.detach().clone() if isinstance(a, Tensor) else a for a in flat]
        self._calls.append((func, kept, shape))
        return func(*args, **(kwargs or {}))

    def guilty(self) -> list[str]:
        """Name the operations whose own second derivative is not symmetric."""
        names: dict[str, None] = {}
        for call in self._calls:
            if str(call[0]) not in names and not _is_symmetric(*call):
                names[str(call[0])] = None
        return list(names)


def _is_symmetric(func: Callable[..., Any], flat: list[Any], shape: TreeSpec) -> bool:
    """Whether one operation's second derivative is symmetric; True where it has none."""
    flat = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in flat]
    places = [i for i, a in enumerate(flat) if isinstance(a, Tensor) and a.is_floating_point()]
    if not places:
        return True
    sizes = [flat[i].numel() for i in places]
    point = torch.cat([flat[i].flatten() for i in places]).requires_grad_()

    def value() -> Tensor:
        parts = zip(places, torch.split(point, sizes), strict=True)
        moved = {i: part.view_as(flat[i]) * 1 for i, part in parts}  # it may work in place
        args, kwargs = tree_unflatten([moved.get(i, a) for i, a in enumerate(flat)], shape)
        outputs = [out for out in tree_flatten(func(*args, **kwargs))[0] if isinstance(out, Tensor)]
        return torch.stack([out.sin().sum() for out in outputs if out.requires_grad]).sum()

    try:
        with torch.enable_grad():
            (first,) = torch.autograd.grad(value(), point, create_graph=True)

        def products(rows: Tensor) -> Tensor:
            found = [torch.autograd.grad(first, point, row, retain_graph=True)[0] for row in rows]
            return torch.stack(found)

        return asymmetry(products, len(point), point.detach()) <= _GUILTY
    except (RuntimeError, TypeError):
        return True  # not differentiable, or not twice: torch itself would have said so


def _custom_functions(result: object) -> list[str]:
    """Name the hand-written ``torch.autograd.Function`` classes in a result's graph."""
    waiting = [result.grad_fn] if isinstance(result, Tensor) else []
    seen: set[Any] = set()
    names: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "_forward_cls"):
            names[node._forward_cls.__name__] = None
        waiting += [after for after, _ in node.next_functions]
    return list(names)
