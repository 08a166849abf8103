"""Training steps under every kind of map: which train a network alike however it is written.

A map ``theta -> D theta`` turns the gradient g into ``D^-1 g``, so a step ``theta - eta P g`` is
equivariant if and only if ``P(D theta) = D P(theta) D``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from invariance.atlas._cells import AtlasError, Cell, Entry
from invariance.atlas._counterexamples import MEMBERS, Counterexample, network
from invariance.core._errors import InvarianceError
from invariance.core._files import write_atomically
from invariance.core._groups import Group
from invariance.core._modules import weight_layers
from invariance.testing.gate._assert_equivariant import Comparison

STORE = Path(__file__).with_name("algorithms.json")

Step = Callable[[nn.Module, Tensor, Tensor], None]

RATE, RADIUS, STEPS = 0.05, 0.05, 2

_ORDER = frozenset({Group.PERMUTATION, Group.SIGN_FLIP})
_RESCALED = frozenset({Group.LAYER_SCALING, Group.NEURON_SCALING, Group.BATCHNORM_SCALING})


@dataclass(frozen=True)
class Algorithm:
    """A training step with what is declared about it.

    Attributes:
        name: What it is called.
        step: Trains a model in place by a few steps.
        source: Where it is from.
        summary: The update in a line.
        equivariant_under: Kinds of map that it commutes with.
        reason: Why, by the criterion above.
    """

    name: str
    step: Step
    source: str
    summary: str
    equivariant_under: frozenset[Group]
    reason: str


def _slopes(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    values: list[Tensor] = [value for value in model.parameters() if value.requires_grad]
    return values, list(torch.autograd.grad(cross_entropy(model(x), y), values))


def _move(values: Iterable[Tensor], moves: Iterable[Tensor], factor: float) -> None:
    with torch.no_grad():
        for value, move in zip(values, moves, strict=True):
            value.add_(move, alpha=factor)


def _optimiser(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Step:
    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        made = kind(model.parameters(), lr=RATE, **options)
        for _ in range(STEPS):
            made.zero_grad()
            torch.autograd.backward(cross_entropy(model(x), y))
            made.step()

    return step


def _sharpness_aware(scale: Callable[[Tensor], Tensor], *, relative_descent: bool = False) -> Step:
    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        for _ in range(STEPS):
            values, slopes = _slopes(model, x, y)
            scales = [scale(value.detach()) for value in values]
            scaled = [s * g for s, g in zip(scales, slopes, strict=True)]
            size = torch.stack([part.square().sum() for part in scaled]).sum().sqrt()
            away = [RADIUS * s * part / size for s, part in zip(scales, scaled, strict=True)]
            _move(values, away, 1.0)
            _, slopes = _slopes(model, x, y)
            _move(values, away, -1.0)
            if relative_descent:
                slopes = [s**2 * g for s, g in zip(scales, slopes, strict=True)]
            _move(values, slopes, -RATE)

    return step


def _published_scale(value: Tensor) -> Tensor:
    """ASAM's reference code: biases as they are, and 0.01 added to the rest."""
    return value.abs() + 0.01 if value.ndim > 1 else torch.ones_like(value)


def _relative(model: nn.Module, x: Tensor, y: Tensor) -> None:
    for _ in range(STEPS):
        values, slopes = _slopes(model, x, y)
        _move(values, [v.detach() ** 2 * g for v, g in zip(values, slopes, strict=True)], -RATE)


def _natural(units: Callable[[Tensor], Tensor]) -> Step:
    """``theta - eta U (U F U)^+ U g`` with F the Fisher matrix and U the given units."""

    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        for _ in range(STEPS):
            values, slopes = _slopes(model, x, y)
            unit = torch.cat([units(value.detach()).flatten() for value in values])
            outputs = model(x)
            rows = [
                torch.cat([
                    part.flatten()
                    for part in torch.autograd.grad(entry, values, retain_graph=True)
                ])
                for entry in outputs.flatten()
            ]  # fmt: skip
            p = outputs.detach().softmax(1)
            jacobian = (torch.stack(rows) * unit).reshape(*p.shape, -1)
            spread = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
            fisher = torch.einsum("nki,nkl,nlj->ij", jacobian, spread, jacobian) / len(x)
            gradient = unit * torch.cat([g.flatten() for g in slopes])
            way = unit * (torch.linalg.pinv(fisher, rtol=1e-9, hermitian=True) @ gradient)
            sizes = [value.numel() for value in values]
            moves = [w.reshape(v.shape) for w, v in zip(way.split(sizes), values, strict=True)]
            _move(values, moves, -RATE)

    return step


