"""What a user hands over where a task is meant, made a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, UsageError
from invariance.core._modules import weight_layers
from invariance.data._load import load_task
from invariance.data._task import Task

#: What may stand where a task is meant; see :func:`as_task`.
TaskLike = Task | str | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


def as_task(data: Any, who: str, *models: object) -> Task:
    """Return the task that ``data`` plainly means."""
    if isinstance(data, Task):
        return data
    if isinstance(data, str):
        return load_task(data)
    if _is_pair(data):
        pairs: list[Any] = [data]
    elif isinstance(data, Iterable) and not isinstance(data, (Tensor, nn.Module, dict)):
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator
            pairs = list(data)
    else:
        pairs = []
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise UsageError(
            f"{who} needs a Task, such as load_task('digits'), or the data itself: (x, y), or a "
            f"DataLoader of such batches. Got {type(data).__name__}."
        )
    x = torch.cat([pair[0].detach() for pair in pairs]).flatten(1)
    y = torch.cat([pair[1].detach().reshape(-1) for pair in pairs])
    if y.is_floating_point() or y.dtype == torch.bool:
        raise DataError(f"{who} needs class labels, integers from 0. Got {y.dtype}; use y.long().")
    y = y.long()
    labelled = int(y.max()) + 1 if len(y) else 0
    count = max(2, labelled, *(_outputs(entry) for entry in models))
    return Task("own data", count, x, y, x[:0], y[:0], x[:0], y[:0], source="given")


def _is_pair(entry: Any) -> bool:
    pair = isinstance(entry, (tuple, list)) and len(entry) == 2
    return pair and all(isinstance(part, Tensor) and part.ndim > 0 for part in entry)


def _outputs(model: object) -> int:
    """Rows of a network's last weight matrix."""
    layers = weight_layers(model) if isinstance(model, nn.Module) else []
    return int(getattr(layers[-1][1], "weight").shape[0]) if layers else 0  # noqa: B009
