"""How a Hessian answers a change of coordinates, and the trace that does not.

With ``theta = g(eta)``, ``J = dg/deta`` and ``L_eta = L o g``::

    H_eta = J^T H_theta J + sum_i (dL/dtheta_i) Hess(g_i)

The second term vanishes at a critical point only; away from one, ``H_eta`` is not even a
tensor. The covariant second derivative subtracts it. Traced with the metric that the new
coordinates inherit from the old ones, ``G = J^T J``, it gives back the trace in the original
coordinates: ``tr(G^+ J^T H J) = tr(H)``, as ``J G^+ J^T`` is the identity whenever ``g`` is
onto to first order (weight normalisation has more coordinates than weights: hence the
pseudo-inverse).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._modules import clone
from invariance.curvature import hessian_trace
from invariance.transforms._reparametrize import parametrized, remove_chart

#: The dense law needs several square matrices of this size in float64.
MAX_COORDINATES = 3000


@dataclass(frozen=True, eq=False)
class CoordinateLaw:
    """Both sides of the law at one point, dense, in float64.

    Attributes:
        coordinates: Names of the trainable coordinates eta, in the order of the matrices.
        weights: Names of the plain weights theta, in the order of the matrices.
        hessian: ``(m, m)`` Hessian of the loss in the coordinates.
        weight_hessian: ``(n, n)`` Hessian in the plain weights.
        jacobian: ``(n, m)`` derivative of the weights by the coordinates.
        gradient: ``(n,)`` gradient in the plain weights.
        curvature: ``(m, m)`` the term ``sum_i gradient_i Hess(g_i)``.
    """

    coordinates: tuple[str, ...]
    weights: tuple[str, ...]
    hessian: Tensor
    weight_hessian: Tensor
    jacobian: Tensor
    gradient: Tensor
    curvature: Tensor

    @property
    def predicted(self) -> Tensor:
        """``(m, m)`` the law's right-hand side, ``J^T H J + curvature``."""
        return self.jacobian.T @ self.weight_hessian @ self.jacobian + self.curvature

    @property
    def metric(self) -> Tensor:
        """``(m, m)`` the Euclidean metric of the plain weights, pulled back: ``J^T J``."""
        return self.jacobian.T @ self.jacobian

    @property
    def covariant_trace(self) -> float:
        """``tr(G^+ (H_eta - curvature))``, from the coordinates' own Hessian."""
        inverse = torch.linalg.pinv(self.metric, hermitian=True)
        return float(torch.trace(inverse @ (self.hessian - self.curvature)))


def coordinate_law(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> CoordinateLaw:
    """Evaluate both sides of the law densely, in float64, for a small network.

    Args:
        model: A network with parametrized weights (or none: then both sides coincide).
        x: Inputs.
        y: Targets.
        loss: ``loss(outputs, y)``, a scalar, twice differentiable.

    Returns:
        The :class:`CoordinateLaw`.

    Raises:
        MeasureError: If the network has more than ``MAX_COORDINATES`` coordinates or weights,
            or is in train mode.

    Example:
        Without a reparameterization both sides are the Hessian itself.

        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> law = inv.transforms.coordinate_law(model, x, y)
        >>> bool((law.hessian == law.weight_hessian).all()), round(float(law.hessian.trace()), 9)
        (True, 2.0)
    """
    inner = _double_copy(model)
    plain = _plain_copy(inner)
    eta = {n: p.detach() for n, p in inner.named_parameters() if p.requires_grad}
    moved = _decoded_names(inner)
    theta = {n: p.detach() for n, p in plain.named_parameters() if p.requires_grad or n in moved}
    for what, entries in (("coordinates", eta), ("weights", theta)):
        count = sum(t.numel() for t in entries.values())
        if not 0 < count <= MAX_COORDINATES:
            raise MeasureError(
                f"The dense law is for 1 to {MAX_COORDINATES} trainable {what}. Got {count}. "
                "Use covariant_trace(model, x, y), which needs no matrix."
            )
    x = x.double() if x.is_floating_point() else x

    def loss_of(network: nn.Module, like: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda flat: loss(functional_call(network, _split(flat, like), (x,)), y)

    charts = {name: (f"{path}.", inner.get_submodule(path)) for name, path in _sites(inner)}

    def decode(flat: Tensor) -> Tensor:
        values = _split(flat, eta)
        pieces = []
        for name in theta:
            if name in charts:
                prefix, chart = charts[name]
                own = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
                pieces.append(functional_call(chart, own, ()).reshape(-1))
            else:
                pieces.append(values[name].reshape(-1))
        return torch.cat(pieces)

    at, at_weights = _flat(eta), _flat(theta)
    gradient = jacrev(loss_of(plain, theta))(at_weights)
    return CoordinateLaw(
        coordinates=tuple(eta),
        weights=tuple(theta),
        hessian=_hessian(loss_of(inner, eta), at),
        weight_hessian=_hessian(loss_of(plain, theta), at_weights),
        jacobian=jacrev(decode)(at),
        gradient=gradient,
        curvature=_hessian(lambda flat: decode(flat) @ gradient, at),
    )


def covariant_trace(model: nn.Module, x: Tensor, y: Tensor) -> Estimate:
    """Trace of the covariant Hessian of the mean cross-entropy: fixed by any coordinates.

    It equals the Hessian trace in the plain weights (the module's docstring has the proof),
    so it is measured there: exactly, whatever the coordinates.

    Args:
        model: A network, reparametrised or not.
        x: Inputs.
        y: Labels.

    Returns:
        The trace, with one part for each plain weight.

    Example:
        One row with ``p = (1/2, 1/2)``: ``H = S (x) x x^T`` with ``Tr S = 1/2`` and ``|x|^2 = 4``.

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0, 1.0], [1.0, -1.0]]])
        >>> x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
        >>> round(inv.transforms.covariant_trace(model, x, y).value, 9)
        2.0
    """
    return hessian_trace(_plain_copy(model), x, y)


def _double_copy(model: nn.Module) -> nn.Module:
    for name, module in model.named_modules():
        if module.training and isinstance(
            module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        ):
            raise MeasureError(f"{name!r} is in train mode. Call model.eval() first.")
    return clone(model).double()


def _plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in which every parametrized tensor is a plain parameter."""
    plain = clone(model)
    for name in parametrized(plain):
        owner, _, attribute = name.rpartition(".")
        remove_chart(plain.get_submodule(owner), attribute)
    return plain


def _sites(model: nn.Module) -> list[tuple[str, str]]:
    """List each parametrized tensor's plain name and the path of its chart."""
    sites = []
    for name in parametrized(model):
        owner, _, attribute = name.rpartition(".")
        sites.append((name, f"{owner}.".lstrip(".") + f"parametrizations.{attribute}"))
    return sites


def _decoded_names(model: nn.Module) -> frozenset[str]:
    """Name the plain weights that have at least one trainable coordinate."""
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    return frozenset(
        name for name, path in _sites(model) if any(n.startswith(f"{path}.") for n in trainable)
    )


def _hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    # Reverse over reverse: forward mode would pull in torch's deprecated scripting.
    second: Tensor = jacrev(jacrev(function))(at)
    return second


def _flat(entries: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in entries.values()])


def _split(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut a flat vector into named tensors."""
    sizes = [tensor.numel() for tensor in like.values()]
    pieces = torch.split(flat, sizes)
    return {n: p.reshape(t.shape) for (n, t), p in zip(like.items(), pieces, strict=True)}