def _path_sgd(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Divide each gradient by the sum over paths through it of the other entries' squares."""
    for _ in range(STEPS):
        values, slopes = _slopes(model, x, y)
        squared = [value.detach().square().requires_grad_() for value in values]
        table = {id(v): s for v, s in zip(values, squared, strict=True)}
        signal = torch.ones(x.shape[1], dtype=x.dtype)
        for _, layer in weight_layers(model):
            signal = table[id(layer.weight)] @ signal
            if isinstance(layer.bias, Tensor):
                signal = signal + table[id(layer.bias)]
        kappa = torch.autograd.grad(signal.sum(), squared)
        _move(values, [g / k for g, k in zip(slopes, kappa, strict=True)], -RATE)


_FIXED_UNITS = (
    "P does not depend on theta as P(D theta) = D P(theta) D asks; it commutes with signs and "
    "order, which are orthogonal."
)

ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm("sgd", _optimiser(torch.optim.SGD), "Robbins & Monro (1951)",
              "theta - eta g", _ORDER | {Group.LOGIT_SHIFT},
              _FIXED_UNITS + " A logit shift is a translation that leaves g alone."),
    Algorithm("momentum", _optimiser(torch.optim.SGD, momentum=0.9), "Polyak (1964)",
              "theta - eta (g + mu m)", _ORDER | {Group.LOGIT_SHIFT}, _FIXED_UNITS),
    Algorithm("weight_decay", _optimiser(torch.optim.SGD, weight_decay=0.1),
              "Krogh & Hertz (1992)", "theta - eta (g + lambda theta)",
              _ORDER | {Group.LOGIT_SHIFT}, _FIXED_UNITS + " A shift decays to another shift."),
    Algorithm("adam", _optimiser(torch.optim.Adam), "Kingma & Ba (2015)",
              "theta - eta m / (sqrt(v) + eps)", _ORDER | {Group.LOGIT_SHIFT}, _FIXED_UNITS),
    Algorithm("sam", _sharpness_aware(torch.ones_like), "Foret et al. (2021)",
              "theta - eta g(theta + rho g / |g|)", _ORDER | {Group.LOGIT_SHIFT}, _FIXED_UNITS),
    Algorithm("asam_original", _sharpness_aware(_published_scale), "Kwon et al. (2021), their code",
              "as SAM, the ball in units of |theta| + 0.01, biases left out", _ORDER,
              _FIXED_UNITS),
    Algorithm("asam_corrected", _sharpness_aware(torch.abs), "Kwon et al. (2021), in every entry",
              "as SAM, the ball in units of |theta|; the descent is along g", _ORDER,
              "The ascent is equivariant, the descent is SGD's."),
    Algorithm("asam_relative", _sharpness_aware(torch.abs, relative_descent=True),
              "ASAM with both halves in one metric", "as corrected, the descent along theta^2 g",
              _ORDER | _RESCALED | {Group.DORMANT_UNITS},
              "P = diag(theta^2): P(D theta) = D P(theta) D."),
    Algorithm("relative_gradient", _relative, "Amari (1998), metric diag(theta^-2)",
              "theta - eta theta^2 g",
              _ORDER | _RESCALED | {Group.DORMANT_UNITS},
              "P = diag(theta^2): P(D theta) = D P(theta) D."),
    Algorithm("natural_gradient", _natural(torch.ones_like), "Amari (1998), pseudo-inverse",
              "theta - eta F^+ g", _ORDER | {Group.LOGIT_SHIFT},
              "F is singular along the scalings' orbits, and F^+ there picks the step of least "
              "Euclidean length, which D does not keep; to first order the function moves alike."),
    Algorithm("relative_natural_gradient", _natural(torch.abs), "Amari (1998), pseudo-inverse in "
              "units of |theta|", "theta - eta T (T F T)^+ T g, T = diag|theta|",
              _ORDER | _RESCALED | {Group.DORMANT_UNITS},
              "T F T does not move under D, so T (T F T)^+ T becomes D T (T F T)^+ T D."),
    Algorithm("path_sgd", _path_sgd, "Neyshabur, Salakhutdinov & Srebro (2015)",
              "theta - eta g / kappa(theta)",
              _ORDER | {Group.LAYER_SCALING, Group.NEURON_SCALING},
              "kappa_i theta_i^2 is a sum over paths, so kappa moves as D^-2."),
)  # fmt: skip

