"""Measures with a value for every parameter: they should move with the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invariance.cells import BrokenTransformError, FaultyMeasureError, MappedNetwork
from invariance.cells._faults import isolated, watched
from invariance.cells._mapped_network import EXAMPLE_ROWS
from invariance.cells._roundoff import SAFETY, jitter
from invariance.core._applied import Action, Applied
from invariance.core._errors import InvarianceError, MeasureError, TransformError, UsageError
from invariance.core._modules import clone
from invariance.testing.gate._binding import cast, check_data, precisions, require_evaluation_mode
from invariance.testing.gate._bound_measure import RTOL, bind, wanted_groups
from invariance.testing.gate._findings import replayable
from invariance.testing.gate._recorder import recorded
from invariance.transforms._base import Transform, as_transforms
from invariance.transforms._members import members

#: ``field(model, x, y) -> {parameter name: tensor of its shape}``.
ParameterField = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]


class NotCovariantError(AssertionError):
    """A field over the parameters that does not move with them."""


def assert_covariant(
    field: ParameterField,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    degree: int,
    transforms: Sequence[Transform] | Transform | None = None,
    groups: Sequence[str] | None = None,
    rtol: float = RTOL,
    dtype: torch.dtype | str = "float64",
    seed: int = 0,
    name: str | None = None,
) -> tuple[str, ...]:
    """Assert that a value per parameter moves as a derivative of the function does.

    Where a map sends theta to theta' = D theta, a gradient moves as ``D^-1`` (degree 1), a
    Hessian's or Fisher matrix's diagonal as ``D^-2`` (degree 2), the parameters themselves as
    ``D`` (degree -1), and an importance score such as theta_i df/dtheta_i not at all
    (degree 0); under a permutation each value moves along with its parameter.

    Args:
        field: ``field(model, x, y)``, a mapping of parameter names to tensors.
        model: The network, in eval mode.
        x: Inputs.
        y: Labels.
        degree: How many derivatives by the parameter the field holds.
        transforms: What to apply; by default a member of every kind that the model admits
            and that says how it acts on each parameter.
        groups: Apply the kinds named here instead.
        rtol: Tolerance relative to each tensor's largest entry.
        dtype: Precision.
        seed: Seed of the random maps.
        name: The field's name in messages.

    Returns:
        The maps that were tried.

    Raises:
        NotCovariantError: (an ``AssertionError``) Names the transform, the parameter and the
            entry that is furthest off.
        FaultyMeasureError: If the field has side effects, or is not finite.
        BrokenTransformError: If a given transform changes the function.
        UsageError: If no map applies.

    Example:
        The gradient is multiplied by ``1 / a`` where the parameter is multiplied by ``a``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([3, 4, 2], dtype=torch.float64).eval()
        >>> x, y = torch.rand(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
        >>> def gradient(model, x, y):
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     names, values = zip(*model.named_parameters())
        ...     return dict(zip(names, torch.autograd.grad(loss, values)))
        >>> _ = assert_covariant(gradient, model, x, y, degree=1)
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and our message
    require_evaluation_mode(model)
    check_data(x, y)
    title = name or str(getattr(field, "__name__", type(field).__name__))
    base, data = cast(model, {"x": x, "y": y}, precisions(model, dtype)[0])
    network = MappedNetwork(base, data["x"][:EXAMPLE_ROWS])
    before = _evaluate(field, base, data, title, watch=True)
    shaken = _evaluate(field, jitter(base, seed), data, title)
    noise = {key: SAFETY * float((shaken[key] - before[key]).abs().max()) for key in before}
    named = transforms is not None
    if transforms is None:
        bound = bind(_placeholder, base, data["x"], data["y"], seed=seed)
        transforms = list(members(base, wanted_groups(bound, groups), seed))
    maps = as_transforms(transforms)
    tried: list[str] = []
    with recorded(f"covariant of degree {degree}", title) as facts:
        for transform in maps:
            try:
                applied = network.under(transform, title)
                action = _action(transform, applied)
            except BrokenTransformError:
                raise
            except InvarianceError:
                if named:
                    raise
                continue
            after = _evaluate(field, applied.model, data, title)
            expected = predicted(action, before, degree)
            _compare(title, transform, degree, expected, after, before, noise, rtol)
            tried.append(repr(transform))
        if not tried:
            raise UsageError("Nothing was checked: no transform applies and says how it acts.")
        facts["message"] = f"{title} is covariant of degree {degree} under {', '.join(tried)}"
    return tuple(tried)


def predicted(action: Action, old: Mapping[str, Tensor], degree: int) -> dict[str, Tensor]:
    """Return what a field of the given degree becomes: ``c_i^degree`` times its source entry."""
    found = {}
    for name, act in action.parameters.items():
        if act.source is None or act.source not in old:
            continue
        source = old[act.source].to(act.gradient)
        if act.index is not None:
            source = source.reshape(-1)[act.index.reshape(-1)].reshape(act.gradient.shape)
        found[name] = act.gradient**degree * source
    return found


def _action(transform: Transform, applied: Applied) -> Action:
    if applied.action is None:
        raise TransformError(f"{transform!r} does not say how it acts on single parameters.")
    return applied.action


def _compare(
    title: str,
    transform: Transform,
    degree: int,
    expected: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    noise: Mapping[str, float],
    rtol: float,
) -> None:
    for name, wanted in expected.items():
        if name not in after:
            raise NotCovariantError(
                f"field {title!r} has no entry for {name!r} after {transform!r}."
            )
        got = after[name].to(wanted)
        off = (got - wanted).abs()
        old = before.get(name)
        scale = float(old.abs().max()) if old is not None and old.numel() else 0.0
        growth = float(wanted.abs().max()) / scale if scale else 1.0
        allowed = rtol * float(wanted.abs().max()) + noise.get(name, 0.0) * max(1.0, growth)
        if off.numel() == 0 or float(off.max()) <= allowed:
            continue
        flat = int(off.argmax())
        written = replayable(repr(transform)) or "transform"
        raise NotCovariantError(
            f"field {title!r} is not covariant of degree {degree} under {transform!r}.\n"
            f"  parameter  `{name}`, entry {list(_unravel(flat, off.shape))}\n"
            f"  expected   {float(wanted.reshape(-1)[flat]):.9g}\n"
            f"  got        {float(got.reshape(-1)[flat]):.9g}   (allowed {allowed:.2g})\n"
            "  replay     import invariance as inv; inv.testing.assert_covariant(field, model, "
            f"x, y, degree={degree}, transforms={written})"
        )


def _unravel(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    place = []
    for size in reversed(shape):
        flat, inner = divmod(flat, size)
        place.append(inner)
    return tuple(reversed(place))


def _evaluate(
    field: ParameterField,
    model: nn.Module,
    data: Mapping[str, Tensor],
    title: str,
    *,
    watch: bool = False,
) -> dict[str, Tensor]:
    copied = clone(model)
    inputs: dict[str, Any] = {key: value.clone() for key, value in data.items()}
    with isolated():
        if watch:
            with watched(title, copied, inputs):
                found = field(copied, inputs["x"], inputs["y"])
        else:
            found = field(copied, inputs["x"], inputs["y"])
    if not isinstance(found, Mapping):
        raise MeasureError(
            f"Field {title!r} must return a mapping of parameter names to tensors. Got "
            f"{type(found).__name__}."
        )
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    values = {}
    for name, value in found.items():
        if name not in shapes or not isinstance(value, Tensor) or value.shape != shapes[name]:
            raise MeasureError(
                f"Field {title!r}: entry {name!r} must be a tensor of a parameter's shape. Got "
                f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}."
            )
        if not bool(torch.isfinite(value).all()):
            raise FaultyMeasureError("nan", title, f"Its entry {name!r} holds NaN or infinity.")
        values[name] = value.detach().double()
    return values


def _placeholder(model: nn.Module) -> float:
    return 0.0
