"""Trains the study's networks with the compiled loops, and writes a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariance.core._errors import UsageError
from invariance.core._rng import generator
from invariance.papers.wen.flat_not_general import _kernels as kernels
from invariance.papers.wen.flat_not_general._batch_norm import advance as advance_batch
from invariance.papers.wen.flat_not_general._networks import build
from invariance.papers.wen.flat_not_general._problem import Problem
from invariance.papers.wen.flat_not_general._sharpness import sharpness, stacked, with_bias

ALGORITHMS = ("sam", "sgd", "gd", "trace", "label_noise")

#: Floor of a network without normalisation, as the kernels want it.
NO_FLOOR = -1.0


@dataclass(frozen=True)
class Phase:
    """A stretch of training with fixed rates.

    Attributes:
        epochs: Passes over the training set; steps for full-batch methods.
        lr: Learning rate.
        rho: Radius of the ascent of 1-SAM.
    """

    epochs: int
    lr: float
    rho: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        architecture: See :func:`invariance.papers.wen.flat_not_general._networks.build`.
        bias: Whether the hidden layer has a bias.
        width: Hidden units.
        algorithm: ``"sam"`` and ``"sgd"`` take one sample a step; ``"label_noise"`` too, with
            labels off by ``+-noise``; ``"gd"`` and ``"trace"`` take the whole training set,
            with ``weight_decay`` or with ``trace_weight`` times the Gauss-Newton trace.
        phases: Rates over time.
        weight_decay: Of ``"gd"``.
        trace_weight: Of ``"trace"``.
        noise: Of ``"label_noise"``.
        floor: Of the simplified LayerNorm.
        init_scale: First factor on the first layer.
        radius: Norm that the first layer is kept at; 0 to leave it alone.
        log_points: Number of logged times, evenly spaced on a logarithmic axis.
        dtype: ``"float32"``, as networks are trained, or ``"float64"``.
    """

    architecture: str
    bias: bool
    width: int
    algorithm: str
    phases: tuple[Phase, ...]
    weight_decay: float = 0.0
    trace_weight: float = 0.0
    noise: float = 0.0
    floor: float = 1e-3
    init_scale: float = 1.0
    radius: float = 0.0
    log_points: int = 100
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"algorithm must be one of {ALGORITHMS}. Got {self.algorithm!r}.")
        if self.architecture == "batch" and self.algorithm in ("trace", "label_noise"):
            raise UsageError(f"{self.algorithm!r} is not written for architecture 'batch'.")
        if self.radius and self.algorithm in ("gd", "trace"):
            raise UsageError("radius is written for methods that take one sample a step.")