#: Networks of the counterexamples on which steps are compared, and how a kind of map is written.
NETWORKS = ("relu 1-2-2", "relu 2-2-2-3", "tanh 1-2-2", "linear 2-2-3", "batch norm 1-2-2")


def compare(algorithm: Algorithm, group: Group) -> dict[str, Any] | None:
    """Go both ways round on every small network that admits a kind of map.

    Returns:
        The first map that tells the two ways apart, with ``broken`` true; or the last one that
        does not; ``None`` where the step or the map applies to none of the networks.
    """
    found = None
    for place in NETWORKS:
        model, data = network(place)
        try:
            run = Comparison(
                algorithm.step, algorithm.name, model, data["x_train"], data["y_train"], 1e-6
            )
        except (AttributeError, KeyError, RuntimeError):  # a step for perceptrons alone
            continue
        for title, arguments in MEMBERS[group][:3]:
            example = Counterexample(place, title, arguments, 0.0, None)
            try:
                gap = run.gap(example.made())
            except (InvarianceError, AttributeError, KeyError, RuntimeError):
                continue
            found = {
                "network": place, "transform": title, "arguments": dict(arguments),
                "compared": gap.compared, "broken": gap.broken,
                "apart": gap.size if math.isfinite(gap.size) else None,
            }  # fmt: skip
            if gap.broken:
                return found
    return found


@cache
def _stored() -> Mapping[str, Mapping[str, dict[str, Any]]]:
    found: Mapping[str, Mapping[str, dict[str, Any]]] = json.loads(STORE.read_text("utf-8"))
    return found


def _cell(algorithm: Algorithm, group: Group) -> Cell:
    kept = _stored()[algorithm.name].get(group.value)
    declared = group in algorithm.equivariant_under
    if kept is None:
        return Cell(group.value, "undeclared", None, "It applies to none of the small networks.")
    if kept["broken"] == declared:
        raise AtlasError(f"{algorithm.name} under {group.value}: declaration against {kept}.")
    written = ", ".join(f"{name}={value!r}" for name, value in kept["arguments"].items())
    where = f"{kept['transform']}({written}) on the network {kept['network']!r}"
    if declared:
        text = (
            f"{algorithm.reason} Compared on {', '.join(NETWORKS)}, as far as they admit the map: "
            f"{STEPS} steps from the image end at the image of {STEPS} steps, {kept['compared']} "
            "to 1e-6 of the way in float64."
        )
        return Cell(group.value, "invariant", "numerical", text)
    size = "not finite" if kept["apart"] is None else f"{kept['apart']:.3g} apart"
    text = f"{where}: the two ways round end {size} in {kept['compared']}."
    return Cell(group.value, "varies", "counterexample", text)


@cache
def algorithm_rows() -> tuple[Entry, ...]:
    """Return a row for every algorithm; ``invariant`` reads equivariant."""
    return tuple(
        Entry(
            entry.name, entry.source, "cheap", entry.summary, "",
            tuple(_cell(entry, group) for group in Group),
        )
        for entry in ALGORITHMS
    )  # fmt: skip


def main() -> None:
    """Compare all and keep the result."""
    kept = {
        entry.name: {g.value: cell for g in Group if (cell := compare(entry, g)) is not None}
        for entry in ALGORITHMS
    }
    write_atomically(STORE, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
