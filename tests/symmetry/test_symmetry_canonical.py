"""Canonical forms and orbits: would catch a gauge that is not fixed, a false yes, a false no."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "transforms"))
from transforms_zoo import ZOO, build

from invariance.core._errors import TransformError
from invariance.core._rng import generator
from invariance.symmetry import (
    SCALING_KINDS,
    Element,
    GroupElement,
    SymmetryKind,
    canonical_form,
    canonicalize,
    gauge_fixed,
    minimise_over_scalings,
    same_orbit,
    scaling_design,
    symmetries,
)
from invariance.symmetry.elements._group_elements import named_tensors, write_tensors
from invariance.transforms import (
    BatchNormScaling,
    Compose,
    DormantUnits,
    NeuronScaling,
    Permutation,
    SignFlip,
)


def random_member(
    model: nn.Module, x: Tensor, seed: int, spread: float = 1.5
) -> tuple[nn.Module, Element]:
    """Apply a random element of every group, leg by leg from the structures' definition."""
    found = symmetries(model, x)
    draw = generator(seed, "member")
    steps = []
    for place, group in enumerate(found.groups):
        noise = torch.randn(group.size, generator=draw, dtype=torch.float64)
        if group.kind in SCALING_KINDS:
            statistic = group.kind is SymmetryKind.BATCHNORM_WEIGHT_SCALE
            values = torch.exp(noise.abs() * 0.5 if statistic else spread * noise)
        elif group.kind is SymmetryKind.SIGN_FLIP:
            values = torch.where(noise < 0, -1.0, 1.0).to(torch.float64)
        elif group.kind is SymmetryKind.PERMUTATION:
            values = torch.randperm(group.size, generator=draw)
        else:
            continue
        steps.append((place, GroupElement(group.kind, group.site, values)))
    steps.sort(key=lambda step: step[1].kind is SymmetryKind.PERMUTATION)
    element = Element(tuple(steps))
    moved = copy.deepcopy(model)
    write_tensors(moved, element.act(named_tensors(model), found))
    return moved, element


