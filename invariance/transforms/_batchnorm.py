"""Fold BatchNorm away, or scale the weights in front of it with exact compensation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._applied import Action, Applied, ParameterAction
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.core._modules import clone
from invariance.symmetry._structures import NormSite, Role, Symmetries, SymmetryGroup, SymmetryKind
from invariance.transforms._acting import check_factors, none_found, prepare
from invariance.transforms._base import Transform, uniform

#: Largest factor of a random BatchNorm scaling, less a half; small, because a compensated
#: running variance a^2 (v + eps) - eps must stay positive.
MAX_FACTOR = 16.0


class FoldBatchNorm(Transform):
    """Fold every BatchNorm into the weight layer before or after it, where that is exact.

    With ``s = gamma / sqrt(v + eps)``: ``W' = diag(s) W`` and ``b' = beta + s (b - mu)`` for
    the layer before it; ``W' = W diag(s)`` and ``b' = b + W (beta - s mu)`` for the layer
    after it (refused where that layer pads with zeros). The BatchNorm becomes ``nn.Identity``;
    one of a subclass becomes what it does beside normalising (its activation, its dropout).
    A functional BatchNorm stays where it is called, with a mean of 0, a variance of
    ``1 - eps`` and, where it has them, a weight of 1 and a bias of 0: the identity.

    Args:
        strict: Refuse the model if any of its BatchNorms cannot be folded, instead of only
            if none can. ``detail["kept"]`` says why one was kept.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([2, 3, 2], batch_norm=True, dtype=torch.float64).eval()
        >>> x = torch.rand(5, 2).double()
        >>> folded = FoldBatchNorm()(model, x)
        >>> torch.allclose(folded(x), model(x)), len(list(folded.parameters()))  # no gamma, beta
        (True, 4)
    """

    group = Group.BATCHNORM_FOLD

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = bool(strict)

    def __repr__(self) -> str:
        return "FoldBatchNorm(strict=True)" if self.strict else "FoldBatchNorm()"

    @classmethod
    def random_member(cls, model: nn.Module, seed: int) -> FoldBatchNorm:
        """Return the fold; there is only one."""
        return cls()

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail`` lists what was folded where, and kept."""
        actor = prepare(model, example_input)
        sites = actor.analysis.symmetries.norms
        if not sites:
            raise TransformError(f"{self!r} does not apply: the module has no BatchNorm.")
        kept = {site.name: site.why_not for site in sites if site.why_not}
        folded: dict[str, str] = {}
        relations: dict[str, ParameterAction | None] = {}
        for site in sites:
            if site.layer is not None and (why := _beside(actor.model, site)):
                kept[site.name] = why
        if len(kept) == len(sites) or (self.strict and kept):
            raise TransformError(f"{self!r} cannot fold exactly: {_listed(kept)}.")
        for site in sites:
            if site.layer is not None and site.name not in kept:
                _fold(actor.model, site, relations)
                folded[site.name] = site.layer
        return actor.finish(
            model,
            repr(self),
            "folded " + ", ".join(f"{norm} into {layer}" for norm, layer in folded.items()),
            _action(actor.model, relations),
            {"folded": folded, "kept": kept},
        )


def _fold(model: nn.Module, site: NormSite, relations: dict[str, ParameterAction | None]) -> None:
    """Fold one BatchNorm into its layer, in float64, and put an identity in its place."""
    layer = model.get_submodule(str(site.layer))
    weight: Any = layer.weight
    old_bias: Any = layer.bias
    scale, shift = _affine_map(model, site)
    bias = None if old_bias is None else old_bias.detach().double()
    wide = weight.detach().double()
    if site.fold_into is not None:
        rows = scale.reshape([-1 if d == _out_dim(layer) else 1 for d in range(weight.dim())])
        new_bias = shift if bias is None else shift + scale * bias
        factor = rows
        made = site.tensors.get("bias")
        if made is not None:
            relation = ParameterAction(made, torch.ones_like(new_bias))
        elif bias is not None and bool((scale != 0).all()):
            relation = ParameterAction(f"{site.layer}.bias", 1 / scale)
        else:
            relation = None
    else:
        columns = torch.from_numpy(np.array(site.columns)).to(scale.device)
        factor = scale[columns].reshape([-1 if d == 1 else 1 for d in range(weight.dim())])
        moved = (wide * shift[columns].reshape(factor.shape)).flatten(1).sum(1)
        new_bias = moved if bias is None else bias + moved
        relation = relations.get(
            f"{site.layer}.bias",
            None if bias is None else ParameterAction(f"{site.layer}.bias", torch.ones_like(moved)),
        )
    name = f"{site.layer}.weight"
    before = relations.get(name, ParameterAction(name, torch.ones_like(wide)))
    # A layer that read ``s x + t`` and now reads ``x``: no factor of each entry relates the two.
    shifted = site.fold_into is None and bool((shift[columns] != 0).any())
    whole = before is not None and not shifted and bool((factor != 0).all())
    relations[name] = (
        ParameterAction(name, before.gradient / factor) if whole and before is not None else None
    )
    relations[f"{site.layer}.bias"] = relation
    with torch.no_grad():
        weight.copy_(wide * factor)
        if old_bias is None:
            layer.bias = nn.Parameter(new_bias.to(weight.dtype), requires_grad=weight.requires_grad)
        else:
            old_bias.copy_(new_bias)
    norm = _module(model, site)
    if norm is not None:
        _replace(model, norm)
    else:
        _neutralise(model, site, relations)


