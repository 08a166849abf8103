"""Independent references: dense null spaces, and outputs before and after one group element."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev

from invariance.core._modules import clone
from invariance.symmetry import SCALING_KINDS, SymmetryKind
from invariance.symmetry.analysis._symmetries import Analysis, analyse
from invariance.transforms._acting import Actor


def outputs(model, inputs):
    result = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return result if isinstance(result, torch.Tensor) else torch.cat([t.flatten() for t in result])


def randomize(model, seed):
    """Give every parameter and running statistic a generic value."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
                * (0.6 if parameter.dim() > 1 else 0.8)
            )
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=stream))
                module.running_var.copy_(0.5 + torch.rand(shape, generator=stream))
    return model.double().eval()


def snapshot(model):
    return (
        {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
    )


def same_snapshot(one, two):
    tensors = all(
        torch.equal(one[0][name][0], two[0][name][0]) and one[0][name][1] == two[0][name][1]
        for name in one[0]
    )
    return tensors and one[1] == two[1] and [a for a, _ in one[2]] == [a for a, _ in two[2]]


def apply_group(model, inputs, number, seed, *, powers_of_two=False):
    """Return a copy of ``model`` moved by a random element of group ``number``."""
    return move(analyse(model, inputs), number, seed, powers_of_two=powers_of_two)


def move(analysis, number, seed, *, powers_of_two=False):
    """Move a copy of an analysed model by a random element of group ``number``."""
    analysis = Analysis(clone(analysis.model), analysis.symmetries, analysis.inputs)
    group = analysis.symmetries.groups[number]
    actor = Actor(analysis)
    rng = np.random.default_rng(seed)
    if group.kind in SCALING_KINDS:
        exponents = rng.uniform(0.1, 2.0, group.size) * rng.choice([-1, 1], group.size)
        if group.kind is SymmetryKind.BATCHNORM_WEIGHT_SCALE:
            exponents = np.clip(exponents, -1, 1)
        if powers_of_two:
            exponents = np.rint(exponents)
        actor.scale(group, np.exp2(exponents))
    elif group.kind is SymmetryKind.SIGN_FLIP:
        actor.flip(group, rng.choice([-1.0, 1.0], group.size))
    elif group.kind is SymmetryKind.PERMUTATION:
        order = rng.permutation(group.size)
        identity = (order == np.arange(group.size)).all()
        actor.permute(group, np.roll(order, 1) if identity else order)
    elif group.kind is SymmetryKind.TRANSLATION:
        numbers = np.append(rng.standard_normal(group.size), 0.0)
        tensors = dict(actor.model.named_parameters())
        with torch.no_grad():
            for leg in group.legs:
                tensors[leg.parameter].add_(torch.from_numpy(numbers[leg.units]))
    elif group.kind is SymmetryKind.LINEAR_MIXING:
        mix_by_hand(actor.model, group, rng)
    return actor.model


def mix_by_hand(model, group, rng):
    """Apply an invertible matrix to a mixing group, written from its docstring."""
    size = group.size
    matrix = np.eye(size) + 0.3 * rng.standard_normal((size, size))
    tensors = dict(model.named_parameters())
    for leg in group.legs:
        tensor = tensors[leg.parameter]
        use = matrix if leg.power > 0 else np.linalg.inv(matrix).T
        values = tensor.detach().numpy().copy()
        shape = np.broadcast_shapes(leg.units.shape, leg.addresses.shape)
        units = np.broadcast_to(leg.units, shape)
        addresses = np.broadcast_to(leg.addresses, shape)
        dim = leg.dim
        units = np.moveaxis(units, dim, 0).reshape(shape[dim], -1)[:, 0]
        addresses = np.moveaxis(addresses, dim, 0).reshape(shape[dim], -1)[:, 0]
        moved = np.moveaxis(values, dim, 0)
        result = moved.copy()
        for address in np.unique(addresses[units >= 0]):
            rows = np.flatnonzero((addresses == address) & (units >= 0))
            rows = rows[np.argsort(units[rows])]
            result[rows] = np.tensordot(use, moved[rows], axes=1)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.moveaxis(result, 0, dim).copy()))


