"""One initialisation, seven functions to fit: does sharpness follow the function?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invariance import measures as M
from invariance.core._modules import clone, weight_layers
from invariance.core._perceptron import read_perceptron
from invariance.curvature import exact_curvature
from invariance.measures._minimum_sharpness import mlp_design
from invariance.papers._declared import declared
from invariance.papers.mason_williams.single_objective._figures import figures
from invariance.papers.mason_williams.single_objective._findings import analyse
from invariance.papers.mason_williams.single_objective._objectives import (
    OBJECTIVES,
    TARGETS,
    Regression,
    network_at,
    objective_config,
    regression_of,
    train,
)
from invariance.papers.recipes._measure_perceptrons import Values, device_of, rescaling_seed
from invariance.studies._config import Config, Setting
from invariance.studies._study import Context, Options, Study, Trained
from invariance.symmetry.balance._scalings import minimise_over_scalings
from invariance.transforms import UNITS_RESCALED, random_rescaling


def grid(options: Options) -> Sequence[Config]:
    """Return every function with raw and standardised targets, at every size and seed."""
    return [
        objective_config(
            options.seed + i,
            objective=name,
            targets=kind,
            n_train=n_train,
            n_test=int(options.scale["n_test"]),  # type: ignore[arg-type]
            epochs=int(options.scale["epochs"]),  # type: ignore[arg-type]
        )
        for n_train in options.n_train
        for name in OBJECTIVES
        for kind in TARGETS
        for i in range(options.networks)
    ]


def measure(
    configs: Sequence[Config], trained: Sequence[Trained], context: Context
) -> Sequence[Mapping[str, Any]]:
    """Measure each network on its training points, as trained, rescaled, and along training."""
    found = []
    for place, (config, weights) in enumerate(zip(configs, trained, strict=True)):
        context.tell(place / len(configs))
        found.append(measure_network(config, weights, torch.device(device_of(context))))
    return found


def measure_network(config: Config, trained: Trained, device: torch.device) -> dict[str, Any]:
    """Measure one network."""
    data = regression_of(config)
    x, y = data.x.to(device), data.y.to(device)
    logged = [int(epoch) for epoch in trained.facts["logged"]]
    model = network_at(config, trained, logged[-1]).to(device)
    rescaled = random_rescaling(model, x[:8], rescaling_seed(config))(model, x[:8])
    early = {}
    for epoch in logged:
        swept = exact_curvature(network_at(config, trained, epoch).to(device), x, y, loss="mse")
        early[epoch] = swept.trace / float(y.var(correction=0))
    test_variance = float(data.y_test.var(correction=0))
    train_error = trained.facts["train_mse"][-1] / float(y.var(correction=0))
    test_error = trained.facts["test_mse"][-1] / test_variance
    return {
        "targets": {
            # Shares of variance left over: the same in raw and in standardised units.
            "test_error": test_error,
            "generalization_gap": test_error - train_error,
            "target_variance": float(y.var(correction=0)),
        },
        "measures": suite(model, x, y, data),
        "rescaled": suite(rescaled, x, y, data),
        "train_error": train_error,
        "trace_over_variance_along_training": [early[epoch] for epoch in logged],
        "outputs_changed": _change(model, rescaled, data.x_test.to(device)),
    }


def _change(model: nn.Module, rescaled: nn.Module, x: Tensor) -> float:
    """Return the largest change of an output in units of the outputs' deviation."""
    with torch.no_grad():
        before, after = model(x), rescaled(x)
        return float((before - after).abs().max() / before.std())


def suite(model: nn.Module, x: Tensor, y: Tensor, data: Regression) -> Values:
    """Measure one network under the mean squared error, mostly in a single exact sweep."""
    swept = exact_curvature(model, x, y, loss="mse", relative_flatness=True, diagonal=True)
    parameters = dict(model.named_parameters())
    steps = read_perceptron(model)
    assert steps is not None
    deviation = float(y.std(correction=0))
    in_units = _outputs_divided(model, deviation)
    found = exact_curvature(in_units, x, y / deviation, loss="mse")
    return {
        "hessian_trace": swept.trace,
        "hessian_trace_over_variance": swept.trace / deviation**2,
        "hessian_trace_standard_units": found.trace,
        "hessian_eigenvalues": float(M.hessian_eigenvalues(model, x, y, loss="mse")),
        "sam_sharpness": float(M.sam_sharpness(model, x, y, loss="mse")),
        "parameter_norm": float(M.parameter_norm(model)),
        "relative_flatness": swept.relative_flatness[weight_layers(model)[-1][0]],
        "standardized_relative_flatness": float(
            M.standardized_relative_flatness(model, x, y, loss="mse")
        ),
        "path_norm": float(M.path_norm(model)),
        "adaptive_trace": sum(
            float((parameters[name].detach().square() * entries).sum())
            for name, entries in swept.diagonal.items()
        ),
        "minimum_sharpness": minimise_over_scalings(
            dict(swept.diagonal), mlp_design(steps, "neuron")
        ).value,
        "fisher_rao_norm": float(M.fisher_rao_norm(model, x, y, loss="mse")),
    }


def _outputs_divided(model: nn.Module, divisor: float) -> nn.Module:
    copied = clone(model)
    with torch.no_grad():
        for parameter in weight_layers(copied)[-1][1].parameters():
            parameter.div_(divisor)
    return copied


def measurement(options: Options) -> Mapping[str, Setting]:
    """Return what decides the numbers beyond the networks."""
    return {"version": 1}


def batch_size(config: Config) -> int:
    """All seeds of a function together, which a GPU stacks; a CPU trains them in turn."""
    return 10


def cost(config: Config) -> float:
    """Rows that training looks at."""
    s = config.settings
    return float(s["epochs"]) * float(s["n_train"])  # type: ignore[arg-type]


STUDY = Study(
    name="single-objective",
    title="One initialisation, seven functions: sharpness follows the function",
    paper=(
        'Mason-Williams et al., "A Function-Centric Perspective on Flat and Sharp Minima", '
        "arXiv:2510.12451"
    ),
    question=(
        "A 2-64-64-1 ReLU network, from one initialisation and with one optimiser, fits seven "
        "test functions of optimisation equally well. Are the minima equally sharp? The "
        "targets' variances differ by orders of magnitude and the squared error is in their "
        "units, so raw and standardised targets are set side by side, as is Tr H / Var(y). "
        "The published size is 10,000 training points and 100,000 epochs: "
        "--n-train 10000 --set epochs=100000. By default it is 1,000 points and 10,000 epochs, "
        "which one core does in under ten minutes."
    ),
    full=Options(
        task="objectives",
        networks=5,
        n_train=(1_000,),
        n_unseen=0,
        scale={"n_test": 10_000, "epochs": 10_000},
    ),
    quick=Options(
        task="objectives",
        networks=3,
        n_train=(500,),
        n_unseen=0,
        quick=True,
        scale={"n_test": 2_000, "epochs": 1_000},
    ),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=batch_size,
    cost=cost,
    rescaling=UNITS_RESCALED,
    declared=declared("single-objective"),
)