def _tensors(model: nn.Module, site: NormSite) -> dict[str, Tensor]:
    """Return a BatchNorm's tensors by role, in float64."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {role: named[name].detach().double() for role, name in site.tensors.items()}


def _affine_map(model: nn.Module, site: NormSite) -> tuple[Tensor, Tensor]:
    """Return ``s`` and ``t`` with ``norm(x) = s x + t`` a channel, in float64."""
    tensors = _tensors(model, site)
    scale = torch.rsqrt(tensors["running_var"] + site.eps)
    scale = scale * tensors.get("weight", 1.0)
    return scale, tensors.get("bias", 0.0) - scale * tensors["running_mean"]


def _module(model: nn.Module, site: NormSite) -> nn.modules.batchnorm._BatchNorm | None:
    """Return the module that normalises; ``None`` for a functional call."""
    if site.name == site.tensors["running_mean"]:
        return None
    module = model.get_submodule(site.name)
    return module if isinstance(module, nn.modules.batchnorm._BatchNorm) else None


def _neutralise(
    model: nn.Module, site: NormSite, relations: dict[str, ParameterAction | None]
) -> None:
    """Make a functional BatchNorm the identity; its parameters have no old counterpart."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {"running_mean": 0.0, "running_var": 1.0 - site.eps, "weight": 1.0, "bias": 0.0}
    with torch.no_grad():
        for role, name in site.tensors.items():
            named[name].fill_(values[role])
            if role in ("weight", "bias"):
                relations[name] = None


def _beside(model: nn.Module, site: NormSite) -> str:
    """Say why a subclass of BatchNorm cannot be replaced by its children, or nothing."""
    norm = _module(model, site)
    if norm is None or not _own_forward(norm):
        return ""
    scale, shift = _affine_map(model, site)
    flat = isinstance(norm, nn.BatchNorm1d)
    shape = [1, -1] + [1] * (0 if flat else 3 if isinstance(norm, nn.BatchNorm3d) else 2)
    draw = torch.Generator().manual_seed(0)
    sizes = [4, site.channels, *(3 for _ in shape[2:])]
    x = torch.randn(sizes, generator=draw, dtype=torch.float64).to(scale.device)
    twin = clone(norm).double()
    with torch.no_grad():
        expected = twin(x.clone())
        got = _children(twin)(x * scale.reshape(shape) + shift.reshape(shape))
    if isinstance(expected, Tensor) and torch.allclose(got, expected, rtol=1e-9, atol=1e-12):
        return ""
    return (
        f"its {type(norm).__name__} does something else than normalise and run its children in turn"
    )


def _own_forward(norm: nn.Module) -> bool:
    return not type(norm).__module__.startswith("torch.nn")


