"""How a weight layer notes that it uses a parameter, or a view of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from invariance.symmetry.analysis._context import (
    Context,
    NotUnderstoodError,
)
from invariance.symmetry.analysis._entries import (
    ParameterView,
    compress,
    reshape_labels,
)
from invariance.symmetry.analysis._threads import ZERO, RawLeg


def use_parameter(context: Context, view: ParameterView, legs: Sequence[RawLeg]) -> None:
    """Note a use of a parameter through a view of it (legs are in the view's layout)."""
    context.note_use(view.name)
    if view.index is None:
        context.relations.use(view.name, list(legs))
        return
    index = view.index.reshape(-1)
    count = int(np.prod(view.full_shape))
    if index.size == count and np.array_equal(index, np.arange(count)):
        reshaped = [
            replace(
                leg,
                labels=reshape_labels(leg.labels, view.shape, view.full_shape),
                addresses=reshape_labels(leg.addresses, view.shape, view.full_shape),
            )
            for leg in legs
        ]
        context.relations.use(view.name, reshaped)
        return
    if np.bincount(index, minlength=1).max() > 1:
        raise NotUnderstoodError("reads entries of a parameter more than once")
    covered = np.zeros(count, dtype=bool)
    covered[index] = True
    mapped = []
    for leg in legs:
        arrays = []
        for array, empty in ((leg.labels, ZERO), (leg.addresses, 0)):
            full = np.full(count, empty, dtype=np.int64)
            full[index] = np.broadcast_to(array, view.shape).reshape(-1)
            arrays.append(compress(full.reshape(view.full_shape)))
        mapped.append(replace(leg, labels=arrays[0], addresses=arrays[1]))
    context.relations.use(
        view.name, mapped, None if covered.all() else covered.reshape(view.full_shape)
    )
