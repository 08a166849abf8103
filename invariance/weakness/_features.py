"""The frozen features of a network: what its last linear layer reads.

The layer is found by execution, not by name: the last :class:`torch.nn.Linear` that
runs in a forward pass, whose output must be the network's own (or a softmax of it).
The pass runs on a private copy in eval mode and, by default, in float64, so that the
features are those of the stated parameters up to 1e-16 rather than up to the rounding
of one batch size on one BLAS library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._forward import first_input, reading, run
from invariance.core._modules import clone, model_device, model_dtype
from invariance.weakness.patterns._activation_layers import require_eval

Precision = Literal["float64", "native"]

#: Rows per forward pass; bounds the memory that convolutional inputs need.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """What the last linear layer of a network reads, for several batches.

    Attributes:
        values: One ``(rows, d)`` float64 array a batch.
        n_classes: Number of outputs K of the layer.
        bias: Whether the layer has a bias, so whether classifiers ``(W, b)`` may use one.
        layer: The layer's qualified name, for messages.
        epsilon: Machine epsilon of the network's parameters; features of two networks
            that are equal up to a reparameterisation agree to about this precision.
    """

    values: tuple[npt.NDArray[np.float64], ...]
    n_classes: int
    bias: bool
    layer: str
    epsilon: float


def frozen_features(
    model: nn.Module,
    *inputs: Tensor,
    precision: Precision = "float64",
    names: Sequence[str] = ("x_train", "x_unseen"),
) -> FrozenFeatures:
    """Read the features that the last executed linear layer of ``model`` receives.

    Shapes: ``inputs (rows, ...)``.
    """
    if precision not in ("float64", "native"):
        raise MeasureError(f"precision must be 'float64' or 'native'. Got {precision!r}.")
    called = [*names, *(f"input {i}" for i in range(len(names), len(inputs)))][: len(inputs)]
    for name, batch in zip(called, inputs, strict=True):
        _refuse_bad_input(batch, name)
    require_eval(model)
    native = model_dtype(model)
    device = model_device(model)
    private = clone(model).eval()
    dtype = native
    if precision == "float64":
        dtype = torch.float64
        device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
        private = private.to(device=device, dtype=dtype)
    values, layer = [], None
    for name, batch in zip(called, inputs, strict=True):
        guard = reading(model, batch, name)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), guard:
            chunks = [
                _last_linear_input(private, rows.to(device=device, dtype=dtype), precision)
                for rows in torch.split(batch, _CHUNK)
            ]
        layer = chunks[0][0]
        features = torch.cat([chunk[1] for chunk in chunks])
        values.append(_as_finite_array(features, layer))
    assert layer is not None
    linear = private.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    if linear.out_features < 2:
        raise MeasureError(
            f"The last linear layer {layer!r} has {linear.out_features} output; a classifier of "
            "K classes needs K >= 2 outputs. Give a binary network two logits."
        )
    return FrozenFeatures(
        tuple(values),
        linear.out_features,
        linear.bias is not None,
        layer,
        float(torch.finfo(native).eps),
    )


def _refuse_bad_input(batch: Tensor, name: str) -> None:
    if not isinstance(batch, Tensor):
        raise MeasureError(f"{name} must be a tensor. Got {type(batch).__name__}.")
    if batch.ndim < 1 or batch.shape[0] == 0:
        raise MeasureError(f"{name} has shape {tuple(batch.shape)}; at least one row is needed.")
    if batch.is_complex() or not batch.is_floating_point():
        raise MeasureError(
            f"{name} has dtype {batch.dtype}; floating-point rows are needed. "
            "Convert it with .float()."
        )
    if not bool(torch.isfinite(batch).all()):
        row = int((~torch.isfinite(batch)).flatten(1).any(1).nonzero()[0]) if batch.ndim > 1 else 0
        raise MeasureError(f"{name} holds NaN or infinity (first in row {row}). Remove such rows.")


def _last_linear_input(model: nn.Module, rows: Tensor, precision: Precision) -> tuple[str, Tensor]:
    """Run ``model`` once; return the last linear layer's name and what it read."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        calls.append((module, first_input(args, kwargs), output))

    names = {module: name for name, module in model.named_modules()}
    layers = [module for module in names if isinstance(module, nn.Linear)]
    # In front of the user's own hooks, which may act after the layer.
    handles = [
        module.register_forward_hook(record, prepend=True, with_kwargs=True) for module in layers
    ]
    try:
        output = run(model, rows)
    except RuntimeError as error:
        if precision == "float64" and "dtype" in str(error):
            raise MeasureError(
                "The network cannot be evaluated in float64 (a dtype is hard-coded in it): "
                f"{error}. Pass precision='native'."
            ) from error
        raise
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise MeasureError(
            f"No nn.Linear layer ran in {type(model).__name__}.forward, so there are no features "
            "that a linear classifier reads. End the network with nn.Linear."
        )
    last, read, written = calls[-1]
    name = names[last]
    if not torch.isfinite(read).all():
        return name, read  # the caller names the entry
    if not isinstance(output, Tensor) or not _same_decision(output, written):
        raise MeasureError(
            f"The network's output is not that of its last linear layer {name!r} (nor its "
            "softmax): something acts after it. Measure a module that ends with that layer."
        )
    if read.ndim != 2:
        raise MeasureError(
            f"The last linear layer {name!r} reads a tensor of shape {tuple(read.shape)}; one "
            "feature vector a point, (rows, d), is needed. Pool the tokens before it."
        )
    return name, read


def _same_decision(output: Tensor, logits: Tensor) -> bool:
    """Whether ``output`` is ``logits`` or a softmax of it."""
    if output.shape != logits.shape or not output.is_floating_point():
        return False
    output, logits = output.nan_to_num(), logits.nan_to_num()
    candidates = (logits, logits.log_softmax(-1), logits.softmax(-1))
    return any(torch.equal(output, candidate) for candidate in candidates) or any(
        torch.allclose(output, candidate, rtol=1e-5, atol=1e-7) for candidate in candidates[1:]
    )


def _as_finite_array(features: Tensor, layer: str) -> npt.NDArray[np.float64]:
    array = features.detach().to(device="cpu", dtype=torch.float64).numpy().copy()
    bad = ~np.isfinite(array)
    if bad.any():
        row, column = (int(index) for index in np.argwhere(bad)[0])
        raise MeasureError(
            f"Feature {column} read by layer {layer!r} is {array[row, column]} at row {row}. "
            "Feasibility is defined for finite features only; retrain or drop the point."
        )
    return array


def check_labels(
    y_train: Tensor | Sequence[int], n_train: int, n_classes: int
) -> npt.NDArray[np.int64]:
    """Validate training labels and return them as an array.

    Shapes: ``y_train (n,)``; returns ``(n,)``.
    """
    tensor = torch.as_tensor(y_train)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise MeasureError(f"y_train must hold integer class indices. Got dtype {tensor.dtype}.")
    if tuple(tensor.shape) != (n_train,):
        raise MeasureError(
            f"y_train must have shape ({n_train},), one label a row of x_train. "
            f"Got {tuple(tensor.shape)}."
        )
    labels = tensor.detach().cpu().numpy().astype(np.int64)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise MeasureError(
            f"y_train must lie in 0..{n_classes - 1}, the last layer's {n_classes} outputs. "
            f"Got {labels.min()}..{labels.max()}."
        )
    return labels
