"""The pair proxy: how many labels of unseen points a frozen feature map leaves open.

Freeze what the last linear layer reads. A pair (unseen point x_j, class c) is feasible
when some classifier (W, b) gives every training point its label with a strict margin and
x_j the label c. The proxy counts the feasible pairs (M. T. Bennett, "Are Flat Minima an
Illusion?", arXiv 2605.05209). It is unchanged by every invertible affine map of the
features, and by nothing weaker: giving the network a unit with zero outgoing weights
keeps the function and can change the count.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.weakness._features import Precision, check_labels, frozen_features
from invariance.weakness.separability._certificates import INFEASIBLE_TOLERANCE
from invariance.weakness.separability._conditioning import (
    Conditioned,
    condition,
    default_rank_tolerance,
)
from invariance.weakness.separability._separability import PairVerdicts, Status, settle_pairs
from invariance.weakness.separability._threads import available_cores, one_library_thread


def pair_proxy(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_unseen: Tensor,
    *,
    rank_tolerance: float | None = None,
    tolerance: float = INFEASIBLE_TOLERANCE,
    keep_certificates: bool = False,
    workers: int = 1,
    precision: Precision = "float64",
) -> Estimate:
    """Count the feasible (unseen point, class) pairs, each verdict certified.

    Args:
        model: A network that ends with a linear layer; MLP, CNN, transformer, ...
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels, ``0 .. K - 1``.
        x_unseen: ``(u, ...)`` unseen inputs.
        rank_tolerance: Relative cut of the training features' singular values. Default: by
            the precision of the parameters, see ``_conditioning``.
        tolerance: Largest relative residual of a certificate of infeasibility, see
            :mod:`invariance.weakness.separability._certificates`.
        keep_certificates: Also return the witnesses and Farkas combinations.
        workers: Threads to spread the unseen points over; the result does not depend on it.
        precision: ``"float64"`` or ``"native"`` evaluation of the network.

    Returns:
        The count, in ``0 .. u K``. ``detail`` holds ``pairs``, ``feasible``,
        ``infeasible``, ``undecided``, ``policy_feasible`` (``None`` if undecided),
        ``free_probes``, ``rank``, ``infeasible_by_rank_rule`` (pairs whose infeasibility
        is proved for the coordinates that the rank rule retains only), ``status``
        (``(u, K)`` int8: 1, -1, 0) and, with ``keep_certificates``, ``certificates``.
        ``exact`` is False when a pair stayed undecided; those are not counted.

    Raises:
        MeasureError: If the network or the data cannot be measured; says why.

    Example:
        The point (1, 1) may have either class, (2, 0) the one of (1, 0), and the origin of the
        hidden layer neither.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> y = torch.tensor([0, 1])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.pair_proxy(model, x, y, unseen).value
        3.0
    """
    prepared = _prepare(model, x_train, y_train, x_unseen, rank_tolerance, tolerance, precision)
    if workers < 1:
        raise MeasureError(f"workers must be at least 1. Got {workers}.")
    with one_library_thread():
        return _count(prepared, tolerance, keep_certificates, workers)


def pair_proxy_ensemble(
    models: Iterable[nn.Module],
    x_train: Tensor,
    y_train: Tensor,
    x_unseen: Tensor,
    *,
    rank_tolerance: float | None = None,
    tolerance: float = INFEASIBLE_TOLERANCE,
    keep_certificates: bool = False,
    workers: int | None = None,
    precision: Precision = "float64",
) -> list[Estimate]:
    """Count the feasible pairs of many networks, one thread a network.

    Args:
        models: Networks that end with a linear layer.
        x_train: ``(n, ...)`` training inputs, the same for all.
        y_train: ``(n,)`` their labels.
        x_unseen: ``(u, ...)`` unseen inputs.
        rank_tolerance: As in :func:`pair_proxy`.
        tolerance: As there.
        keep_certificates: As there.
        workers: Threads; as many as this process may use cores by default.
        precision: As there.

    Returns:
        For each network what :func:`pair_proxy` returns for it.

    Raises:
        MeasureError: As there; the message names the network's position.

    Example:
        The point (1, 1) may have either class, (2, 0) the one of (1, 0), and the origin of the
        hidden layer neither.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> y = torch.tensor([0, 1])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> found = inv.weakness.pair_proxy_ensemble([model, model], x, y, unseen, workers=1)
        >>> [one.value for one in found]
        [3.0, 3.0]
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise MeasureError(f"workers must be at least 1. Got {workers}.")
    prepared = []
    # A thread a network is all the parallelism there is to use.
    with one_library_thread(None), ThreadPoolExecutor(workers) as pool:
        for index, model in enumerate(models):
            try:
                entry = _prepare(
                    model, x_train, y_train, x_unseen, rank_tolerance, tolerance, precision
                )
            except MeasureError as error:
                raise MeasureError(f"Network {index}: {error}") from error
            prepared.append(pool.submit(_count, entry, tolerance, keep_certificates, 1))
        return [future.result() for future in prepared]


