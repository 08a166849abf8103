"""torchmetrics: metrics that gather state between calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invariance.testing.adapters._signatures import PlainMeasure, named, title


def torchmetrics_metric(
    factory: Callable[[], Any], *, predictions: Callable[[Tensor], Tensor] | None = None
) -> PlainMeasure:
    """Adapt a torchmetrics metric, which gathers state between calls.

    Args:
        factory: Makes a fresh metric, for example
            ``lambda: torchmetrics.classification.MulticlassCalibrationError(10)``; a metric
            object works too and is copied and reset for every call.
        predictions: Applied to the logits first, for example ``lambda z: z.softmax(-1)``.

    Returns:
        A measure.
    """

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        made = isinstance(factory, type) or not hasattr(factory, "update")
        metric: Any = factory() if made else copy.deepcopy(factory)
        if hasattr(metric, "reset"):
            metric.reset()
        with torch.no_grad():
            logits = model(x)
            metric.update(logits if predictions is None else predictions(logits), y)
            return metric.compute()

    return named(measure, title(factory))
