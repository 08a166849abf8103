"""A pair proxy that dormant units cannot move: count over what the function uses.

The pair proxy depends on the span of the last hidden features, and a unit with zero
outgoing weights enlarges that span without entering the function. Two repairs, from the
least change to the most:

* ``features="used"``: drop every feature whose total outgoing weight is the same for all
  classes (zero, or a pure logit shift), after adding up the weights of features that are
  proportional to each other on the data. It is unchanged by everything that leaves the
  pair proxy unchanged, and by giving, moving and taking dormant units. On a network
  whose last hidden units are distinct and all used, it equals the pair proxy.
* ``features="function"``: replace the features by the logits' differences between
  classes, that is by the projection of the features on the directions that the last
  layer reads. It is a function of the logits on the given points, modulo a shift common
  to all classes, and of nothing else: unchanged by *every* map that keeps those. When the
  last layer reads all of the features (its rank, modulo shifts, is their number; possible
  only with at most K - 1 of them), it equals the pair proxy.

Fewer directions leave fewer pairs open, so function <= used <= pair proxy, always.

Both hold for exact zeros only. They are counts over a span, hence discontinuous: a unit
whose outgoing weights are tiny but not negligible against the features' precision counts
in full, so that outgoing weights of 1e-9, which move no logit by more than 1e-8, bring the
inflated count back. :func:`~invariance.weakness.margin_pair_proxy` has no such step.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.weakness._features import frozen_features
from invariance.weakness.separability._conditioning import default_rank_tolerance
from invariance.weakness.separability._pair_proxy import pair_proxy

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Used = Literal["used", "function"]


def centred(weight: Array) -> Array:
    """Subtract the mean over classes: what is left after any logit shift.

    Shapes: ``weight (K, d)``.
    """
    relative: Array = weight - weight.mean(axis=0, keepdims=True)
    return relative


def used_features(rows: Array, weight: Array, *, tolerance: float) -> Indices:
    """Choose the features that the last layer uses, one of each proportional family.

    Shapes: ``rows (n, d)``, ``weight (K, d)``.
    """
    size = np.linalg.norm(rows, axis=0)
    left = [int(j) for j in np.flatnonzero(size > 0.0)]
    unit = np.divide(rows, size, out=np.zeros_like(rows), where=size > 0.0)
    cosine = unit.T @ unit
    weighted = weight * size
    largest = float(np.linalg.norm(weighted, axis=0).max(initial=0.0))
    chosen = []
    while left:
        first = left[0]
        # cos = 1 - angle^2 / 2: a cheap screen, then the difference itself.
        near = [j for j in left if abs(cosine[first, j]) > 1.0 - 1e-6]
        signs = {j: float(np.sign(cosine[first, j])) for j in near}
        family = [
            j for j in near if np.linalg.norm(unit[:, first] - signs[j] * unit[:, j]) <= tolerance
        ]
        left = [j for j in left if j not in family]
        total = sum((signs[j] * weighted[:, j] for j in family), np.zeros(len(weight)))
        reach = sum(float(np.linalg.norm(weighted[:, j])) for j in family)
        effect = float(np.linalg.norm(total - total.mean()))
        if effect > tolerance * max(reach, tolerance * largest):
            chosen.append(first)
    return np.array(chosen, dtype=np.int64)


def function_features(rows: Array, weight: Array, *, bias: bool, tolerance: float) -> Array:
    """Project features on what the last layer reads, in well-conditioned coordinates.

    The result is the matrix of logits modulo shifts, up to an invertible linear map: the
    features are whitened over all points first, so that neither their scales nor those of
    the last layer decide what counts as rank.

    Shapes: ``rows (n, d)``, ``weight (K, d)``; returns ``(n, q)``.
    """
    offset = rows.mean(axis=0) if bias else np.zeros(rows.shape[1])
    moved = rows - offset
    size = np.linalg.norm(moved, axis=0)
    # A feature that is constant up to round-off belongs to the bias.
    alive = size > tolerance * np.linalg.norm(rows, axis=0)
    if not alive.any():
        return np.zeros((rows.shape[0], 0))
    scaled = moved[:, alive] / size[alive]
    _, spectrum, right = np.linalg.svd(scaled, full_matrices=False)
    rank = int((spectrum > tolerance * spectrum[0]).sum())
    reads = (centred(weight)[:, alive] * size[alive]) @ right[:rank].T * spectrum[:rank]
    _, gains, directions = np.linalg.svd(reads, full_matrices=False)
    used = int((gains > tolerance * gains[0]).sum()) if gains[0] > 0.0 else 0
    # Not the left singular vectors: their round-off is that of the largest point, in each row.
    whole = scaled @ right[:rank].T / spectrum[:rank]
    projected: Array = whole @ directions[:used].T
    # A point of which the last layer reads nothing is the origin. Round-off in its place
    # would count as a direction of its own, since only directions of points matter.
    lengths = np.linalg.norm(scaled, axis=1) / spectrum[rank - 1]
    rounding = 64 * np.finfo(np.float64).eps * lengths
    read, there = np.linalg.norm(projected, axis=1), np.linalg.norm(whole, axis=1)
    projected[read <= np.maximum(tolerance * there, rounding)] = 0.0
    return projected


def repaired_pair_proxy(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_unseen: Tensor,
    *,
    features: Used = "used",
    rank_tolerance: float | None = None,
    **options: Any,
) -> Estimate:
    """Count the feasible pairs over only those features that the function uses.

    Holds for exact zeros only: a unit with outgoing weights of 1e-9 counts in full.
    :func:`~invariance.weakness.margin_pair_proxy` is continuous in the function.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels.
        x_unseen: ``(u, ...)`` unseen inputs.
        features: ``"used"`` drops unused units, ``"function"`` keeps the logits only; see
            the module's docstring.
        rank_tolerance: As for :func:`~invariance.weakness.separability._pair_proxy.pair_proxy`.
        options: Passed on to :func:`~invariance.weakness.separability._pair_proxy.pair_proxy`.

    Returns:
        As for the pair proxy; ``detail["features"]`` is how many features were kept and
        ``detail["width"]`` how many there are.

    Raises:
        MeasureError: If the network or the data cannot be measured, or the network uses
            no feature at all (its output is constant on the data, modulo a shift).
        UsageError: If ``features`` is unknown.

    Example:
        The point (1, 1) may have either class, (2, 0) the one of (1, 0), and the origin of the
        hidden layer neither.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> y = torch.tensor([0, 1])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.repaired_pair_proxy(model, x, y, unseen).value
        3.0
    """
    if features not in ("used", "function"):
        raise unknown_name("features", features, ("used", "function"))
    frozen = frozen_features(model, x_train, x_unseen)
    train, unseen = frozen.values
    layer = model.get_submodule(frozen.layer)
    if not isinstance(layer, nn.Linear):
        raise MeasureError(f"Expected a linear last layer, got {type(layer).__name__}.")
    weight = layer.weight.detach().to("cpu", torch.float64).numpy()
    tolerance = default_rank_tolerance(frozen.epsilon)
    rows = np.vstack([train, unseen])
    if features == "used":
        rows = rows[:, used_features(rows, weight, tolerance=tolerance)]
    else:
        rows = function_features(rows, weight, bias=frozen.bias, tolerance=tolerance)
    if not rows.any():
        raise MeasureError(
            "The last layer uses no feature: the output is the same for every point, up to a "
            "shift common to all classes. There is no policy to measure."
        )
    train, unseen = np.split(rows, [len(train)])
    # A linear layer on these features as inputs: its own features are what we kept.
    # Made on the meta device first: initialising it would draw from the global generator.
    reader = nn.Linear(
        rows.shape[1], frozen.n_classes, bias=frozen.bias, device="meta", dtype=torch.float64
    ).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.zero_()
    found = pair_proxy(
        reader.eval(),
        torch.from_numpy(np.ascontiguousarray(train)),
        y_train,
        torch.from_numpy(np.ascontiguousarray(unseen)),
        rank_tolerance=tolerance if rank_tolerance is None else rank_tolerance,
        **options,
    )
    return Estimate(
        found.value,
        stderr=found.stderr,
        exact=found.exact,
        method=f"{found.method}; over features that the function uses ({features})",
        detail={**found.detail, "features": rows.shape[1], "width": layer.in_features},
    )


def function_pair_proxy(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, **options: Any
) -> Estimate:
    """Count the feasible pairs over the logits alone, modulo a shift: a function of the function.

    :func:`repaired_pair_proxy` with ``features="function"``, which says what holds: it too steps
    up for outgoing weights of 1e-9.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels.
        x_unseen: ``(u, ...)`` unseen inputs.
        options: As there.

    Returns:
        As there.

    Raises:
        MeasureError: As there.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(1, 2)).double()
    >>> with torch.no_grad():
    ...     _ = model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
    >>> line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    >>> float(function_pair_proxy(model, line, torch.tensor([0, 1]), 0.5 * line))
    4.0
    """
    return repaired_pair_proxy(model, x_train, y_train, x_unseen, features="function", **options)