class _Prepared(NamedTuple):
    """What is left of a network once its features are frozen."""

    points: Conditioned
    labels: npt.NDArray[np.int64]
    n_classes: int


def _prepare(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_unseen: Tensor,
    rank_tolerance: float | None,
    tolerance: float,
    precision: Precision,
) -> _Prepared:
    features = frozen_features(model, x_train, x_unseen, precision=precision)
    train, unseen = features.values
    labels = check_labels(y_train, train.shape[0], features.n_classes)
    if rank_tolerance is None:
        rank_tolerance = default_rank_tolerance(features.epsilon)
    if not 0.0 < rank_tolerance < 1.0 or not 0.0 < tolerance < 1.0:
        raise MeasureError(
            "rank_tolerance and tolerance must lie strictly between 0 and 1. "
            f"Got {rank_tolerance} and {tolerance}."
        )
    points = condition(train, unseen, bias=features.bias, rank_tolerance=rank_tolerance)
    return _Prepared(points, labels, features.n_classes)


def _count(
    prepared: _Prepared, tolerance: float, keep_certificates: bool, workers: int
) -> Estimate:
    verdicts = settle_pairs(
        prepared.points,
        prepared.labels,
        prepared.n_classes,
        tolerance=tolerance,
        keep_witnesses=keep_certificates,
        workers=workers,
    )
    return _estimate(verdicts, prepared.points.rank, keep_certificates)


def _estimate(verdicts: PairVerdicts, rank: int, keep_certificates: bool) -> Estimate:
    status = verdicts.status.copy()
    status.setflags(write=False)
    feasible = int((status == Status.FEASIBLE).sum())
    undecided = int((status == Status.UNDECIDED).sum())
    if verdicts.policy == Status.INFEASIBLE:
        method = "no classifier separates the training points: the policy itself is infeasible"
    elif verdicts.policy == Status.UNDECIDED:
        method = "undecided whether the training points are separable: nothing is counted"
    else:
        method = "certified feasible pairs by a dual active-set method"
        if undecided:
            method += f"; {undecided} undecided pairs not counted"
    detail: dict[str, Any] = {
        "pairs": status.size,
        "feasible": feasible,
        "infeasible": int((status == Status.INFEASIBLE).sum()),
        "undecided": undecided,
        "policy_feasible": {1: True, -1: False, 0: None}[int(verdicts.policy)],
        "free_probes": int(verdicts.free.sum()),
        "rank": rank,
        "infeasible_by_rank_rule": len(verdicts.retained_only),
        "smallest_margin": _smallest(verdicts.margin_of[np.isfinite(verdicts.margin_of)]),
        "smallest_norm_bound": _smallest(np.array(list(verdicts.norm_bound_of.values()))),
        "status": status,
    }
    if keep_certificates:
        detail["certificates"] = verdicts
    return Estimate(
        float(feasible),
        stderr=0.0 if undecided == 0 else None,
        exact=undecided == 0,
        method=method,
        detail=detail,
    )


def _smallest(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    return float(values.min()) if values.size else None