def train_network(
    recipe: Recipe,
    problem: Problem,
    *,
    seed: int,
    tell: Callable[[float], object] = lambda share: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one network.

    Args:
        recipe: How.
        problem: On what.
        seed: Seed of initial weights and sample order.
        tell: Called with the share of the work that is done.

    Returns:
        The network, and its log: lists of the same length under ``epoch``,
        ``test_accuracy``, ``train_accuracy``, ``train_loss``, ``trace``, ``gauss_newton``,
        ``norm`` (of the first layer), ``live`` (units that some training point activates) and
        ``silent`` (share of test points with output exactly 0).
    """
    dtype = torch.float32 if recipe.dtype == "float32" else torch.float64
    model = build(
        recipe.architecture,
        dimension=problem.x_train.shape[1],
        width=recipe.width,
        bias=recipe.bias,
        floor=recipe.floor,
        x_train=problem.x_train,
        seed=seed,
        init_scale=recipe.init_scale,
        dtype=dtype,
    )
    hidden = model.get_submodule("hidden")
    assert isinstance(hidden, nn.Linear)
    x = with_bias(problem.x_train, hidden).to(dtype).numpy()
    y = problem.y_train.to(dtype).numpy()
    state = np.array([_word(seed)], dtype=np.uint64)
    log: dict[str, list[float]] = {}
    _note(log, 0, model, problem)
    done, total = 0, sum(phase.epochs for phase in recipe.phases)
    stops = log_times(total, recipe.log_points)
    for phase in recipe.phases:
        end = done + phase.epochs
        for stop in sorted({*(s for s in stops if done < s < end), end}):
            _advance(model, recipe, phase, stop - done, x, y, state)
            done = stop
            _note(log, done, model, problem)
            tell(done / total)
    return model, {"log": log, "diverged": not np.isfinite(log["train_loss"][-1])}


def log_times(total: int, points: int) -> list[int]:
    """Return ``points`` or fewer whole numbers from 1 to ``total``, evenly spaced in the log."""
    return sorted({round(t) for t in np.geomspace(1, total, points).tolist()})


def _word(seed: int) -> int:
    rng = generator(seed, "parity", "order")
    return int(torch.randint(0, 2**62, (1,), generator=rng))


def _advance(
    model: nn.Module,
    recipe: Recipe,
    phase: Phase,
    epochs: int,
    x: kernels.Array,
    y: kernels.Array,
    state: kernels.Words,
) -> None:
    """Train ``model`` in place for some epochs."""
    hidden, output = model.get_submodule("hidden"), model.get_submodule("output")
    assert isinstance(hidden, nn.Linear)
    weights = np.ascontiguousarray(stacked(hidden).to(hidden.weight.dtype).numpy().T)
    readout = torch.as_tensor(output.weight).detach()[0].numpy().copy()
    if recipe.architecture == "batch":
        scale = torch.as_tensor(model.scale).detach().numpy().copy()
        advance_batch(recipe, phase, epochs, x, y, weights, scale, readout, state)
        with torch.no_grad():
            torch.as_tensor(model.scale).copy_(torch.from_numpy(scale))
    else:
        _advance_sample(recipe, phase, epochs, x, y, weights, readout, state)
    with torch.no_grad():
        trained = torch.from_numpy(weights).T
        hidden.weight.copy_(trained[:, : hidden.in_features])
        if hidden.bias is not None:
            hidden.bias.copy_(trained[:, -1])
        torch.as_tensor(output.weight).copy_(torch.from_numpy(readout)[None])


def _advance_sample(
    recipe: Recipe,
    phase: Phase,
    epochs: int,
    x: kernels.Array,
    y: kernels.Array,
    weights: kernels.Array,
    readout: kernels.Array,
    state: kernels.Words,
) -> None:
    floor = recipe.floor if recipe.architecture == "layer" else NO_FLOOR
    # A unit that no training point activates has no gradient: it rests, or only decays.
    live = (x @ weights > 0).any(0) if recipe.radius == 0 else np.ones(readout.size, bool)
    own, own_readout = np.ascontiguousarray(weights[:, live]), readout[live].copy()
    if recipe.algorithm in ("gd", "trace"):
        decay = recipe.weight_decay if recipe.algorithm == "gd" else 0.0
        trace = recipe.trace_weight if recipe.algorithm == "trace" else 0.0
        kernels.full_batch_epochs(
            epochs, x, y, own, own_readout, phase.lr, decay, trace, floor
        )  # fmt: skip
        left = (1.0 - phase.lr * decay) ** epochs
        weights *= left
        readout *= left
    else:
        rho = phase.rho if recipe.algorithm == "sam" else 0.0
        noise = recipe.noise if recipe.algorithm == "label_noise" else 0.0
        kernels.stochastic_epochs(
            epochs, x, y, own, own_readout, phase.lr, rho, noise, floor, recipe.radius, state
        )
    weights[:, live], readout[live] = own, own_readout


def _note(log: dict[str, list[float]], epoch: int, model: nn.Module, problem: Problem) -> None:
    for name, value in {"epoch": epoch, **summary(model, problem)}.items():
        log.setdefault(name, []).append(value)


def summary(model: nn.Module, problem: Problem) -> Mapping[str, float]:
    """Evaluate a network: see :func:`train_network` for the names.

    An output of exactly 0 counts as wrong: its sign says nothing.
    """
    hidden = model.get_submodule("hidden")
    assert isinstance(hidden, nn.Linear)
    found = sharpness(model, problem.x_train, problem.y_train)
    weights = stacked(hidden)
    live = (with_bias(problem.x_train, hidden) @ weights.T > 0).any(0)
    with torch.no_grad():
        test: Tensor = model(problem.x_test.to(hidden.weight.dtype))[:, 0].double()
    return {
        "test_accuracy": float((test * problem.y_test > 0).double().mean()),
        "train_accuracy": float((found.outputs * problem.y_train > 0).double().mean()),
        "train_loss": float((found.outputs - problem.y_train).square().mean()),
        "trace": found.trace,
        "gauss_newton": found.gauss_newton,
        "norm": float(weights.norm()),
        "live": int(live.sum()),
        "silent": float((test == 0).double().mean()),
    }
