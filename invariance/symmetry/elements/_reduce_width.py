"""The narrowest network that parameters alone certify to be the same function.

The reverse of splitting units and of inserting dormant ones. Three kinds of unit go, each
recognised from weights and never from data, so that the function stays at every input:

* **dormant**: all outgoing weights are exactly zero;
* **constant**: all incoming weights are exactly zero; what it sends on moves to the biases
  of its listeners (where these have biases and do not pad);
* **duplicate**: its incoming weights (biases, normalisation, slopes included) equal those of
  another unit, up to a positive factor where a scaling symmetry carries one and up to a sign
  where a sign flip does; their outgoing weights are added.

Removing one can reveal another, so this repeats until nothing changes. What is left is the
same, up to scalings and permutations, for networks that differ by splits of units and by
dormant units. Units that data never activate, or whose features are merely linearly
dependent, stay: no single weight certifies those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._errors import TransformError
from invariance.core._modules import clone, evaluation_mode
from invariance.core._rng import generator
from invariance.symmetry._examples import each
from invariance.symmetry._preconditions import example_or_default, refuse_train_mode
from invariance.symmetry._structures import (
    SCALING_KINDS,
    IntArray,
    Leg,
    Role,
    Symmetries,
    SymmetryKind,
)
from invariance.symmetry._verify import verify
from invariance.symmetry.elements._group_elements import (
    Element,
    GroupElement,
    named_tensors,
    write_tensors,
)
from invariance.symmetry.elements._width_surgery import Surgery

_INCOMING = (Role.PRODUCER, Role.SLOPE, Role.STATISTIC)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: A step looks at one group of a network and returns the smaller network and the units gone.
_Step = Callable[[nn.Module, Surgery, int, tuple[Any, ...]], "tuple[nn.Module, list[int]] | None"]


def reduce_width(model: nn.Module, example_input: Any = None) -> Applied:
    """Remove dormant, constant and duplicate hidden units without changing the function.

    Args:
        model: Any module that the analysis understands, in eval mode if it has BatchNorm.
        example_input: A batch that it accepts; may be omitted for a network whose first
            weight layer is linear.

    Returns:
        The narrower copy (an unchanged copy if nothing can go) with its verification.
        ``detail["removed"]`` counts what went, by site and kind; ``detail["widths"]`` gives
        the number of units left at every site. ``action`` is ``None``.

    Raises:
        TransformError: If the network cannot be analysed or run.

    Example:
        Two hidden units with the same incoming weights are one:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [1.0]], [[2.0, 3.0]]])
        >>> narrow = inv.symmetry.reduce_width(model, torch.ones(1, 1).double())
        >>> [p.tolist() for p in narrow.model.parameters()]
        [[[1.0]], [[5.0]]]
    """
    from invariance.symmetry.analysis._symmetries import symmetries as analyse

    who = "reduce_width"
    refuse_train_mode(model, who)
    x = example_or_default(model, example_input, who)
    steps: dict[str, _Step] = {"dormant": _dormant, "duplicate": _duplicates, "constant": _constant}
    current = clone(model)
    removed: dict[str, dict[str, int]] = {}
    left_alone: dict[str, str] = {}
    found = analyse(current, x)
    blocked: set[tuple[str, str]] = set()
    changed = True
    while changed:
        changed = False
        surgery = Surgery(current, found, who)
        for place in reversed(surgery.places):
            site = found.groups[place].site
            for kind, step in steps.items():
                if (site, kind) in blocked:
                    continue
                try:
                    smaller = step(current, surgery, place, x)
                    if smaller is not None:
                        verify(model, smaller[0], x, f"{who} at {site!r}")
                except (TransformError, RuntimeError, ValueError, IndexError) as error:
                    # The forward pass sees the units in a way that no weight shows.
                    blocked.add((site, kind))
                    left_alone[f"{site} ({kind})"] = str(error).splitlines()[0]
                    continue
                if smaller is not None:
                    current, gone = smaller
                    counts = removed.setdefault(site, {})
                    counts[kind] = counts.get(kind, 0) + len(gone)
                    found, changed = analyse(current, x), True
                    break
            if changed:
                break
    groups = [group for group in found.groups if group.kind is SymmetryKind.PERMUTATION]
    total = sum(count for counts in removed.values() for count in counts.values())
    return Applied(
        model=current,
        verification=verify(model, current, x, who),
        action=None,
        description=f"removed {total} units that change nothing",
        detail={
            "removed": removed,
            "widths": {group.site: group.size for group in groups},
            "left_alone": left_alone,
        },
    )


def _without(surgery: Surgery, place: int, units: IntArray) -> tuple[nn.Module, list[int]] | None:
    """Drop units, keeping at least one, which modules need."""
    size = surgery.size(place)
    units = units[: size - 1]
    if not units.size:
        return None
    smaller = surgery.copy()
    smaller.select(place, np.setdiff1d(np.arange(size), units))
    return smaller.model, [int(unit) for unit in units]


def _dormant(
    model: nn.Module, surgery: Surgery, place: int, x: tuple[Any, ...]
) -> tuple[nn.Module, list[int]] | None:
    """Drop units whose outgoing weights are all zero."""
    del model, x
    outgoing = surgery.rows(place, (Role.CONSUMER,))
    return _without(surgery, place, np.flatnonzero((outgoing == 0).all(1).numpy()))


def _duplicates(
    model: nn.Module, surgery: Surgery, place: int, x: tuple[Any, ...]
) -> tuple[nn.Module, list[int]] | None:
    """Merge units with equal incoming weights, up to the scale and sign that are free."""
    del x
    found = surgery.found
    natural = _natural_gauge(model, found, found.groups[place].stream)
    # The surgery's own copy is ``model`` still: nothing was cut in it.
    rows = surgery.rows(place, _INCOMING, natural.act(named_tensors(model, double=True), found))
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    twin = _twins(rows, 128 * eps)
    gone = np.flatnonzero(twin != np.arange(twin.size))
    if not gone.size:
        return None
    # Move only the duplicates along the orbit, onto the unit that they duplicate.
    like = torch.from_numpy(twin)
    onto = Element(
        tuple(
            (at, GroupElement(part.kind, part.site, part.values / part.values[like]))
            for at, part in natural.steps
        )
    )
    merged = clone(model)
    write_tensors(merged, onto.act(named_tensors(model, double=True), found))
    work = Surgery(merged, found, surgery.who)
    sums = torch.zeros(twin.size, twin.size, dtype=torch.float64)
    sums[torch.from_numpy(twin), torch.arange(twin.size)] = 1.0
    work.combine(place, (Role.CONSUMER,), sums)
    return _without(work, place, gone)


def _twins(rows: Tensor, tolerance: float) -> IntArray:
    """Return, for each row, the first row that it equals within a relative tolerance."""
    count, width = rows.shape
    twin = np.arange(count)
    if width == 0 or count < 2:
        return twin
    scale = rows.abs().amax(1)
    limit = tolerance * scale
    # Twins agree in every column, so look only among neighbours in one that tells most apart.
    sample = rows[:, :: max(1, width // 64)]
    apart = (sample.sort(dim=0).values.diff(dim=0) > float(limit.max())).sum(0)
    key = sample[:, int(apart.argmax())]
    order = torch.argsort(key, stable=True)
    reach = torch.searchsorted(key[order], key[order] + limit[order], right=True).tolist()
    for slot, unit in enumerate(order.tolist()):
        others = order[slot + 1 : reach[slot]]
        if others.numel() == 0:
            continue
        same = ((rows[others] - rows[unit]).abs() <= limit[unit]).all(1)
        for other in others[same].tolist():
            low, high = sorted((twin[unit], twin[other]))
            twin[twin == high] = low
    return twin


def _natural_gauge(model: nn.Module, found: Symmetries, stream: int) -> Element:
    """Return the element that makes a stream's units comparable: unit norm, fixed sign."""
    tensors = named_tensors(model, double=True)
    own = [p for p, g in enumerate(found.groups) if g.stream == stream]
    scaling = [p for p in own if found.groups[p].kind in SCALING_KINDS]
    flips = [p for p in own if found.groups[p].kind is SymmetryKind.SIGN_FLIP]
    element = Element()
    # A depthwise kernel answers two scales, its own and the one before it. Such chains settle
    # after as many rounds as there are groups.
    for place in [*scaling * len(scaling), *flips]:
        group = found.groups[place]
        total = torch.zeros(group.size, dtype=torch.float64)
        for number, leg in enumerate(group.legs):
            tensor = tensors[leg.parameter].cpu()
            if leg.role is not Role.PRODUCER:
                continue
            if group.kind is SymmetryKind.SIGN_FLIP and leg.sign_power % 2:
                total += _per_unit(
                    tensor * _fixed_noise(tensor.shape, leg, number), leg, group.size
                )
            elif group.kind is not SymmetryKind.SIGN_FLIP and leg.power == 1:
                total += _per_unit(tensor.square(), leg, group.size)
        if group.kind is SymmetryKind.SIGN_FLIP:
            values = torch.where(total < 0, -1.0, 1.0).to(torch.float64)
        else:
            values = torch.where(total > 0, total.rsqrt(), torch.ones_like(total))
        step = Element(((place, GroupElement(group.kind, group.site, values)),))
        tensors, element = step.act(tensors, found), element.then(step)
    return element


