"""The full extension of a policy: all labelings of unseen points that it leaves open.

Freeze what the last linear layer reads. ``Ext`` is the set of partial labelings of the
unseen points, the empty one included, such that one classifier (W, b) gives every
training point its label and every labelled unseen point its label, all strictly (M. T.
Bennett, "Are Flat Minima an Illusion?", arXiv 2605.05209, which leaves its computation
open). Counted exactly by an output-sensitive depth-first search for a handful of points.
For more, by stochastic enumeration (R. Vaisman and D. Kroese, "Stochastic enumeration
method for counting trees", Methodology and Computing in Applied Probability 19, 2017):
descend the tree with a pool of nodes, drawn uniformly from the children of the last
pool; the product of ``children / pool`` over the levels is an unbiased estimate of the
number of leaves. A pool of one is D. Knuth's estimator ("Estimating the efficiency of
backtrack programs", Mathematics of Computation 29, 1975).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import MeasureError, unknown_name
from invariance.core._estimate import Estimate
from invariance.core._rng import generator
from invariance.weakness._features import Precision, check_labels, frozen_features
from invariance.weakness.extensions._closure import WORK_LIMIT, closure_work, count_restrictions
from invariance.weakness.extensions._tree import BudgetError, ExtensionTree, Node
from invariance.weakness.separability._certificates import INFEASIBLE_TOLERANCE
from invariance.weakness.separability._certified import CertificateBook, Status
from invariance.weakness.separability._conditioning import (
    Conditioned,
    condition,
    default_rank_tolerance,
    jointly_free,
    reordered,
    with_escapes,
)
from invariance.weakness.separability._separability import separate_policy, settle_pairs
from invariance.weakness.separability._threads import one_library_thread

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Method = Literal["auto", "exact", "estimate"]

#: Solves after which ``method="auto"`` stops counting exactly.
EXACT_BUDGET = 10_000
#: Points up to which a pool of 100 was seen to give stable estimates.
TRUSTED_POINTS = 20


@dataclass(frozen=True)
class Count:
    """A number of labelings, exact or estimated, in log space.

    Attributes:
        log: Natural logarithm; -inf for none.
        exact: The number itself when it is exact.
        runs: ``(repeats,)`` logarithms of the independent estimates.
    """

    log: float
    exact: int | None
    runs: tuple[float, ...] = ()

    def times(self, base: int, power: int) -> Count:
        """Multiply by ``base ** power``."""
        shift = power * math.log(base)
        number = None if self.exact is None else self.exact * base**power
        return Count(self.log + shift, number, tuple(run + shift for run in self.runs))

    @property
    def value(self) -> float:
        """The number as a float; infinity where it overflows."""
        if self.exact is not None and self.exact.bit_length() < 1000:
            return float(self.exact)
        return math.exp(self.log) if self.log < 709.0 else math.inf

    @property
    def relative_stderr(self) -> float:
        """Standard error of the mean of the runs, relative to it; 0 when exact."""
        if self.exact is not None:
            return 0.0
        if len(self.runs) < 2 or self.log == -math.inf:
            return math.inf
        ratios = np.exp(np.array(self.runs) - self.log)
        return float(ratios.std(ddof=1) / math.sqrt(len(self.runs)))

    @property
    def effective_runs(self) -> float:
        """How many equal runs would carry the same information, (sum w)^2 / sum w^2."""
        if not self.runs or self.log == -math.inf:
            return 0.0
        ratios = np.exp(np.array(self.runs) - max(self.runs))
        return float(ratios.sum() ** 2 / np.square(ratios).sum())


def extension_count(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_unseen: Tensor,
    *,
    method: Method = "auto",
    budget: int = EXACT_BUDGET,
    pool: int = 100,
    repeats: int = 4,
    seed: int = 0,
    rank_tolerance: float | None = None,
    tolerance: float = INFEASIBLE_TOLERANCE,
    precision: Precision = "float64",
) -> Estimate:
    """Count all jointly feasible partial labelings of the unseen points.

    Args:
        model: A network that ends with a linear layer.
        x_train: ``(n, ...)`` training inputs.
        y_train: ``(n,)`` their labels, ``0 .. K - 1``.
        x_unseen: ``(u, ...)`` unseen inputs.
        method: ``"exact"``; ``"estimate"``; or ``"auto"``: exact within ``budget``.
        budget: Most solves of the exact count.
        pool: Nodes that the estimator keeps a level; 1 is Knuth's estimator.
        repeats: Independent estimates, at least 2 for a standard error.
        seed: Seed of the estimator. It draws from the tree of labelings alone, so equal
            trees give equal estimates.
        rank_tolerance: As in :func:`~invariance.weakness.separability._pair_proxy.pair_proxy`.
        tolerance: As there.
        precision: As there.

    Returns:
        The number of partial labelings, the empty one included; 0 if the training points
        are not separable. It lies in ``1 .. (K + 1)^u`` and is ``inf`` where a float cannot
        hold it. ``detail`` holds ``log_value``, ``count`` (an int, or ``None``),
        ``complete`` and ``log_complete`` (labelings of all u points), ``jointly_free``
        (points that multiply the count by K + 1 each), ``solves``, ``undecided``,
        ``policy_feasible`` and, when estimated, ``effective_runs``, ``relative_stderr``,
        ``runs`` and ``reliable``.

    Raises:
        MeasureError: If the network or the data cannot be measured, or the exact count
            was asked for and needs more than ``budget``.

    Example:
        Of three points the first may have either class or none, the second one class or none, the
        third none: ``3 * 2 * 1`` partial labelings.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> x = torch.eye(2).double()
        >>> y = torch.tensor([0, 1])
        >>> unseen = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double()
        >>> inv.weakness.extension_count(model, x, y, unseen).value
        6.0
    """
    if method not in ("auto", "exact", "estimate"):
        raise unknown_name("method", method, ("auto", "exact", "estimate"))
    budget, pool = as_integer(budget, "budget"), as_integer(pool, "pool")
    repeats, seed = as_integer(repeats, "repeats"), as_seed(seed)
    if budget < 1 or pool < 1 or repeats < 2:
        raise MeasureError(
            "budget and pool must be at least 1 and repeats at least 2. "
            f"Got {budget}, {pool} and {repeats}."
        )
    features = frozen_features(model, x_train, x_unseen, precision=precision)
    train, unseen = features.values
    labels = check_labels(y_train, train.shape[0], features.n_classes)
    if rank_tolerance is None:
        rank_tolerance = default_rank_tolerance(features.epsilon)
    points = condition(train, unseen, bias=features.bias, rank_tolerance=rank_tolerance)
    with one_library_thread():
        counter = _Counter(points, labels, features.n_classes, tolerance)
        return counter.run(method, budget, pool, repeats, seed)


class _Counter:
    """Counts the extension of one policy, with the free points split off."""

    def __init__(
        self, points: Conditioned, labels: Indices, n_classes: int, tolerance: float
    ) -> None:
        self.labels, self.n_classes, self.tolerance = labels, n_classes, tolerance
        alone = jointly_free(points)
        kept = with_escapes(points, np.flatnonzero(~alone))
        # A point at the origin takes no label at all (there is no bias then).
        mute = kept.lengths[points.n_train :] == 0.0
        self.n_free, self.n_mute = int(alone.sum()), int(mute.sum())
        self.data = reordered(kept, np.flatnonzero(~mute))
        self.n_points = len(alone)
        self.undecided = self.solves = 0

    def run(self, method: Method, budget: int, pool: int, repeats: int, seed: int) -> Estimate:
        book = CertificateBook(self.data, self.labels, self.n_classes, self.tolerance)
        separator = separate_policy(book)
        if separator is None:
            return self._without_policy(book.policy)
        tree = self._tree(separator)
        partial = complete = None
        if method != "estimate":
            tree.budget = budget
            try:
                labelings = _labelings(tree)
            except BudgetError as error:
                if method == "exact":
                    raise MeasureError(
                        f"{error} Raise budget, give fewer points, or use method='estimate'."
                    ) from error
            else:
                complete = Count(math.log(len(labelings)), len(labelings))
                if closure_work(labelings) <= WORK_LIMIT:
                    number = count_restrictions(labelings)
                    partial = Count(math.log(number), number)
                elif method == "exact":
                    raise MeasureError(
                        f"{len(labelings)} complete labelings of {labelings.shape[1]} points have "
                        "too many partial ones to count. Give fewer points, or use "
                        "method='estimate'."
                    )
            tree.budget = None
        if partial is None:
            partial = _estimate_leaves(tree, True, pool, repeats, seed)
        if complete is None:
            complete = _estimate_leaves(tree, False, pool, repeats, seed)
        partial = partial.times(self.n_classes + 1, self.n_free)
        complete = complete.times(self.n_classes, self.n_free)
        if self.n_mute:
            complete = Count(-math.inf, 0)
        return self._estimate(partial, complete, tree, pool)

    def _tree(self, separator: Array) -> ExtensionTree:
        """Order the points by how many classes are open to each, fewest first."""
        verdicts = settle_pairs(self.data, self.labels, self.n_classes, tolerance=self.tolerance)
        shut = verdicts.status == Status.INFEASIBLE
        order = np.argsort(-shut.sum(axis=1), kind="stable")
        tree = ExtensionTree(
            reordered(self.data, order), self.labels, self.n_classes, separator, self.tolerance
        )
        for point, target in np.argwhere(shut[order]).tolist():
            tree.refuse(point, target)
        return tree

    def _without_policy(self, policy: Status) -> Estimate:
        decided = policy == Status.INFEASIBLE
        return Estimate(
            0.0,
            stderr=0.0 if decided else None,
            exact=decided,
            method=(
                "no classifier separates the training points: the policy itself is infeasible"
                if decided
                else "undecided whether the training points are separable: nothing is counted"
            ),
            detail={
                "log_value": -math.inf,
                "count": 0 if decided else None,
                "complete": 0 if decided else None,
                "log_complete": -math.inf,
                "points": self.n_points,
                "policy_feasible": False if decided else None,
                "undecided": 0 if decided else 1,
            },
        )

    def _estimate(
        self, partial: Count, complete: Count, tree: ExtensionTree, pool: int
    ) -> Estimate:
        exact = partial.exact is not None and tree.undecided == 0
        detail: dict[str, Any] = {
            "log_value": partial.log,
            "count": partial.exact,
            "complete": complete.exact,
            "log_complete": complete.log,
            "points": self.n_points,
            "jointly_free": self.n_free,
            "solves": tree.solves,
            "undecided": tree.undecided,
            "policy_feasible": True,
        }
        stderr: float | None = 0.0
        if partial.exact is not None:
            method = "all partial labelings (the empty one too) by depth-first search"
        else:
            reliable = (
                partial.relative_stderr < 0.5 and self.n_points - self.n_free <= TRUSTED_POINTS
            )
            stderr = partial.value * partial.relative_stderr
            stderr = stderr if math.isfinite(stderr) else None
            method = f"partial labelings by stochastic enumeration, pool of {pool}"
            if not reliable:
                method += (
                    "; NOT reliable: such estimates degenerate beyond about "
                    f"{TRUSTED_POINTS} points (Knuth's, a pool of 1, beyond about 8)"
                )
            detail |= {
                "runs": partial.runs,
                "effective_runs": partial.effective_runs,
                "relative_stderr": partial.relative_stderr,
                "reliable": reliable,
            }
        if complete.exact is None:
            detail |= {
                "complete_runs": complete.runs,
                "complete_relative_stderr": complete.relative_stderr,
            }
        if tree.undecided:
            stderr = None
            method += f"; {tree.undecided} undecided labelings not counted"
        return Estimate(partial.value, stderr=stderr, exact=exact, method=method, detail=detail)


def _labelings(tree: ExtensionTree) -> Indices:
    """All complete feasible labelings, depth first."""
    leaves, stack = [], [tree.root()]
    while stack:
        node = stack.pop()
        if len(node.prefix) == tree.n_points:
            leaves.append(node.prefix)
        else:
            stack.extend(tree.children(node, skip=False))
    return np.array(leaves, dtype=np.int64).reshape(len(leaves), tree.n_points)


def _estimate_leaves(tree: ExtensionTree, skip: bool, pool: int, repeats: int, seed: int) -> Count:
    """Estimate the number of leaves by stochastic enumeration."""
    runs: list[float] = []
    kind = "partial" if skip else "complete"
    for repeat in range(repeats):
        draw = generator(seed, "extension_count", kind, repeat)
        nodes, log_weight, complete = [tree.root()], 0.0, True
        for _ in range(tree.n_points):
            children = [child for node in nodes for child in tree.children(node, skip=skip)]
            if not children:
                log_weight = -math.inf
                break
            log_weight += math.log(len(children)) - math.log(len(nodes))
            nodes = _draw(children, pool, draw)
            complete = complete and len(nodes) == len(children)
        if complete:  # nothing was left to chance
            number = 0 if log_weight == -math.inf else len(nodes)
            return Count(log_weight, number)
        runs.append(log_weight)
    top = max(runs)
    log = top if top == -math.inf else top + math.log(np.exp(np.array(runs) - top).mean())
    return Count(log, None, tuple(runs))


def _draw(nodes: list[Node], pool: int, draw: torch.Generator) -> list[Node]:
    if len(nodes) <= pool:
        return nodes
    chosen = torch.randperm(len(nodes), generator=draw)[:pool].sort().values
    return [nodes[index] for index in chosen.tolist()]