def _children(norm: nn.Module) -> nn.Module:
    """Return what a subclass does after it normalised: its children, in turn."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    if not parts or not _own_forward(norm):
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _listed(kept: dict[str, str]) -> str:
    return "; ".join(f"`{name}`: {why}" for name, why in kept.items())


def _out_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def _replace(model: nn.Module, old: nn.Module) -> None:
    names = [n for n, m in model.named_modules(remove_duplicate=False) if m is old]
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _children(old).train(old.training))


def _action(model: nn.Module, relations: dict[str, ParameterAction | None]) -> Action | None:
    """Relate every parameter to an old one; ``None`` where one has no counterpart."""
    actions = {}
    for name, parameter in model.named_parameters():
        one = torch.ones((), dtype=torch.float64, device=parameter.device)
        relation = relations.get(name, ParameterAction(name, one.expand(parameter.shape)))
        if relation is None:
            return None
        actions[name] = relation
    return Action(actions)


class BatchNormScaling(Transform):
    """Scale the weights before every BatchNorm; its statistics compensate exactly.

    ``(W, b) -> a (W, b)``, ``mu -> a mu``, ``v -> a^2 (v + eps) - eps``. Raw curvature with
    respect to ``W`` is divided by ``a^2`` while the function stays. Refused where ``v`` would
    become negative.

    Args:
        factor: One positive factor for all, or a list with one for every BatchNorm in the
            order of execution.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([2, 3, 2], batch_norm=True, dtype=torch.float64).eval()
        >>> x = torch.rand(5, 2).double()
        >>> scaled = BatchNormScaling(2.0)(model, x)
        >>> torch.allclose(scaled(x), model(x))
        True
        >>> torch.equal(scaled.linear1.weight, 2 * model.linear1.weight)
        True
    """

    group = Group.BATCHNORM_SCALING

    def __init__(self, factor: float | Sequence[float]) -> None:
        self.shared = isinstance(factor, (int, float))
        given = [factor] if isinstance(factor, (int, float)) else factor
        self.factors = [float(entry) for entry in check_factors("BatchNormScaling", given)]

    def __repr__(self) -> str:
        return f"BatchNormScaling({self.factors[0] if self.shared else self.factors!r})"

    @classmethod
    def random_member(cls, model: nn.Module, seed: int) -> BatchNormScaling:
        """Draw one factor for all, from 1.5 to 16.5."""
        return cls(math.exp(uniform(seed, cls.group) * math.log(MAX_FACTOR)) + 0.5)

    @classmethod
    def default_members(cls, model: nn.Module, seed: int) -> tuple[BatchNormScaling, ...]:
        """Return the scaling by 4."""
        return (cls(4.0),)

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["factors"]`` maps BatchNorms to factors."""
        actor = prepare(model, example_input)
        found = actor.analysis.symmetries
        if not found.norms:
            raise TransformError(f"{self!r} does not apply: the module has no BatchNorm.")
        if not self.shared and len(self.factors) != len(found.norms):
            raise TransformError(
                f"BatchNormScaling got {len(self.factors)} factors; the module has "
                f"{len(found.norms)} BatchNorms: {', '.join(n.name for n in found.norms)}."
            )
        factors = self.factors * len(found.norms) if self.shared else self.factors
        wanted: dict[int, tuple[SymmetryGroup, float, str]] = {}
        used = {}
        for norm, factor in zip(found.norms, factors, strict=True):
            groups = _groups_before(found, norm)
            if not groups:
                if not self.shared and factor != 1.0:
                    raise TransformError(
                        f"BatchNormScaling cannot scale what goes into `{norm.name}`: no "
                        "parameter before it can be scaled alone. Give it the factor 1."
                    )
                continue
            for group in groups:
                known = wanted.get(id(group))
                if known is not None and known[1] != factor:
                    raise TransformError(
                        f"BatchNormScaling: `{known[2]}` and `{norm.name}` normalise one stream "
                        f"and need one factor, got {known[1]:g} and {factor:g}."
                    )
                wanted[id(group)] = (group, factor, norm.name)
            used[norm.name] = factor
        if not wanted:
            raise none_found(repr(self), "weight before a BatchNorm that may be scaled", actor)
        for group, factor, _ in wanted.values():
            actor.scale(group, np.full(group.size, factor))
        named = ", ".join(f"{name} x {factor:g}" for name, factor in used.items())
        return actor.finish(
            model, repr(self), f"scaled before {named}", actor.action(), {"factors": used}
        )

    def inverse(self) -> BatchNormScaling:
        """Return the scaling by the reciprocal factors."""
        inverted = [1.0 / factor for factor in self.factors]
        return BatchNormScaling(inverted[0] if self.shared else inverted)


def _groups_before(found: Symmetries, norm: NormSite) -> list[SymmetryGroup]:
    """Return the groups of units that a BatchNorm normalises."""
    mean = norm.tensors["running_mean"]
    return [
        group
        for group in found.of(SymmetryKind.BATCHNORM_WEIGHT_SCALE)
        if any(leg.parameter == mean and leg.role is Role.STATISTIC for leg in group.legs)
    ]
