"""Adapters of the curvature benchmark: other libraries, each optional.

Every function returns a callable without arguments, or raises ``ImportError``. Peers are
given what they need once, outside the timing, where their interface allows it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import nn

PEERS = ("PyHessian 0.1", "hessian-eigenthings 1.0.0a5", "curvlinops 3.0.1", "BackPACK 1.7.1")


def _parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def _pyhessian(model, x, y):
    from pyhessian import hessian

    return hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), data=(x, y), cuda=x.is_cuda)


def _eigenthings(model, x, y):
    from hessian_eigenthings import HessianOperator, supervised_loss

    loss = supervised_loss(nn.functional.cross_entropy)
    return HessianOperator(copy.deepcopy(model), [(x, y)], loss)


def _curvlinops(model, x, y):
    from curvlinops import HessianLinearOperator

    copied = copy.deepcopy(model)
    return HessianLinearOperator(
        copied,
        nn.CrossEntropyLoss(),
        _parameters(copied),
        [(x, y)],
        check_deterministic=False,
    )


def products(model, x, y) -> dict[str, Callable[[], Callable[[], object]]]:
    """One Hessian-vector product; whatever can be kept between products is kept."""

    def pyhessian():
        from pyhessian.utils import hessian_vector_product

        whole = _pyhessian(model, x, y)
        v = [torch.randn_like(p) for p in whole.params]
        return lambda: hessian_vector_product(whole.gradsH, whole.params, v)

    def eigenthings():
        operator = _eigenthings(model, x, y)
        v = torch.randn(operator.size, device=x.device)
        return lambda: operator.matvec(v)

    def curvlinops():
        operator = _curvlinops(model, x, y)
        v = torch.randn(operator.shape[1], device=x.device)
        return lambda: operator @ v

    def backpack():
        from backpack.hessianfree.hvp import hessian_vector_product

        copied = copy.deepcopy(model)
        parameters = _parameters(copied)
        v = [torch.randn_like(p) for p in parameters]

        def run():
            loss = nn.functional.cross_entropy(copied(x), y)
            return hessian_vector_product(loss, parameters, v)

        return run

    return dict(zip(PEERS, (pyhessian, eigenthings, curvlinops, backpack), strict=True))


def traces(model, x, y, probes: int) -> dict[str, Callable[[], Callable[[], list[float]]]]:
    """Samples of the trace by ``probes`` Hutchinson probes (BackPACK: the exact diagonal)."""

    def pyhessian():
        # No tolerance at all: its own rule may stop after two probes.
        return lambda: _pyhessian(model, x, y).trace(maxIter=probes, tol=float("-inf"))

    def eigenthings():
        from hessian_eigenthings import hutchinson

        def run():
            result = hutchinson(_eigenthings(model, x, y), num_samples=probes, seed=0)
            spread = float(result.stderr) * probes**0.5
            return [float(result.estimate) - spread, float(result.estimate) + spread]

        return run

    def curvlinops():
        def run():
            operator = _curvlinops(model, x, y)
            draws = torch.randint(0, 2, (probes, operator.shape[1]), device=x.device) * 2.0 - 1
            return [float(v @ (operator @ v)) for v in draws]

        return run

    def backpack():
        from backpack import backpack, extend
        from backpack.extensions import DiagHessian

        copied, criterion = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss())

        def run():
            with backpack(DiagHessian()):
                criterion(copied(x), y).backward()
            return [float(sum(p.diag_h.sum() for p in copied.parameters()))]

        return run

    return dict(zip(PEERS, (pyhessian, eigenthings, curvlinops, backpack), strict=True))


def top_eigenvalues(
    model, x, y, *, tol: float = 1e-6
) -> dict[str, Callable[[], Callable[[], float]]]:
    """The algebraically largest eigenvalue, asked for at a relative tolerance."""

    def pyhessian():
        return lambda: float(_pyhessian(model, x, y).eigenvalues(maxIter=300, tol=tol)[0][0])

    def eigenthings():
        from hessian_eigenthings import lanczos

        def run():
            operator = _eigenthings(model, x, y)
            found = lanczos(operator, k=1, max_iter=40, tol=tol, which="LA", seed=0)
            return float(found.eigenvalues[0])

        return run

    def curvlinops():
        from scipy.sparse.linalg import eigsh

        def run():
            view = _curvlinops(model, x, y).to_scipy()
            return float(eigsh(view, k=1, which="LA", tol=tol, return_eigenvectors=False)[0])

        return run

    return dict(zip(PEERS, (pyhessian, eigenthings, curvlinops), strict=False))


def available(entries: dict[str, Callable]) -> tuple[dict[str, Callable], dict[str, str]]:
    """Build each adapter; those that cannot be built are returned with the reason."""
    ready, missing = {}, {}
    for name, build in entries.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ready[name] = build()
        except ImportError:
            missing[name] = "not installed"
        except Exception as error:  # a peer's own limitation is a result
            missing[name] = f"fails: {str(error).splitlines()[0][:60]}"
    return ready, missing
