"""A pair proxy with a margin: a Lipschitz function of the network's function.

Counts over a span ask whether any classifier gives a point a label, however steep, so the
faintest new direction opens labels in full. Here a pair counts by its margin instead. On
the rows ``z = (f / s, 1)``, with f the logits less their mean over classes and s their
root mean square length on the training points, a pair's margin is

    m = max over |W| <= 1 of the smallest margin of W on the training points and the pair,

and the value is the sum of ``min(1, m / tau)`` over pairs: a count of the pairs with a
margin of at least tau, with a ramp below it in place of a step.

* It depends on the logits on the given points alone, modulo a shift common to all classes
  and a common factor, so it is unchanged by *every* map that keeps the function.
* If f moves by at most e at every point, s moves by at most e and z by at most
  ``(1 + |z|) e / s``, hence m by at most ``sqrt(2) (1 + max |z|) e / s``, because a maximum
  of minima moves by no more than what it is taken of. Outgoing weights of 1e-9 move the
  value by 1e-9 / tau a pair.

The margin is ``1 / |W|`` for the separator of least norm with margins of 1 (the support
vector machine of J. Weston and C. Watkins, "Multi-class support vector machines", 1998).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.weakness._features import check_labels, frozen_features
from invariance.weakness.separability._active_set import SolverOutcome
from invariance.weakness.separability._kernels import (
    first_state,
    saved_state,
    solve_on,
    workspace,
)
from invariance.weakness.separability._pair_sweep import smallest_margin
from invariance.weakness.separability._threads import one_library_thread

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: Margins from which a pair counts in full.
TAU = 0.02
#: Directions of the rows that are fainter than this, relatively, are left out: that moves no
#: margin by more than so much.
_FAINT = 1e-7
#: Margins of 1 up to this, relatively: thin pairs have large multipliers, and their round-off.
_STOP = 1.0 - 1e-6


def margin_pair_proxy(
    model: nn.Module, x_train: Tensor, y_train: Tensor, x_unseen: Tensor, *, tau: float = TAU
) -> Estimate:
    """Count the (unseen point, class) pairs that the function leaves open with a margin.

    Args:
        model: A network that ends with a linear layer, in eval mode.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels, ``0 .. K - 1``.
        x_unseen: ``(u, ...)`` unseen inputs.
        tau: Margin from which a pair counts in full, for logits of unit size; a pair of
            margin m below it counts ``m / tau``.

    Returns:
        The sum, in ``0 .. u K``. ``detail`` holds ``count`` (pairs with a margin of at least
        tau), ``margins`` (``(u, K)``, 0 where infeasible), ``policy_margin`` (that of the
        training points alone), ``lipschitz`` (by how much a margin moves, at most, for logits
        that move by 1 at every point) and ``undecided`` (pairs that the solver gave up on,
        not counted).

    Raises:
        MeasureError: If the network or the data cannot be measured, or tau is not positive.

    Points at -1 and 1 on a line and a probe at 0: its own margin asks for an offset of 1, the
    training points then for a slope of 2, so ``|W_1 - W_0|^2 = 5 = 2 |W|^2``.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(1, 2)).double()
    >>> with torch.no_grad():
    ...     _ = model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
    ...     _ = model[1].bias.zero_()
    >>> line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    >>> found = margin_pair_proxy(model, line, torch.tensor([0, 1]), 0.0 * line[:1])
    >>> [round(float(margin), 6) for margin in found.detail["margins"][0]]
    [0.632456, 0.632456]
    """
    if not tau > 0.0:
        raise MeasureError(f"tau must be positive. Got {tau}.")
    features = frozen_features(model, x_train, x_unseen)
    labels = check_labels(y_train, len(features.values[0]), features.n_classes)
    layer = model.get_submodule(features.layer)
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach().to("cpu", torch.float64).numpy()
    logits = np.vstack(features.values) @ weight.T
    if layer.bias is not None:
        logits += layer.bias.detach().to("cpu", torch.float64).numpy()
    logits -= logits.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((logits[: len(labels)] ** 2).sum(axis=1).mean()))
    if scale == 0.0:
        raise MeasureError(
            "The logits of the training points are the same for all classes. There is no "
            "function to measure."
        )
    rows = np.hstack([logits / scale, np.ones((len(logits), 1))])
    lengths = np.linalg.norm(rows, axis=1)
    _, spectrum, right = np.linalg.svd(rows, full_matrices=False)
    rows = rows @ right[spectrum > _FAINT * spectrum[0]].T
    with one_library_thread():
        policy, margins = _margins(rows, labels, features.n_classes)
    undecided = int(np.isnan(margins).sum())
    margins.setflags(write=False)
    known = np.nan_to_num(margins)
    return Estimate(
        float(np.minimum(1.0, known / tau).sum()),
        stderr=0.0 if undecided == 0 else None,
        exact=undecided == 0,
        method=f"margins of pairs over the logits, in full from {tau}",
        detail={
            "count": int((known >= tau).sum()),
            "margins": margins,
            "policy_margin": policy,
            "lipschitz": float(np.sqrt(2.0) * (1.0 + lengths.max()) / scale),
            "undecided": undecided,
        },
    )


def _margins(rows: Array, labels: Indices, n_classes: int) -> tuple[float, Array]:
    """The margin of the training points, and ``(u, K)`` those of the pairs; NaN if unknown."""
    n_train = len(labels)
    margins = np.zeros((len(rows) - n_train, n_classes))
    problem, factors = workspace(rows[:n_train], labels, n_classes)
    separator = np.zeros((n_classes, rows.shape[1]))
    outcome, size, _ = solve_on(problem, factors, first_state(separator), separator, _STOP)
    if outcome != SolverOutcome.SEPARATED:
        margins[:] = 0.0 if outcome == SolverOutcome.INSEPARABLE else np.nan
        return 0.0, margins
    policy = saved_state(factors, size, separator.copy())
    for probe, row in enumerate(rows[n_train:]):
        problem, factors = workspace(
            np.vstack([rows[:n_train], row]), np.append(labels, 0), n_classes
        )
        for target in range(n_classes):
            problem.labels[-1] = target
            # The policy's active rows stay dual feasible: only the probe's are left to add.
            outcome, _, _ = solve_on(problem, factors, policy, separator, _STOP)
            if outcome == SolverOutcome.SEPARATED:
                margins[probe, target] = _margin(separator, problem.rows, problem.labels)
            elif outcome == SolverOutcome.STUCK:
                margins[probe, target] = np.nan
    return _margin(policy.separator, rows[:n_train], labels), margins


def _margin(separator: Array, rows: Array, labels: Indices) -> float:
    return smallest_margin(rows @ separator.T, labels) / float(np.linalg.norm(separator))
