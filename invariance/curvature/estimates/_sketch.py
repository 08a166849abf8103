"""Trace estimators that find the large eigenvalues with a sketch and sample only the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from invariance.curvature.estimates._probes import (
    Samples,
    block_sums,
    blocks_of_probes,
    random_normals,
    random_signs,
)
from invariance.curvature.products._matrix import SymmetricOperator


def hutchpp(operator: SymmetricOperator, budget: int, seed: int) -> Samples:
    """Hutch++: ``tr(Q^T A Q)`` exactly, the rest by sign probes projected off Q.

    With ``P = I - Q Q^T`` the trace of A's block b is
    ``sum_k <q_k, A q_k>_b + E <P g, A P g>_b``, since ``E P g g^T P = P``.
    """
    third = budget // 3
    basis, images = sketch(operator, third, seed, "hutchpp")
    fixed = block_sums(operator, basis * images).sum(0)
    found = []
    for probes in blocks_of_probes(
        operator, budget - 2 * third, seed, random_signs, "hutchpp rest"
    ):
        rest = probes - (probes @ basis.mT) @ basis
        found.append(block_sums(operator, rest * operator.rows(rest)))
    samples = torch.cat(found)
    words = f"Hutch++, sketch of rank {basis.shape[0]}, {len(samples)} sign probes"
    return Samples(samples, fixed, words)


def xtrace(operator: SymmetricOperator, budget: int, seed: int) -> Samples:
    """XTrace: Hutch++ for every choice of one probe, with the range found by all the others.

    Write ``Y = A Omega = Q R``. Leaving out column i leaves the range of
    ``Q (I - s_i s_i^T)`` with s_i the unit vector that is orthogonal to the other columns of
    R, or the whole range of Q when there is none, as happens for a matrix of low rank: dead
    units and other exactly zero rows are no special case.
    """
    count = budget // 2
    omega = torch.cat([*blocks_of_probes(operator, count, seed, random_normals, "xtrace")])
    images = torch.cat([operator.rows(part) for part in torch.split(omega, 8)])
    basis = orthonormal_rows(images)
    rank = basis.shape[0]
    if not rank:
        zeros = torch.zeros(count, len(operator.names), dtype=torch.float64)
        return Samples(zeros, zeros[0], f"XTrace, {count} probes, all in the null space")
    moved = torch.cat([operator.rows(part) for part in torch.split(basis, 8)])
    shared = block_sums(operator, basis * moved).sum(0)
    left_out = _left_out_directions((images @ basis.mT).double().cpu()).to(basis)
    # Everything below is one row a probe. c_i = Q^T omega_i without its part along s_i.
    inside = omega @ basis.mT
    inside = inside - left_out * (left_out * inside).sum(1, keepdim=True)
    rest = omega - inside @ basis
    rest_image = images - inside @ moved
    # Only the direction of the rest is random given its range: fix its length (section 2.3).
    used = rank - left_out.square().sum(1).round()
    length = rest.square().sum(1).clamp_min(torch.finfo(rest.dtype).tiny)
    scale = ((operator.shape[0] - used) / length).double().cpu()
    tail = block_sums(operator, rest * rest_image) * scale[:, None]
    lost = block_sums(operator, (left_out @ basis) * (left_out @ moved))
    covariance = None
    if rank == count:  # else the matrix is of low rank, and every sample is exact
        covariance = _covariance(operator, omega, images, basis, moved, left_out)
    return Samples(tail - lost, shared, f"XTrace, {count} probes", covariance)


def _covariance(
    operator: SymmetricOperator,
    omega: Tensor,
    images: Tensor,
    basis: Tensor,
    moved: Tensor,
    left_out: Tensor,
) -> Tensor:
    """Estimate the covariance of two of XTrace's samples, without bias.

    Let t_i be sample i, and t_ki the same with the range of all probes but i and k. Given the
    other probes, ``b_ki = t_i - t_ki`` has mean zero over probe i, and t_ki does not know
    probe k. So of ``Cov(t_i, t_k)`` all terms vanish but ``E b_ki b_ik``.

    Shapes: ``omega (m, d)``, ``images (m, d)``, ``basis (m, d)``, ``moved (m, d)``, ``left_out (m,
    m)``; returns ``(blocks + 1,)``.
    """
    m, dim = omega.shape
    blocks = zip(
        *(
            torch.split(part, list(operator.space.sizes), 1)
            for part in (omega, images, basis, moved)
        ),
        strict=True,
    )
    small = [
        ((o * i).sum(1), i @ q.mT + o @ a.mT, q @ a.mT)  # w.Aw, Q Aw + (A Q) w, Q A Q
        for o, i, q, a in blocks
    ]
    own, mixed, inner = (torch.stack(part).cpu().double() for part in zip(*small, strict=True))
    inside = (omega @ basis.mT).cpu().double()
    lengths = omega.cpu().double().square().sum(1)
    directions = left_out.cpu().double()

    def samples(*out: Tensor) -> Tensor:
        """Samples of all probes, ``(blocks, m)``, leaving these orthonormal ``(m, m)`` out."""
        kept = inside - sum(u * (u * inside).sum(1, keepdim=True) for u in out)
        scale = (dim - (m - len(out))) / (lengths - kept.square().sum(1))
        tail = own - (mixed * kept).sum(-1) + ((kept @ inner) * kept).sum(-1)
        return tail * scale - sum(((u @ inner) * u).sum(-1) for u in out)

    alone = samples(directions)
    change = torch.zeros(m, *alone.shape, dtype=alone.dtype)  # b_ki
    for k, taken in enumerate(directions):
        other = directions - (directions @ taken)[:, None] * taken
        other[k] = 0
        other = torch.nn.functional.normalize(other, dim=1)
        change[k] = alone - samples(taken.expand(m, m), other)
        change[k, :, k] = 0
    change = torch.cat([change, change.sum(1, keepdim=True)], dim=1)
    return torch.einsum("kbi,ibk->b", change, change) / (m * (m - 1))


def sketch(
    operator: SymmetricOperator, count: int, seed: int, stream: str
) -> tuple[Tensor, Tensor]:
    """Return orthonormal rows spanning the range of A on random signs, and their images."""
    probes = blocks_of_probes(operator, count, seed, random_signs, f"{stream} sketch")
    basis = orthonormal_rows(torch.cat([operator.rows(part) for part in probes]))
    if not basis.shape[0]:
        return basis, basis
    return basis, torch.cat([operator.rows(part) for part in torch.split(basis, 8)])


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Return ``(r, d)`` orthonormal rows with the same span, r the numerical rank."""
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    floor = 10 * rows.shape[0] * torch.finfo(rows.dtype).eps
    kept: Tensor = right[sizes > floor * sizes.max()]
    return kept.contiguous()


def _left_out_directions(coordinates: Tensor) -> Tensor:
    """Return, for each row i, the unit vector orthogonal to all other rows, or zero.

    Shapes: ``coordinates (m, r)``; returns ``(m, r)``.
    """
    m, r = coordinates.shape
    keep = ~torch.eye(m, dtype=torch.bool)
    others = coordinates.expand(m, m, r)[keep].reshape(m, m - 1, r)
    _, sizes, right = torch.linalg.svd(others, full_matrices=True)
    # The others span all of R^r unless row i alone supplies a dimension.
    smallest = sizes[:, r - 1] if m - 1 >= r else torch.zeros(m, dtype=sizes.dtype)
    floor = sizes[:, 0].clamp_min(torch.finfo(sizes.dtype).tiny) * m * 1e-7
    return torch.where((smallest <= floor)[:, None], right[:, -1], 0.0)
