"""Information-geometric sharpness: the loss's gradient in the Fisher metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import reading, run
from invariance.core._groups import Group
from invariance.core._modules import lifted, require_deterministic
from invariance.curvature._batches import check_batch, check_budget
from invariance.curvature.exact._directional import frozen_state, move_like
from invariance.curvature.losses._positions import Positionwise
from invariance.curvature.losses._resolve import resolve_loss, softmax_root
from invariance.curvature.products._parameter_space import select_parameters
from invariance.measures._registry import measure

#: Round-off of a column of the score matrix, in machine epsilons of its norm. Measured on
#: trained perceptrons under rescalings, the value moved by less than a hundredth of the bound
#: with one.
_UNITS = 8.0


@measure(
    # The projection of a vector that depends on f only onto the range of the score matrix,
    # which an invertible map of the parameters' tangent space does not move. Copies of a unit
    # add no direction to that range; a dormant unit does.
    invariant_under=set(Group) - {Group.DORMANT_UNITS},
    cost="solver",
)
def information_geometric_sharpness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rank_tolerance: float | None = None,
    memory_budget: int = 1 << 30,
) -> Estimate:
    """Squared norm ``g^T F^+ g`` of the summed loss's gradient in its own Fisher metric.

    Jang, Lee, Park & Noh (2022), "A reparametrization-invariant sharpness measure based
    on information geometry". With the score matrix A, whose rows are
    ``root(S_n)^T df_n/dtheta``, F = A^T A and g = A^T b, so the value is the squared norm of
    b's projection on the range of A, taken from a pivoted QR decomposition of A: a truncated or
    damped inverse of F would not be invariant. At full row rank (as a rule when
    there are more parameters than ``n (K - 1)``) the value is ``sum_n (1 - p_n) / p_n`` with
    p_n the probability of the label: a function of the training confidence alone.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        rank_tolerance: Pivots below this share of the largest count as zero; ``None`` means
            4 machine epsilons times the larger side of A (whose rows and columns are first brought
            to equal size).
        memory_budget: Largest score matrix to form, in bytes.

    Returns:
        The sharpness; ``detail`` has the rank and the value at full rank. Below full rank,
        ``residual`` bounds what round-off moves.

    Raises:
        MeasureError: The score matrix would exceed ``memory_budget``, or a label's probability
            is zero in float64.

    Example:
        At full rank it is ``sum_i (1 - p_i) / p_i``, one for one row with ``p = 1/2``:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(float(information_geometric_sharpness(model, x, y)), 12)
        1.0
    """
    require_deterministic(model)
    check_budget(memory_budget)
    check_batch(x, y)
    model = lifted(model, torch.float64)  # ranks need the digits
    space = select_parameters(model)
    state = frozen_state(model)
    theta = {name: state[name] for name in space.names}
    rows = move_like(x, next(iter(model.parameters())))
    with torch.no_grad(), reading(model, x):
        outputs = run(model, rows)
    labels = y.to(outputs.device)
    loss = resolve_loss("cross_entropy", model)
    loss.check(outputs, labels)
    if y.is_floating_point() or bool((y < 0).any()):
        raise MeasureError("Information-geometric sharpness needs integer labels, none ignored.")
    labels_in = labels
    if isinstance(loss, Positionwise):  # every position is an observation
        outputs, labels = loss.positions(outputs, labels)
    n, k = outputs.shape
    if k == 1:
        return Estimate(0.0, method="a softmax over one class is constant")
    size = n * (k - 1) * space.dim * 8
    if size > memory_budget:
        raise MeasureError(
            f"The score matrix of {n} rows, {k} classes and {space.dim} parameters takes {size} "
            f"bytes, more than memory_budget={memory_budget}. Measure on fewer rows."
        )

    def row_outputs(moved: dict[str, Tensor], row: Tensor) -> Tensor:
        return run(model, row.unsqueeze(0), {**state, **moved})[0]

    jacobians = vmap(jacrev(row_outputs), in_dims=(None, 0))(theta, rows)
    jacobian = space.join([jacobians[name] for name in space.names], lead=2).double()
    if isinstance(loss, Positionwise):
        jacobian = loss.split(jacobian.movedim(-1, 0), labels_in).movedim(0, -1)
    logits = outputs.double()
    root = softmax_root(logits)  # (n, K, K - 1)
    score = (root.mT @ jacobian).flatten(0, 1)
    p = logits.softmax(1)
    own = p.gather(1, labels.unsqueeze(1)).squeeze(1)
    # The complement of p_y as the sum of the others: no digits cancel near 1.
    full = (p.scatter(1, labels.unsqueeze(1), 0.0).sum(1) / own).sum()
    if not bool(torch.isfinite(full)):
        worst = int((own == 0).nonzero()[0])
        raise MeasureError(
            f"Row {worst}'s label has a probability that is zero in float64, so (1 - p) / p "
            "overflows. The network is certain of another class; leave that row out."
        )
    # root b = p - e_y, solved in closed form: root = diag(q) Q with orthonormal Q, so
    # b = Q^T diag(1/q) (p - e_y), and Q^T q = 0 leaves -Q^T e_y / q_y.
    picked = root[torch.arange(n, device=root.device), labels]
    b = (-picked / own.unsqueeze(1)).flatten()
    found, sure = _projection(score.cpu(), b.cpu(), rank_tolerance)
    whole = found.rank == len(b)
    # A logit's round-off is a relative one of the probability.
    unit = _UNITS * torch.finfo(logits.dtype).eps * (1 + float(logits.abs().max()))
    return Estimate(
        float(full) if whole else found.value,
        stderr=0.0 if sure else None,
        exact=sure,
        method=f"QR decomposition of the {score.shape[0]} x {score.shape[1]} score matrix"
        + ("" if sure else ", whose rank is not clear in float64"),
        residual=None if whole else found.error + unit * float(full),
        detail={"rank": found.rank, "rows": score.shape[0], "full_rank_value": float(full)},
    )


@dataclass(frozen=True)
class _Projection:
    """The squared norm of a projection, with how far round-off may move it.

    Attributes:
        value: The squared norm.
        rank: Dimension of the range.
        error: Bound on what round-off in the matrix moves.
    """

    value: float
    rank: int
    error: float


def _projection(score: Tensor, b: Tensor, rank_tolerance: float | None) -> tuple[_Projection, bool]:
    """Project b onto the range of the score matrix; also say whether its rank is clear.

    Which columns depend on others is asked of the matrix with rows and columns of equal size: a
    scaling of the parameters scales columns, which moves no range, and a confident row is small
    without being dependent on others. A pivoted QR decomposition tells as a singular value
    decomposition does, at a third of its price; the Gram matrix would lose half the digits.

    Shapes: ``score (m, d)``, ``b (m,)``.
    """
    even = score
    for _ in range(4):
        lengths = even.norm(dim=1, keepdim=True)
        even = even / torch.where(lengths > 0, lengths, 1.0)
        columns = even.norm(dim=0)
        even = even / torch.where(columns > 0, columns, 1.0)
    moving = columns.nonzero()[:, 0]
    if not len(moving):
        return _Projection(0.0, 0, 0.0), True
    r, order = scipy.linalg.qr(even[:, moving].numpy(), mode="r", pivoting=True, check_finite=False)
    pivots = np.abs(np.diag(r))
    share = 4 * torch.finfo(score.dtype).eps * max(score.shape)
    zero = (share if rank_tolerance is None else rank_tolerance) * pivots[0]
    chosen = moving[torch.from_numpy(order.astype(np.int64))]
    ranks = [int((pivots > zero * factor).sum()) for factor in (1.0, 300.0, 1 / 30)]
    found = {rank: _onto(score[:, chosen[:rank]], b) for rank in set(ranks)}
    best = found[ranks[0]]
    slack = 1e-9 * abs(best.value)
    return best, all(abs(other.value - best.value) <= slack for other in found.values())


def _onto(columns: Tensor, b: Tensor) -> _Projection:
    """Project b onto the span of independent columns ``(m, rank)``.

    With ``b = columns z + r``, a change dA of the columns moves the value by ``2 r^T dA z`` to
    first order. Round-off in a column is some units of its norm.
    """
    sizes = columns.norm(dim=0)
    q, upper = torch.linalg.qr(columns / sizes)
    along = q.mT @ b
    rest = b - q @ along
    z = torch.linalg.solve_triangular(upper, along[:, None], upper=True)
    unit = _UNITS * torch.finfo(b.dtype).eps
    error = unit * 2 * float(rest.norm()) * float(z.abs().sum())
    return _Projection(float(along.square().sum()), columns.shape[1], error)
