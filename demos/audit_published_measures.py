"""Mistakes that published measures of flatness ship with, put under the gate.

Each exhibit restates one kind of mistake in a few lines, shows what the gate says about it,
and beside it the corrected form that passes. Run it: ``python demos/audit_published_measures.py``
(``--verbose`` prints whole messages).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import invariance as inv
from invariance.core._modules import clone
from invariance.curvature import hessian_diagonal
from invariance.testing import assert_equal_in_law, assert_invariant
from invariance.transforms._base import Applied, Transform

SCALINGS = ["layer_scaling", "neuron_scaling"]


@dataclass(frozen=True)
class Exhibit:
    """One kind of mistake.

    Attributes:
        title: The mistake, in a line.
        wrong: Puts the mistaken form under the gate; must raise ``AssertionError``.
        right: Puts the corrected form under the same gate; must pass.
    """

    title: str
    wrong: Callable[[], object]
    right: Callable[[], object]


def network(*, batch_norm: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    """A small trained network with its data: ``(model, x, y)``."""
    task = inv.load_task("digits", n_train=120, seed=0)
    model = inv.models.mlp((64, 8, 6, 10), batch_norm=batch_norm, dtype=torch.float64)
    trained = inv.fit(model, task, max_epochs=60).model
    return trained, task.x_train[:40].double(), task.y_train[:40]


# -- measures, wrong and right -----------------------------------------------------------


def flatness(power: int) -> Callable[[nn.Module, Tensor, Tensor], float]:
    """``|W|^power Tr H_W`` of the middle layer: only the square cancels the curvature."""

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> float:
        trace = float(hessian_diagonal(model, x, y)["linear2.weight"].sum())
        return trace * float(model.get_parameter("linear2.weight").detach().norm()) ** power

    measure.__name__ = f"flatness_power_{power}"
    return measure


def elementwise_adaptive(
    *, biases: bool = True, eta: float = 0.0
) -> Callable[[nn.Module, Tensor, Tensor], float]:
    """Sum of ``(|theta_i| + eta)^2 H_ii``; biases left with factor one if not ``biases``."""

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> float:
        total = 0.0
        for name, diagonal in hessian_diagonal(model, x, y).values.items():
            theta = model.get_parameter(name).detach()
            scaled = biases or theta.dim() > 1
            weight = (theta.abs() + eta).square() if scaled else torch.ones_like(theta)
            total += float((weight * diagonal).sum())
        return total

    measure.__name__ = "elementwise_adaptive"
    return measure


def standardised_flatness(*, compensated: bool) -> Callable[[nn.Module, Tensor, Tensor], float]:
    """Flatness of the last layer on standardised features, with or without adjusting W.

    Dividing feature j by its standard deviation needs column j of W multiplied by it;
    otherwise the network that is measured is not the one that was trained.
    """

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            features = x
            for layer in list(model)[:-1]:
                features = layer(features)
            weight = model[-1].weight
            p = model[-1](features).softmax(1)
            spread = features.std(0)
            alive = spread > 0  # a dead feature has nothing to standardise
            features, weight, spread = features[:, alive], weight[:, alive], spread[alive]
            used = weight * spread if compensated else weight
            scaled = features / (spread if compensated else spread.square())
            curvature = p @ used.square().sum(1) - (p @ used).square().sum(1)
            return float((scaled.square().sum(1) * curvature).mean())

    measure.__name__ = "standardised_flatness"
    return measure


def noisy_loss(deviation: Callable[[Tensor], Tensor]) -> Callable[..., float]:
    """Loss under Gaussian noise of the given standard deviation, from a seed of its own."""

    def measure(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
        source = torch.Generator().manual_seed(seed)
        copied = clone(model)
        with torch.no_grad():
            for theta in copied.parameters():
                noise = torch.randn(theta.shape, generator=source, dtype=torch.float64)
                theta.add_(deviation(theta) * noise.to(theta))
            return float(F.cross_entropy(copied(x), y))

    measure.__name__ = "noisy_loss"
    return measure


def perturbs_a_copy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Adds noise to one object and evaluates another: the same number for every network."""
    copied, other = clone(model), REFERENCE[0]
    with torch.no_grad():
        for theta in copied.parameters():
            theta.mul_(1.01)
        return float(F.cross_entropy(other.to(x.dtype)(x), y))