def distance(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of any parameter or buffer."""
    theirs = b.state_dict()
    return max(
        float((v.double() - theirs[k].double()).abs().max()) for k, v in a.state_dict().items()
    )


CASES = [(name, 0) for name in ZOO] + [(name, 1) for name in ("mlp", "mlp_tanh", "cnn", "resnet")]


@pytest.mark.parametrize(("name", "seed"), CASES)
class TestEveryNetwork:
    def test_members_of_one_orbit_have_one_form(self, name: str, seed: int) -> None:
        model, x, _ = build(name, seed)
        member, _ = random_member(model, x, seed)
        torch.testing.assert_close(member(x), model(x), rtol=0, atol=1e-10)
        before = copy.deepcopy(member.state_dict())
        first, second = canonical_form(model, x), canonical_form(member, x)
        assert distance(first.model, second.model) < 1e-10
        assert first.ambiguous == second.ambiguous == ()
        assert first.balance.residual < 1e-11
        torch.testing.assert_close(first.model(x), model(x), rtol=0, atol=1e-12)
        assert all(torch.equal(before[key], value) for key, value in member.state_dict().items())
        again = canonicalize(first.model, x)
        assert distance(again, first.model) < 1e-12

    def test_the_element_is_found(self, name: str, seed: int) -> None:
        model, x, _ = build(name, seed)
        member, element = random_member(model, x, seed + 7)
        result = same_orbit(model, member, x)
        assert result
        assert result.related
        assert result.residual < 1e-10
        assert distance(result.apply(model), member) < 1e-9
        assert result.element is not None
        found = dict(result.element.steps)
        if name.startswith("attention"):
            return  # scales of a whole stream may hide in the order of the steps
        for place, part in element.steps:
            torch.testing.assert_close(
                found[place].values.double(), part.values.double(), rtol=1e-9, atol=0
            )

    def test_small_changes_are_no_symmetry(self, name: str, seed: int) -> None:
        model, x, _ = build(name, seed)
        draw = generator(seed, "place")
        keys = [k for k, v in model.state_dict().items() if v.is_floating_point()]
        member, _ = random_member(model, x, seed)
        for number in torch.randperm(len(keys), generator=draw)[:3].tolist():
            key, other = keys[number], copy.deepcopy(member)
            tensor = named_tensors(other)[key]
            at = int(torch.randint(0, tensor.numel(), (), generator=draw))
            tensor.view(-1)[at] *= 1 + 1e-5
            gap = float((other(x) - model(x)).detach().abs().max())
            result = same_orbit(model, other, x)
            assert not result or gap < 1e-13, key
            assert result.related or key in result.reason or "canonical form" in result.reason


class TestBalance:
    def test_incoming_and_outgoing_norms_agree(self) -> None:
        model, x, _ = build("mlp")
        canon = canonicalize(random_member(model, x, 0)[0], x)
        for before, after in ((0, 2), (2, 4)):
            incoming = canon[before].weight.square().sum(1) + canon[before].bias.square()
            outgoing = canon[after].weight.square().sum(0)
            torch.testing.assert_close(incoming, outgoing, rtol=1e-11, atol=0)
            assert bool((incoming.diff() >= 0).all())  # sorted by norm

    def test_two_layers_without_any_solver(self) -> None:
        """One hidden layer: the balanced scale is (out / in)^(1/4), unit by unit."""
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        canon = canonicalize(model)
        incoming = torch.cat([model[0].weight, model[0].bias[:, None]], 1)
        size_in, size_out = incoming.square().sum(1), model[2].weight.square().sum(0)
        scale = (size_out / size_in) ** 0.25
        order = torch.argsort((size_in * size_out).sqrt())
        expected_in = (incoming * scale[:, None])[order]
        expected_out = (model[2].weight / scale)[:, order]
        torch.testing.assert_close(canon[0].weight, expected_in[:, :4], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(canon[0].bias, expected_in[:, 4], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(canon[2].weight, expected_out, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("name", ["mlp", "linear_path"])
    def test_norm_is_the_least_of_the_orbit(self, name: str) -> None:
        model, x, _ = build(name)
        found = symmetries(model, x)
        groups = [(p, g) for p, g in enumerate(found.groups) if g.kind is SymmetryKind.SCALING]
        start = named_tensors(model)

        def norm(u: np.ndarray) -> float:
            pieces = torch.tensor(u).split([g.size for _, g in groups])
            steps = tuple(
                (p, GroupElement(g.kind, g.site, piece.exp()))
                for (p, g), piece in zip(groups, pieces, strict=True)
            )
            moved = Element(steps).act(start, found)
            return float(sum(t.square().sum() for t in moved.values()))

        reference = minimize(norm, np.zeros(sum(g.size for _, g in groups)), method="BFGS")
        form = canonical_form(model, x)
        total = sum(float(p.detach().square().sum()) for p in form.model.parameters())
        assert total == pytest.approx(reference.fun, rel=1e-8)
        assert total == pytest.approx(form.balance.value, rel=1e-12)
        for seed in range(3):
            member, _ = random_member(model, x, seed, spread=0.2)
            assert sum(float(p.detach().square().sum()) for p in member.parameters()) > total

    def test_variances_are_normalised(self) -> None:
        model, x, _ = build("resnet")
        canon = canonicalize(model, x)
        for module in canon.modules():
            if isinstance(module, nn.BatchNorm2d):
                ones = torch.ones_like(module.running_var)
                torch.testing.assert_close(module.running_var + module.eps, ones)

    def test_dead_units_have_a_rule(self) -> None:
        model, x, _ = build("mlp")
        with torch.no_grad():
            model[0].weight[1] = 0.0
            model[0].bias[1] = 0.0
            model[2].weight[:, 4] = 0.0
            model[4].weight[:, 2] = 0.0
        member, _ = random_member(model, x, 3)
        first, second = canonical_form(model, x), canonical_form(member, x)
        assert not first.balance.attained
        assert distance(first.model, second.model) < 1e-10
        assert same_orbit(model, member, x)

    def test_exact_copies_are_named_as_ambiguous(self) -> None:
        model, x, _ = build("mlp")
        with torch.no_grad():
            model[0].weight[1] = model[0].weight[0]
            model[0].bias[1] = model[0].bias[0]
            model[2].weight[:, 1] = model[2].weight[:, 0]
        member, _ = random_member(model, x, 3)
        form = canonical_form(model, x)
        assert form.ambiguous == ("0.weight",)
        assert distance(form.model, canonicalize(member, x)) < 1e-10
        assert same_orbit(model, member, x)

    def test_design_of_a_network_serves_minimum_sharpness(self) -> None:
        """The least trace over an orbit takes one value on the orbit: Gauss-Newton diagonals."""
        model, x, _ = build("cnn")

        def least(net: nn.Module) -> tuple[float, float]:
            named = dict(net.named_parameters())
            diagonal = {name: torch.zeros_like(p) for name, p in named.items()}
            logits = net(x)
            root = torch.diag_embed(logits.softmax(-1).detach().sqrt())
            for row in range(len(x)):
                for column in range(logits.shape[1]):
                    picked = (logits[row] * root[row, column]).sum()
                    grads = torch.autograd.grad(picked, list(named.values()), retain_graph=True)
                    for name, grad in zip(named, grads, strict=True):
                        diagonal[name] += grad.square()
            found = symmetries(net, x)
            skip = {
                p
                for p, g in enumerate(found.groups)
                if g.kind is SymmetryKind.BATCHNORM_WEIGHT_SCALE
            }
            design, _ = scaling_design(found, skip=skip)
            result = minimise_over_scalings(diagonal, design)
            return result.value, float(sum(d.sum() for d in diagonal.values()))

        member = NeuronScaling(spread=8.0, seed=2)(model, x)
        (value, trace), (other, moved) = least(model), least(member)
        assert other == pytest.approx(value, rel=1e-10)
        assert moved > 1.5 * trace
        assert value < trace


class TestSameOrbit:
    @pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
    def test_members_made_by_the_transforms(self, name: str) -> None:
        model, x, _ = build(name)
        chain = [NeuronScaling(spread=4.0, seed=1), Permutation(seed=2)]
        if name != "mlp":
            chain += [BatchNormScaling(2.0), SignFlip(seed=3)]
        member = Compose(chain)(model, x)
        result = same_orbit(model, member, x)
        assert result.related, result.reason
        assert distance(result.apply(model), member) < 1e-9
        assert distance(canonicalize(model, x), canonicalize(member, x)) < 1e-10

    def test_factors_and_orders_by_name(self) -> None:
        model, x, _ = build("mlp")
        scaling, moving = NeuronScaling(spread=4.0, seed=1), Permutation(seed=2)
        member = moving(scaling(model, x), x)
        element = same_orbit(model, member, x).element
        assert element is not None
        factors = element.part("0.weight", "scaling")
        order = element.part("0.weight", "permutation")
        assert factors is not None
        assert order is not None
        rebuilt = (model[0].weight * factors.values[:, None])[order.values]
        torch.testing.assert_close(member[0].weight, rebuilt, rtol=1e-11, atol=1e-12)

    def test_the_identity(self) -> None:
        model, x, _ = build("cnn")
        result = same_orbit(model, copy.deepcopy(model), x)
        assert result
        assert str(result.element) == "the identity"

    def test_unrelated_networks(self) -> None:
        for name in ("mlp", "resnet"):
            (a, x, _), (b, _, _) = build(name, 0), build(name, 1)
            result = same_orbit(a, b, x)
            assert not result
            assert result.element is None
            assert result.residual > 1e-2
            assert "they differ in" in result.reason
            with pytest.raises(TransformError, match="no element"):
                result.apply(a)

    def test_a_small_unit_cannot_hide_behind_a_large_one(self) -> None:
        model, x, _ = build("mlp")
        factors = torch.full((7,), 1.0, dtype=torch.float64)
        factors[0], factors[1] = 1e-5, 1e5
        with torch.no_grad():
            model[0].weight.mul_(factors[:, None])
            model[0].bias.mul_(factors)
            model[2].weight.div_(factors)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight[0, 0] *= 1.001
        assert same_orbit(model, copy.deepcopy(model), x)
        assert not same_orbit(model, other, x)

    def test_other_architectures(self) -> None:
        a, x, _ = build("mlp")
        wide = DormantUnits(1)(a, x)
        assert "shape" in same_orbit(a, wide, x).reason
        b = copy.deepcopy(a)
        b[0].bias = None
        assert "Only one of the networks" in same_orbit(a, b, x).reason

    def test_a_moved_dormant_unit_is_no_known_element(self) -> None:
        model, x, _ = build("mlp")
        wide = DormantUnits(1, seed=1)(model, x)
        moved = DormantUnits(1, seed=2, move=True)(wide, x)
        torch.testing.assert_close(moved(x), wide(x))
        assert not same_orbit(wide, moved, x)

    def test_single_precision(self) -> None:
        model, x, _ = build("mlp")
        model, x = model.float(), x.float()
        member = Permutation(seed=1)(NeuronScaling(spread=4.0, seed=1)(model, x), x)
        assert same_orbit(model, member, x).related
        assert distance(canonicalize(model, x), canonicalize(member, x)) < 1e-5
        with torch.no_grad():
            member[2].weight[1, 1] *= 1.1
        assert not same_orbit(model, member, x)

    def test_a_network_that_is_not_finite_is_refused(self) -> None:
        model, x, _ = build("mlp")
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        with pytest.raises(TransformError):
            canonicalize(model, x)


class TestGaugeFixed:
    def hessian_trace(self, model: nn.Module, x: Tensor, y: Tensor) -> float:
        """The naive trace, from its definition."""
        parameters = list(model.parameters())
        loss = nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        total = 0.0
        for parameter, grad in zip(parameters, grads, strict=True):
            for i, entry in enumerate(grad.reshape(-1)):
                if entry.requires_grad:
                    row = torch.autograd.grad(entry, parameter, retain_graph=True)[0]
                    total += float(row.reshape(-1)[i])
        return total

    def norm(self, model: nn.Module) -> float:
        return float(sum(p.detach().square().sum() for p in model.parameters()))

    @pytest.mark.parametrize("name", ["mlp", "linear_path"])
    def test_trace_and_norm_become_invariant(self, name: str) -> None:
        model, x, y = build(name)
        trace, norm = gauge_fixed(self.hessian_trace), gauge_fixed(self.norm)
        values, norms, raw = [], [], []
        for seed in range(3):
            member, _ = random_member(model, x, seed, spread=1.0)
            values.append(trace(member, x, y))
            norms.append(norm(member))
            raw.append(self.hessian_trace(member, x, y))
        assert values == pytest.approx([values[0]] * 3, rel=1e-9)
        assert norms == pytest.approx([norms[0]] * 3, rel=1e-9)
        assert max(raw) > 1.1 * min(raw)

    def test_arguments_and_names_pass_through(self) -> None:
        def measure(model: nn.Module, x: Tensor, y: Tensor, *, scale: float = 1.0) -> float:
            """Say something."""
            return scale * float(model[0].weight.detach().square().sum())

        model, x, y = build("mlp")
        fixed = gauge_fixed(measure)
        assert fixed.__name__ == "gauge_fixed(measure)"
        assert fixed.__doc__ == "Say something."
        assert fixed(model, x=x, y=y, scale=2.0) == pytest.approx(2 * fixed(model, x, y))
        explicit = gauge_fixed(self.norm, example_input=x)
        assert explicit(model) == pytest.approx(gauge_fixed(self.norm)(model))
