"""Sharpness of trained classifiers, as trained and rescaled, beside what their functions do."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import InvarianceError
from invariance.core._estimate import Estimate
from invariance.measures._registry import get_measure
from invariance.outcomes import (
    adversarial_accuracy,
    corruption_accuracy,
    expected_calibration_error,
)
from invariance.outcomes._outputs import logits_of

#: Measure to the arguments that differ from its defaults: fewer draws and steps, since a
#: study looks at many networks. Draws are the same for all networks.
MEASURES: Mapping[str, Mapping[str, int]] = {
    "hessian_trace": {},
    "hessian_eigenvalues": {},
    "fisher_rao_norm": {},
    "fisher_rao_closed_form": {},
    "relative_flatness": {},
    "standardized_relative_flatness": {},
    "sam_sharpness": {},
    "gaussian_sharpness": {"samples": 6},
    "worst_case_sharpness": {"steps": 8, "restarts": 0},
    "adaptive_sharpness": {},
    "adaptive_gaussian_sharpness": {"samples": 6},
    "adaptive_worst_case_sharpness": {"steps": 8, "restarts": 0},
    "adaptive_trace": {},
    "minimum_sharpness": {},
    "information_geometric_sharpness": {},
    "parameter_norm": {},
}

#: Largest relative standard error of an estimate that is used, and what counts as rounding.
NOISIEST, _ROUNDING = 0.1, 1e-6

#: Rows whose predicted labels are kept, and of these, rows whose probabilities are.
LABEL_ROWS, PROBABILITY_ROWS = 500, 100


def measure_all(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, *, score_rows: int
) -> tuple[list[dict[str, float | None]], dict[str, str], dict[str, float]]:
    """Evaluate every measure on every model.

    Shapes: ``x (n, d)``, ``y (n,)``.
    """
    values: list[dict[str, float | None]] = [{} for _ in models]
    refused: dict[str, str] = {}
    estimated: dict[str, float] = {}
    for name, arguments in MEASURES.items():
        measure = get_measure(name)
        rows = score_rows if name == "information_geometric_sharpness" else len(x)
        known = {"x_train": x[:rows], "y_train": y[:rows]}
        inputs = {argument: known[source] for argument, source in measure.fields.items()}
        try:
            estimates = list(measure.of_many(models, **inputs, **arguments))
            found = [float(e) for e in estimates]
            errors = [0.0 if "samples" in arguments else _relative_error(e) for e in estimates]
            if max(errors) > NOISIEST:
                refused[name] = (
                    "left out where it can only be estimated and the relative standard error is "
                    f"above {NOISIEST:.0%}."
                )
                found = [
                    v if e <= NOISIEST else math.nan for v, e in zip(found, errors, strict=True)
                ]
            worst = max((e for e in errors if e <= NOISIEST), default=0.0)
            if worst > _ROUNDING:
                estimated[name] = worst
        except InvarianceError as error:
            refused[name] = str(error)
            found = [math.nan] * len(models)
        for entry, value in zip(values, found, strict=True):
            entry[name] = value if math.isfinite(value) else None
    return values, refused, estimated


def outcomes(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rows: int,
    suite: Mapping[tuple[str, int], Tensor],
    epsilon: float,
) -> dict[str, float]:
    """Evaluate what the function does on test points.

    Args:
        model: A network in eval mode.
        x: ``(m, d)`` test points.
        y: ``(m,)`` labels.
        rows: Points, from the start, of corruptions and attacks.
        suite: Their corrupted copies.
        epsilon: Radius of the attacks.

    Returns:
        Name to value.
    """
    logits = logits_of(model, x)
    accuracy = float((logits.argmax(1) == y).double().mean())
    some, labels = x[:rows], y[:rows]
    return {
        "test_accuracy": accuracy,
        "test_error": 1 - accuracy,
        "test_loss": float(torch.nn.functional.cross_entropy(logits, y)),
        "calibration_error": float(expected_calibration_error(model, x, y, bins=15)),
        "corruption_accuracy": float(corruption_accuracy(model, some, labels, suite=suite)),
        "fgsm_accuracy": float(adversarial_accuracy(model, some, labels, epsilon=epsilon)),
        "pgd_accuracy": float(
            adversarial_accuracy(model, some, labels, epsilon=epsilon, attack="pgd")
        ),
    }


def predictions(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Keep what is needed to compare networks afterwards, in little space.

    Shapes: ``x (m, d)``.
    """
    p = logits_of(model, x[:LABEL_ROWS]).softmax(1)
    roots = (p[:PROBABILITY_ROWS].sqrt() * 255).round().to(torch.uint8).numpy()
    return {
        "labels": base64.b64encode(p.argmax(1).to(torch.uint8).numpy().tobytes()).decode(),
        "roots": base64.b64encode(roots.tobytes()).decode(),
        "classes": p.shape[1],
    }


def diversity(kept: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Compare each network with the others: disagreement and Jensen-Shannon divergence."""
    if len(kept) < 2:
        return [{} for _ in kept]
    labels = np.stack([_bytes(entry["labels"]) for entry in kept])
    p = np.stack([_bytes(entry["roots"]).reshape(-1, entry["classes"]) for entry in kept]).astype(
        np.float64
    )
    p = (p / 255) ** 2
    p /= p.sum(2, keepdims=True)
    own = _entropy(p)
    out = []
    for i in range(len(kept)):
        others = [j for j in range(len(kept)) if j != i]
        gaps = _entropy((p[i] + p[others]) / 2) - (own[i] + own[others]) / 2
        out.append(
            {
                "disagreement": float((labels[others] != labels[i]).mean()),
                "js_divergence": float(np.maximum(gaps, 0).mean()),
            }
        )
    return out


def _relative_error(estimate: Estimate) -> float:
    if estimate.exact or not estimate.stderr:
        return 0.0
    return float(estimate.stderr) / max(abs(float(estimate)), math.ulp(0.0))


def _bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8)


def _entropy(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import entr

    found: npt.NDArray[np.float64] = entr(p).sum(-1)
    return found