def norms(*, product: bool) -> Callable[[nn.Module, Tensor, Tensor], float]:
    """Product or sum of the layers' norms: only the product survives layer scaling."""

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> float:
        found = torch.stack(
            [m.weight.detach().norm() for m in model.modules() if isinstance(m, nn.Linear)]
        )
        return float(found.prod() if product else found.sum())

    measure.__name__ = "product_of_norms" if product else "sum_of_norms"
    return measure


def last_layer_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Reads the last layer alone."""
    return float(model.get_parameter("linear3.weight").detach().norm())


def leaves_gradients(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Calls backward on the caller's model."""
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return float(sum((p * p.grad).sum() for p in model.parameters()).detach())


def gradient_in_place(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The same number, by ``torch.autograd.grad``: nothing is left behind."""
    theta = list(model.parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), theta)
    return float(sum((p * g).sum() for p, g in zip(theta, grads, strict=True)).detach())


def random_probe(*, own_generator: bool) -> Callable[[nn.Module, Tensor, Tensor], float]:
    """A one-probe estimate from the global generator, or from one of its own."""

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> float:
        source = torch.Generator().manual_seed(0) if own_generator else None
        with torch.no_grad():
            signs = torch.randn(x.shape[0], generator=source).sign().to(x)
            return float((signs @ model(x).log_softmax(1)).square().sum())

    measure.__name__ = "random_probe"
    return measure


# -- transforms, wrong and right ---------------------------------------------------------


class ZippedRescaling(Transform):
    """Multiplies (W1, b1, W2, b2, ...) by alternating factors, as if biases were layers."""

    group = inv.Group.LAYER_SCALING

    def __repr__(self) -> str:
        return "ZippedRescaling()"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return the broken copy."""
        new = clone(model)
        with torch.no_grad():
            for number, theta in enumerate(new.parameters()):
                theta.mul_(2.0 if number % 2 == 0 else 0.5)
        return Applied(new, None, None)


class FoldLeavingNorm(Transform):
    """Folds BatchNorm into the weights and resets it to mean 0, variance 1: eps stays."""

    group = inv.Group.BATCHNORM_FOLD

    def __repr__(self) -> str:
        return "FoldLeavingNorm()"

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """Return the copy that is off by a factor ``(1 + eps)^(-1/2)`` a layer."""
        new = clone(model)
        linear = None
        with torch.no_grad():
            for module in new.modules():
                if isinstance(module, nn.BatchNorm1d) and linear is not None:
                    scale = module.weight / (module.running_var + module.eps).sqrt()
                    linear.weight.mul_(scale[:, None])
                    linear.bias.copy_(scale * (linear.bias - module.running_mean) + module.bias)
                    module.reset_running_stats()
                    module.reset_parameters()
                elif isinstance(module, nn.Linear):
                    linear = module
        return Applied(new, None, None)


REFERENCE: list[nn.Module] = []


def exhibits() -> list[Exhibit]:
    """Build the gallery; trains two small networks."""
    plain, normed = network(), network(batch_norm=True)
    REFERENCE[:] = [clone(plain[0])]
    pair = [inv.transforms.LayerScaling([8.0, 1.0, 0.125])]
    middle = [inv.transforms.LayerScaling([1.0, 64.0, 1 / 64])]
    first_two = [inv.transforms.LayerScaling([4.0, 0.25, 1.0])]

    def gate(measure: Callable[..., float], **options: object) -> Callable[[], object]:
        return lambda: assert_invariant(measure, *plain, **options)

    def in_law(measure: Callable[..., float]) -> Callable[[], object]:
        return lambda: assert_equal_in_law(measure, *plain, transforms=middle, draws=32)

    layer, both = {"groups": ["layer_scaling"]}, {"groups": SCALINGS}
    loss = lambda model, x, y: float(F.cross_entropy(model(x), y).detach())  # noqa: E731
    return [
        Exhibit(
            "flatness weighted with |w| instead of |w|^2",
            gate(flatness(1), **layer),
            gate(flatness(2), **layer),
        ),
        Exhibit(
            "adaptive sharpness that leaves the biases unscaled",
            gate(elementwise_adaptive(biases=False), **both),
            gate(elementwise_adaptive(), **both),
        ),
        Exhibit(
            "a constant eta added to |theta|",
            gate(elementwise_adaptive(eta=0.01), **both),
            gate(elementwise_adaptive(), **both),
        ),
        Exhibit(
            "features standardised by their variance, weights left as they were",
            gate(standardised_flatness(compensated=False), **both),
            gate(standardised_flatness(compensated=True), **both),
        ),
        Exhibit(
            "noise whose standard deviation is a variance (theta^2 for |theta|)",
            gate(noisy_loss(lambda t: 0.3 * t.square()), **both),
            gate(noisy_loss(lambda t: 0.3 * t.abs()), **both),
        ),
        Exhibit(
            "isotropic noise in a sampled estimate",
            in_law(noisy_loss(lambda t: 0.05 * torch.ones_like(t))),
            in_law(noisy_loss(lambda t: 0.3 * t.abs())),
        ),
        Exhibit(
            "noise added to another object than the one that is evaluated",
            gate(perturbs_a_copy, **layer),
            gate(noisy_loss(lambda t: 0.01 * t.abs()), **layer),
        ),
        Exhibit(
            "norms of layers added instead of multiplied",
            gate(norms(product=False), **layer),
            gate(norms(product=True), **layer),
        ),
        Exhibit(
            "a check that scales the first two layers only, of a last-layer measure",
            # The check itself passes: it cannot notice. The default maps reach every layer.
            lambda: (gate(last_layer_norm, transforms=first_two)(), gate(last_layer_norm)()),
            gate(norms(product=True), transforms=[*first_two, *pair]),
        ),
        Exhibit(
            "a rescaling that counts biases as layers",
            gate(loss, transforms=[ZippedRescaling()]),
            gate(loss, transforms=pair),
        ),
        Exhibit(
            "a folded BatchNorm left in place with variance 1",
            lambda: assert_invariant(loss, *normed, transforms=[FoldLeavingNorm()]),
            lambda: assert_invariant(loss, *normed, transforms=[inv.transforms.FoldBatchNorm()]),
        ),
        Exhibit(
            "gradients left on the caller's model",
            gate(leaves_gradients, **both),
            gate(gradient_in_place, **both),
        ),
        Exhibit(
            "random probes from the global generator",
            gate(random_probe(own_generator=False), **layer),
            gate(random_probe(own_generator=True), **layer),
        ),
    ]


def main() -> int:
    """Print the gallery; 0 if every mistake is caught and every corrected form passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="print whole messages")
    verbose = parser.parse_args().verbose
    failures = 0
    for number, exhibit in enumerate(exhibits(), 1):
        print(f"\n{number}. {exhibit.title}")
        try:
            exhibit.wrong()
        except AssertionError as error:
            lines = str(error).splitlines()
            wanted = ("  layer", "  trend", "  cause", "  likely")
            kept = lines if verbose else [lines[0], *(x for x in lines if x.startswith(wanted))]
            print("   caught:    " + "\n              ".join(line.strip() for line in kept))
        else:
            failures += 1
            print("   NOT CAUGHT")
        try:
            exhibit.right()
        except AssertionError as error:
            failures += 1
            print(f"   FALSE ALARM on the corrected form: {error}")
        else:
            print("   corrected: passes")
    print(f"\n{failures} failures of the gate")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
