"""Every kind of model by every measure: the value of a dense reference, or a refusal by name.

There is no third outcome: a wrong value fails, and so does an internal exception. The reference
is written here, in float64: central differences of first derivatives of the user's own network,
which share no code and no second derivative with the package.
"""

import functools

import pytest
import torch
from model_kinds import KINDS
from torch import nn
from torch.nn import functional as F

import invariance as inv
from invariance.core._errors import InvarianceError

#: Half the distance of a central difference.
STEP = 1e-5


class Reference:
    """The loss of a kind as a function of its flat trainable parameters, with derivatives."""

    def __init__(self, name):
        self.kind = KINDS[name]
        model = self.kind.build()
        parameters = [p.detach().double().flatten() for p in model.parameters()]
        self.norm = float(torch.cat(parameters).norm())
        self.model = model.to(torch.float64)
        self.named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.theta = torch.cat([p.detach().flatten() for _, p in self.named])
        self.base, self.gradient = self.at(self.theta)
        self.sizes = [p.numel() for _, p in self.named]

    def outputs(self, theta):
        with torch.no_grad():
            sizes = [p.numel() for _, p in self.named]
            for (_, p), part in zip(self.named, theta.split(sizes), strict=True):
                p.copy_(part.view_as(p))
        x = self.kind.x
        return self.kind.read(self.model, x.clone() if isinstance(x, torch.Tensor) else x)

    def at(self, theta):
        loss = F.cross_entropy(self.outputs(theta), self.kind.y.flatten())
        found = torch.autograd.grad(loss, [p for _, p in self.named], allow_unused=True)
        parts = [
            torch.zeros_like(p) if g is None else g
            for g, (_, p) in zip(found, self.named, strict=True)
        ]
        return float(loss.detach()), torch.cat([g.flatten() for g in parts])

    @functools.cached_property
    def hessian(self):
        columns = []
        for i in range(len(self.theta)):
            step = torch.zeros_like(self.theta)
            step[i] = STEP
            ahead, behind = self.at(self.theta + step)[1], self.at(self.theta - step)[1]
            columns.append((ahead - behind) / (2 * STEP))
        whole = torch.stack(columns)
        return (whole + whole.T) / 2

    @property
    def rises(self):
        """The quadratic form along theta of the Fisher matrix."""
        with torch.no_grad():
            ahead = self.outputs(self.theta * (1 + STEP))
            behind = self.outputs(self.theta * (1 - STEP))
            p = self.outputs(self.theta).softmax(1)
        u = (ahead - behind) / (2 * STEP)
        return float(((p * u * u).sum(1) - (p * u).sum(1).square()).mean())

    def scaled(self, d):
        return float(torch.linalg.eigvalsh(d[:, None] * self.hessian * d)[-1])

    def ascent(self, scale):
        direction = scale * self.gradient
        step = 0.05 * scale * direction / direction.norm()
        return self.at(self.theta + step)[0] - self.base

    def last_block(self):
        """Weight and Hessian block of the last weight layer; ``None`` if it is no parameter."""
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        layers = [(n, m) for n, m in self.model.named_modules() if isinstance(m, kinds)]
        name = f"{layers[-1][0]}.weight".lstrip(".") if layers else ""
        names = [n for n, _ in self.named]
        if name not in names:
            return None
        start = sum(self.sizes[: names.index(name)])
        weight = dict(self.named)[name]
        size = weight.numel()
        value = self.theta[start : start + size].view(weight.shape[0], -1)
        block = self.hessian[start : start + size, start : start + size]
        return value, block.view(*value.shape, *value.shape)


def relative_flatness(ref):
    found = ref.last_block()
    if found is None:
        return None
    weight, block = found
    return float(((weight @ weight.T) * torch.einsum("siti->st", block)).sum())


def tensor_norms(ref):
    parts = ref.theta.split(ref.sizes)
    return torch.cat([torch.full_like(part, float(part.norm())) for part in parts])


MEASURES = {
    "hessian_trace": lambda ref: float(ref.hessian.trace()),
    "hessian_eigenvalues": lambda ref: float(torch.linalg.eigvalsh(ref.hessian)[-1]),
    "hessian_norm": lambda ref: float(ref.hessian.norm()),
    "hessian_quadratic_form": lambda ref: float(ref.theta @ ref.hessian @ ref.theta),
    "adaptive_trace": lambda ref: float(ref.theta.square() @ ref.hessian.diagonal()),
    "adaptive_eigenvalue": lambda ref: ref.scaled(ref.theta.abs()),
    "normalized_eigenvalue": lambda ref: ref.scaled(tensor_norms(ref)),
    "fisher_rao_norm": lambda ref: ref.rises,
    "sam_sharpness": lambda ref: ref.ascent(torch.ones_like(ref.theta)),
    "adaptive_sharpness": lambda ref: ref.ascent(ref.theta.abs()),
    "relative_flatness": relative_flatness,
    "worst_case_sharpness": lambda ref: ref.ascent(torch.ones_like(ref.theta)),
    "parameter_norm": lambda ref: ref.norm,
}

#: Measures that are not defined on every network.
NARROW = {"relative_flatness"}

reference = functools.lru_cache(Reference)


def outcome(function, *arguments):
    """An estimate, or the refusal."""
    try:
        return function(*arguments)
    except InvarianceError as error:
        return error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", KINDS)
def test_a_value_or_a_refusal(name, measure):
    kind = KINDS[name]
    function = getattr(inv.measures, measure)
    data = () if measure == "parameter_norm" else (kind.x, kind.y)
    found = outcome(function, kind.build(), *data)
    if isinstance(found, InvarianceError):
        assert kind.refused or kind.partial or measure in NARROW, f"refused: {found}"
        assert len(str(found)) > 30
        return
    if measure == "parameter_norm" and kind.refused:
        return  # asks for numbers alone
    assert not kind.refused, f"an answer: {found}"
    expected = MEASURES[measure](reference(name))
    assert expected is not None, f"an answer: {found}"
    if measure == "worst_case_sharpness":  # a search that sets out from there
        assert float(found) >= expected * (1 - 1e-6)
        return
    noise = 5 * (found.stderr or 0.0)
    assert abs(float(found) - expected) <= 3e-6 * abs(expected) + 1e-8 + noise, found.method
    assert found.exact or found.residual is not None or found.stderr


def test_there_are_enough():
    assert len(KINDS) >= 60 and len(MEASURES) >= 12