def assert_groups_hold(model, example, probes, *, seed=0, rtol=1e-10):
    """Every group's random elements keep the outputs on inputs other than the example."""
    before = snapshot(model)
    analysis = analyse(model, example)
    found = analysis.symmetries
    with torch.no_grad():
        expected = [outputs(model, probe) for probe in probes]
    for number, group in enumerate(found.groups):
        if group.kind is SymmetryKind.LOGIT_SHIFT:
            continue  # keeps the softmax, not the logits: has tests of its own
        moved = move(analysis, number, seed + number)
        for probe, wanted in zip(probes, expected, strict=True):
            with torch.no_grad():
                got = outputs(moved, probe)
            scale = float(wanted.abs().max()) + 1e-30
            error = float((got - wanted).abs().max()) / scale
            assert error <= rtol, (group.kind, group.site, error)
        changed = any(
            not torch.equal(a, b)
            for a, b in zip(moved.state_dict().values(), model.state_dict().values(), strict=True)
        )
        assert (
            changed
            or group.size == 1
            or group.kind in (SymmetryKind.PERMUTATION, SymmetryKind.SIGN_FLIP)
        )
    assert same_snapshot(before, snapshot(model))
    return found


class _FormulaNorm(nn.Module):
    """BatchNorm in eval mode from its formula: differentiable in its statistics."""

    def __init__(self, norm):
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x):
        shape = [1, -1] + [1] * (x.dim() - 2)
        y = (x - self.running_mean.reshape(shape)) / self.running_var.reshape(shape).sqrt()
        if self.weight is not None:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y


def _with_formula_norms(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = nn.modules.batchnorm._BatchNorm
            if isinstance(child, kind) and child.running_mean is not None:
                setattr(module, name, _FormulaNorm(child))
    return model


def diagonal_null_directions(
    model, make_inputs, *, statistics=True, skip=(), least=3, most=400, plain=False
):
    """Count the directions ``d`` with ``J diag(theta) d = 0`` for all inputs and parameters.

    Dense and independent of the engine: the Jacobian at several random parameters, stacked.
    With ``plain`` those with ``J d = 0`` are counted: translations.
    """
    model = _with_formula_norms(copy.deepcopy(model))
    stacked = []
    for draw in range(most):
        randomize(model, 1000 + draw)
        values = {n: p.detach() for n, p in model.named_parameters() if n not in skip}
        if statistics:
            for name, module in model.named_modules():
                if getattr(module, "running_var", None) is not None:
                    prefix = f"{name}." if name else ""
                    values[prefix + "running_mean"] = module.running_mean.clone()
                    values[prefix + "running_var"] = module.running_var.clone()
        inputs = make_inputs(draw)

        def function(tensors, arguments=inputs):
            return functional_call(model, tensors, arguments).reshape(-1)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            jacobian = jacrev(function)(values)
        rows = next(iter(jacobian.values())).shape[0]
        flat = [(jacobian[n] * (1 if plain else values[n])).reshape(rows, -1) for n in values]
        stacked.append(torch.cat(flat, dim=1).detach())
        if draw + 1 >= least and rows * (draw + 1) >= 2 * stacked[0].shape[1]:
            break
    matrix = torch.cat(stacked)
    scale = matrix.norm(dim=1, keepdim=True).clamp_min(1e-12)
    matrix = matrix / scale
    singular = torch.linalg.eigvalsh(matrix.T @ matrix).flip(0).clamp_min(0).sqrt()
    rank = int((singular > 1e-6 * singular[0]).sum())
    return matrix.shape[1] - rank


def enlarge_eps(model, eps=0.3):
    """Make norms' eps matter, so that what holds only up to eps is far from null."""
    for module in model.modules():
        if hasattr(module, "eps") and not hasattr(module, "running_var"):
            module.eps = eps
    return model


def affine_norm_channels(model):
    """Each channel of an affine BatchNorm has one direction more: gamma against variance."""
    return sum(
        module.num_features
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.affine
        and module.track_running_stats
    )
