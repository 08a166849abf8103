"""Relative flatness of a linear layer in units of its features' standard deviations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from invariance.core._errors import MeasureError
from invariance.core._estimate import Estimate
from invariance.core._forward import first_input, reading, run
from invariance.core._groups import Group
from invariance.core._modules import clone, computes_as_its_class, require_deterministic
from invariance.curvature._batches import Batches, collect_batches
from invariance.curvature.exact._directional import move_like
from invariance.curvature.exact._flatness import layer_relative_flatness
from invariance.curvature.exact._result import DEFAULT_MEMORY_BUDGET
from invariance.curvature.losses._resolve import LossLike
from invariance.measures._registry import measure
from invariance.measures.shared._layer_choice import chosen_layer

#: A feature counts as constant if its deviation is below this many units of round-off.
_ROUND_OFF = 64.0


@measure(
    # Declared for the last layer. Dividing by the standard deviation undoes what a neuron
    # scaling does to single features; a doubled or an added feature still counts in |phi|^2,
    # and a mixing turns features that are not whitened.
    invariant_under=[
        Group.LAYER_SCALING,
        Group.NEURON_SCALING,
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_FOLD,
        Group.BATCHNORM_SCALING,
        Group.COORDINATES,  # weight and features are read as the layer uses them
    ],
    streams=True,
)
def standardized_relative_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layer: int | str = -1,
    loss: LossLike = "cross_entropy",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Estimate:
    """Relative flatness of a linear layer whose features are divided by their deviation.

    ``relative_flatness`` of Petzka et al. (2021) for the layer ``z = (W D) (D^-1 phi) + b``,
    D being the diagonal of the features' standard deviations over ALL rows given. The weights
    take up what the features lose, so the function, and with it the loss, is the same: a
    version that divides the features alone measures another network. Features are not centred.

    The rule for dead features: one that is constant over the rows (deviation zero up to
    round-off) is dropped, together with its column of W. On these rows it is a bias, and
    biases do not enter relative flatness; ``detail["dead_features"]`` counts them.

    Args:
        model: The network, in eval mode if it has BatchNorm or dropout.
        x: ``(n, ...)`` inputs.
        y: ``(n,)`` labels.
        layer: Index among the weight layers in the order of execution, or a module's name; it
            must be linear.
        loss: The mean loss.
        memory_budget: Bytes for temporaries.

    Returns:
        The relative flatness.

    Raises:
        MeasureError: There is no such layer, or it is no linear layer.

    Example:
        Features of standard deviation 1 need no rescaling, so it is relative flatness:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [-1.0]]])
        >>> x, y = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 1])
        >>> plain = float(inv.measures.relative_flatness(model, x, y))
        >>> abs(float(standardized_relative_flatness(model, x, y)) - plain) < 1e-12
        True
    """
    require_deterministic(model)
    batches = collect_batches(x, y)
    name = chosen_layer(model, batches, layer)
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise MeasureError(
            f"Features are standardized in front of linear layers. Layer {name!r} is a "
            f"{type(module).__name__}, whose padding would not scale along. Choose another layer."
        )
    if type(module).forward is not nn.Linear.forward or not computes_as_its_class(module):
        raise MeasureError(
            f"Features are divided in front of a plain nn.Linear. Layer {name!r} has a forward or "
            "hooks of its own, which may use them otherwise. Choose another layer."
        )
    moments = _moments(model, name, batches)
    changed, place = standardized_model(model, name, moments)
    found = layer_relative_flatness(
        changed, batches, layers=[place], loss=loss, memory_budget=memory_budget
    )
    return Estimate(
        found[0],
        method=f"features divided by their standard deviation; {found.method}",
        detail={"layer": name, "dead_features": int(moments.dead.sum())},
    )


@dataclass(frozen=True)
class Moments:
    """What the rows say about a layer's features.

    Attributes:
        mean: ``(d,)`` float64.
        deviation: ``(d,)`` float64 standard deviation (of the rows, not of a population).
        dead: ``(d,)`` whether the feature is constant.
        flat: Whether the features came as ``(n, d)``.
    """

    mean: Tensor
    deviation: Tensor
    dead: Tensor
    flat: bool


class _Divide(nn.Module):
    """Divide features by constants; 0 for a feature that is dropped."""

    def __init__(self, reciprocals: Tensor) -> None:
        super().__init__()
        self.register_buffer("reciprocals", reciprocals)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.get_buffer("reciprocals")


def _divider(reciprocals: Tensor, *, flat: bool) -> nn.Module:
    """Return a module that multiplies features by constants.

    For a perceptron's ``(n, d)`` features it is an eval-mode BatchNorm, whose curvature the
    fastest sweep knows.
    """
    if not flat:
        return _Divide(reciprocals)
    norm = nn.BatchNorm1d(len(reciprocals), eps=0.0).to(reciprocals).eval().requires_grad_(False)
    with torch.no_grad():
        norm.weight.copy_(reciprocals)
    return norm


def standardized_model(model: nn.Module, name: str, moments: Moments) -> tuple[nn.Module, str]:
    """Return the same function with the features of one linear layer standardized."""
    copied = clone(model)
    old = copied.get_submodule(name)
    assert isinstance(old, nn.Linear)
    weight = old.weight.detach()
    exact = weight.double()
    deviation = torch.where(moments.dead, 0.0, moments.deviation).to(exact)
    reciprocals = torch.where(moments.dead, 0.0, 1.0 / moments.deviation).to(weight)
    new = skip_init(  # type: ignore[no-untyped-call]  # no draw from the global generator
        nn.Linear, old.in_features, old.out_features, device=weight.device, dtype=weight.dtype
    )
    constant = exact @ torch.where(moments.dead, moments.mean, 0.0).to(exact)
    with torch.no_grad():
        new.weight.copy_(exact * deviation)
        new.bias.copy_(constant + (0.0 if old.bias is None else old.bias.double()))
    both = nn.Sequential(_divider(reciprocals, flat=moments.flat), new)
    if not name:
        return both.train(copied.training), "1"
    parent, _, leaf = name.rpartition(".")
    setattr(copied.get_submodule(parent), leaf, both)
    return copied, f"{name}.1"


def _moments(model: nn.Module, name: str, batches: Batches) -> Moments:
    """Return mean and deviation of a layer's features over all rows, in two passes."""
    copied = clone(model)
    seen: list[Tensor] = []
    copied.get_submodule(name).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(first_input(args, kwargs).detach()), with_kwargs=True
    )
    like = next(iter(model.parameters()))

    def features(bx: Tensor) -> list[Tensor]:
        seen.clear()
        with torch.no_grad(), reading(model, bx):
            run(copied, move_like(bx, like))
        return [entry.reshape(-1, entry.shape[-1]).cpu().double() for entry in seen]

    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for bx, _ in batches:
        for part in features(bx):
            count, total = count + len(part), total + part.sum(0)
            squares = squares + part.square().sum(0)
    if not count:
        raise MeasureError(f"Layer {name!r} takes no part in the forward pass: no features.")
    flat = all(entry.ndim == 2 for entry in seen)
    mean = total / count
    spread = torch.zeros_like(mean)
    for bx, _ in batches:
        for part in features(bx):
            spread = spread + (part - mean).square().sum(0)
    deviation = (spread / count).sqrt()
    dead = deviation <= _ROUND_OFF * torch.finfo(like.dtype).eps * (squares / count).sqrt()
    return Moments(mean, deviation, dead, flat)