def _per_unit(tensor: Tensor, leg: Leg, size: int) -> Tensor:
    """Sum a tensor's entries over each unit."""
    alike = [d for d, n in enumerate(leg.units.shape) if n == 1]
    sums = tensor.sum(dim=alike, keepdim=True) if alike else tensor
    units = torch.from_numpy(leg.units.copy()).reshape(-1)
    inside = units >= 0
    result = torch.zeros(size, dtype=torch.float64)
    return result.index_add_(0, units[inside], sums.cpu().reshape(-1)[inside])


def _fixed_noise(shape: torch.Size, leg: Leg, number: int) -> Tensor:
    """Draw weights that are the same for every unit of a leg."""
    sizes = [1 if n > 1 else shape[d] for d, n in enumerate(leg.units.shape)]
    draw = generator(0, "sign", number)
    return torch.randn(sizes, generator=draw, dtype=torch.float64)


def _constant(
    model: nn.Module, surgery: Surgery, place: int, x: tuple[Any, ...]
) -> tuple[nn.Module, list[int]] | None:
    """Drop units without incoming weights, and add what they send to their listeners' biases."""
    lines = [line for line in surgery.tensors(place) if line[3] is Role.PRODUCER]
    quiet = np.ones(surgery.size(place), dtype=bool)
    weighted = False
    for name, dim, units, _ in lines:
        tensor = surgery.tensor(name).detach()
        if tensor.dim() < 2:
            continue
        weighted = True
        silent = (torch.movedim(tensor, dim, 0).flatten(1) == 0).all(1).cpu().numpy()
        for unit in np.unique(units[(units >= 0) & ~silent]):
            quiet[unit] = False
    gone = np.flatnonzero(quiet)[: surgery.size(place) - 1] if weighted else np.zeros(0, int)
    if not gone.size:
        return None
    folded = clone(model)
    for name, dim, units, role in surgery.tensors(place):
        if role is Role.CONSUMER:
            _fold(model, folded, name, dim, np.flatnonzero(np.isin(units, gone)), x)
    return _without(Surgery(folded, surgery.found, surgery.who), place, gone)


