"""Logits and labels, checked once for all outcomes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError
from invariance.core._forward import reading, run
from invariance.core._modules import model_device
from invariance.weakness.patterns._activation_layers import require_eval
from invariance.weakness.patterns._patterns import as_rows

_BATCH = 4096


def logits_of(model: nn.Module, x: Tensor, *, batch_size: int = _BATCH) -> Tensor:
    """Return the logits of every row, ``(n, K)`` float64 on the CPU.

    Shapes: ``x (n, ...)``.
    """
    require_eval(model)
    rows, device = as_rows(model, x, "x"), model_device(model)
    with torch.no_grad():
        parts = [
            check_logits(_forward(model, batch.to(device)), len(batch)).cpu().double()
            for batch in torch.split(rows, batch_size)
        ]
    return torch.cat(parts)


def check_logits(out: object, rows: int) -> Tensor:
    """Refuse an output that is no finite ``(rows, K)`` matrix of logits."""
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != rows or out.shape[1] < 2:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise MeasureError(
            f"The model must return (n, K) logits with K of at least 2. Got {got} for {rows} rows."
        )
    if not bool(torch.isfinite(out.detach()).all()):
        raise MeasureError("The model returns NaN or infinite logits.")
    return out


def check_labels(y: Tensor, rows: int, classes: int) -> Tensor:
    """Return the labels on the CPU.

    Shapes: ``y (rows,)``.
    """
    if not isinstance(y, Tensor) or y.shape != (rows,) or y.is_floating_point():
        got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise DataError(f"y must be ({rows},) integer labels, one a row of x. Got {got}.")
    labels = y.detach().cpu().long()
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise DataError(f"y[{row}] is {int(labels[row])}, outside 0 .. {classes - 1}.")
    return labels


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of rows whose largest logit is the label's."""
    logits = logits_of(model, x)
    labels = check_labels(y, len(logits), logits.shape[1])
    return float((logits.argmax(1) == labels).double().mean())


def _forward(model: nn.Module, batch: Tensor) -> object:
    with reading(model, batch):
        return run(model, batch)
