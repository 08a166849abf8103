"""devinterp: estimates of the local learning coefficient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._modules import clone
from invariance.testing.adapters._guests import as_a_guest, import_library
from invariance.testing.gate._assert_equal_in_law import NoisyMeasure


def devinterp_estimate(
    estimator: Callable[..., Any] | None = None,
    *,
    key: str | None = None,
    evaluate: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> NoisyMeasure:
    """Adapt a devinterp estimate of the local learning coefficient, which is noisy.

    Args:
        estimator: ``estimator(model, loader=..., evaluate=..., seed=..., **options)``; by
            default devinterp's ``estimate_learning_coeff_with_summary``.
        key: Entry of its result; by default ``"llc/mean"`` or ``"llc_mean"``. A result that
            is a number is taken as it is.
        evaluate: ``evaluate(model, (x, y))``, the loss and anything else; by default the mean
            cross-entropy.
        batch_size: Rows a batch; all of them by default.
        options: Passed on: ``sampling_method``, ``optimizer_kwargs``, ``num_chains``, ...

    Returns:
        A noisy measure; see :func:`invariance.testing.assert_equal_in_law`.
    """

    def devinterp_estimate(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Any:
        made = estimator or _devinterp()
        rows = int(x.shape[0])
        dataset = torch.utils.data.TensorDataset(x, y)
        loader: Any = torch.utils.data.DataLoader(dataset, batch_size=batch_size or rows)
        with as_a_guest(seed):
            result = made(
                model=clone(model),
                loader=loader,
                evaluate=evaluate or _cross_entropy_of_batch,
                seed=seed,
                **options,
            )
        return _entry(result, key)

    return devinterp_estimate


def _devinterp() -> Callable[..., Any]:
    import_library("devinterp", "devinterp")
    module = import_library("devinterp.slt.sampler", "devinterp")
    for name in ("estimate_learning_coeff_with_summary", "estimate_learning_coeff"):
        if hasattr(module, name):
            found: Callable[..., Any] = getattr(module, name)
            return found
    raise MeasureError(
        "This version of devinterp has no estimate_learning_coeff_with_summary in "
        "devinterp.slt.sampler. Pass the function to use: devinterp_estimate(my_estimator)."
    )


def _cross_entropy_of_batch(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Any]]:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels), {}


def _entry(result: Any, key: str | None) -> Any:
    if not isinstance(result, Mapping):
        return result
    for name in (key,) if key else ("llc/mean", "llc_mean"):
        if name in result:
            return result[name]
    raise MeasureError(
        f"The estimate has no entry {key or 'llc/mean'!r}. It has: {', '.join(map(str, result))}. "
        "Name one with key=..."
    )