def _fold(
    model: nn.Module, folded: nn.Module, name: str, dim: int, at: IntArray, x: tuple[Any, ...]
) -> None:
    """Add the constant inputs ``at`` of one listener to its bias."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if not (isinstance(owner, (nn.Linear, *_CONVS)) and attribute == "weight" and dim == 1):
        raise TransformError(f"{name!r} is no weight whose constant inputs can move to a bias.")
    values = _constant_inputs(model, owner, at, x)
    if not bool(values.any()):
        return
    padded = (
        isinstance(owner, _CONVS)
        and owner.padding != "valid"
        and any(size != 0 for size in owner.padding)
    )
    if owner.bias is None or padded:
        raise TransformError(f"{owner_name!r} has {'padding' if padded else 'no bias'}.")
    target = folded.get_submodule(owner_name)
    weight = (
        owner.weight.detach().double().flatten(2)
        if owner.weight.dim() > 2
        else (owner.weight.detach().double().unsqueeze(-1))
    )
    weight = weight.sum(2)
    with torch.no_grad():
        gain = weight[:, torch.from_numpy(at).to(weight.device)] @ values.to(weight)
        assert isinstance(target.bias, nn.Parameter)
        target.bias.add_(gain.to(target.bias))


def _constant_inputs(
    model: nn.Module, owner: nn.Module, at: IntArray, x: tuple[Any, ...]
) -> Tensor:
    """Read the values of constant inputs off one run; refuse if they are not constant."""
    seen: list[Tensor] = []
    handle = owner.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad(), evaluation_mode(model):
            for example in each(x):
                model(*example)
    finally:
        handle.remove()
    if not seen:
        raise TransformError("Its listener is not called as a module.")
    axis = -1 if isinstance(owner, nn.Linear) else 1
    rows = torch.cat([torch.movedim(value, axis, -1).flatten(0, -2) for value in seen])
    values = rows[:, torch.from_numpy(at).to(rows.device)].double().cpu()
    if not bool((values == values[0]).all()):
        raise TransformError("A unit without incoming weights is not constant.")
    return values[0]
