"""Seven test functions of optimization as regression problems, and the networks that fit them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invariance.core._errors import unknown_name
from invariance.core._rng import generator
from invariance.models import mlp
from invariance.papers.mason_williams.single_objective._full_batch import fit_full_batch
from invariance.papers.recipes._ensembles import settings_of_cell
from invariance.studies._config import Config
from invariance.studies._study import Context, Trained

RECIPE = "objective/1"

#: Points are drawn uniformly from the square of twice this side.
HALF_SIDE = 3.5

TARGETS = ("raw", "standardised")


def _sphere(a: Tensor, b: Tensor) -> Tensor:
    return a**2 + b**2


def _booth(a: Tensor, b: Tensor) -> Tensor:
    return (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2


def _three_hump_camel(a: Tensor, b: Tensor) -> Tensor:
    return 2 * a**2 - 1.05 * a**4 + a**6 / 6 + a * b + b**2


def _himmelblau(a: Tensor, b: Tensor) -> Tensor:
    return (a**2 + b - 11) ** 2 + (a + b**2 - 7) ** 2


def _rosenbrock(a: Tensor, b: Tensor) -> Tensor:
    return 100 * (b - a**2) ** 2 + (1 - a) ** 2


def _beale(a: Tensor, b: Tensor) -> Tensor:
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def _rastrigin(a: Tensor, b: Tensor) -> Tensor:
    wave = torch.cos(2 * math.pi * a) + torch.cos(2 * math.pi * b)
    return 20 + a**2 + b**2 - 10 * wave


#: Name to ``(n,), (n,) -> (n,)``, roughly from smooth to rough.
OBJECTIVES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "sphere": _sphere,
        "booth": _booth,
        "three-hump-camel": _three_hump_camel,
        "himmelblau": _himmelblau,
        "rosenbrock": _rosenbrock,
        "beale": _beale,
        "rastrigin": _rastrigin,
    }
)


class Regression(NamedTuple):
    """A regression problem in float64.

    Attributes:
        x: ``(n, 2)`` training points.
        y: ``(n, 1)`` targets in the units that the network is trained in.
        x_test: ``(m, 2)`` test points.
        y_test: ``(m, 1)`` test targets in the same units.
        mean: Mean of the raw training targets.
        deviation: Standard deviation of the raw training targets.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: float
    deviation: float


def objective_config(
    seed: int,
    *,
    objective: str,
    targets: str,
    n_train: int,
    n_test: int,
    epochs: int,
    sizes: tuple[int, ...] = (2, 64, 64, 1),
    lr: float = 1e-3,
) -> Config:
    """Describe one network and the function that it fits."""
    return Config(
        RECIPE,
        {
            "objective": objective,
            "targets": targets,
            "n_train": n_train,
            "n_test": n_test,
            "epochs": epochs,
            "sizes": tuple(sizes),
            "lr": lr,
        },
        seed,
    )


def regression_of(config: Config) -> Regression:
    """Return the data of a configuration."""
    s = config.settings
    name, kind = str(s["objective"]), str(s["targets"])
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    if kind not in TARGETS:
        raise unknown_name("kind of targets", kind, TARGETS)
    x, x_test = (
        HALF_SIDE * (2 * torch.rand(int(s[count]), 2, generator=draws, dtype=torch.float64) - 1)  # type: ignore[arg-type]
        for count, draws in (
            ("n_train", generator(config.seed, "objectives", "train")),
            ("n_test", generator(config.seed, "objectives", "test")),
        )
    )
    y, y_test = (OBJECTIVES[name](*points.unbind(1)).unsqueeze(1) for points in (x, x_test))
    mean, deviation = float(y.mean()), float(y.std(correction=0))
    if kind == "standardised":
        y, y_test = (y - mean) / deviation, (y_test - mean) / deviation
    return Regression(x, y, x_test, y_test, mean, deviation)


def log_epochs(epochs: int) -> tuple[int, ...]:
    """Return the powers of ten up to ``epochs``, and ``epochs`` itself."""
    powers = [10**k for k in range(len(str(epochs))) if 10**k < epochs]
    return (*powers, epochs)


def train(configs: Sequence[Config], context: Context) -> list[Trained]:
    """Train one batch of one cell; on the CPU one after another, which fills a core."""
    settings_of_cell(configs, RECIPE)  # refuses a mixed batch
    size = 1 if context.device == "cpu" else len(configs)
    found: list[Trained] = []
    for start in range(0, len(configs), size):
        group = configs[start : start + size]

        def tell(share: float, done: int = start, count: int = len(group)) -> None:
            context.tell((done + share * count) / len(configs))

        found += _train_group(group, context.device, tell)
    return found


def _train_group(
    configs: Sequence[Config], device: str, tell: Callable[[float], None]
) -> list[Trained]:
    s = configs[0].settings
    data = [regression_of(config) for config in configs]
    epochs = int(s["epochs"])  # type: ignore[arg-type]
    marks = log_epochs(epochs)

    def stack(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)).to(device, torch.float32)

    snapshots = fit_full_batch(
        [mlp(s["sizes"], seed=config.seed) for config in configs],  # type: ignore[arg-type]
        stack([d.x for d in data]),
        stack([d.y for d in data]),
        epochs=epochs,
        lr=float(s["lr"]),  # type: ignore[arg-type]
        marks=marks,
        tell=tell,
    )
    results = []
    for config, known, states in zip(configs, data, snapshots, strict=True):
        curves: dict[str, list[float]] = {"train_mse": [], "test_mse": []}
        for state in states:
            model = loaded(config, state)
            for name, x, y in (
                ("train_mse", known.x, known.y),
                ("test_mse", known.x_test, known.y_test),
            ):
                with torch.no_grad():
                    curves[name].append(float((model(x) - y).square().mean()))
        variance = known.deviation**2
        results.append(
            Trained(
                {
                    f"epoch{m}.{k}": v
                    for m, st in zip(marks, states, strict=True)
                    for k, v in st.items()
                },
                {
                    "epochs": epochs,
                    "logged": list(marks),
                    **curves,
                    "train_loss": curves["train_mse"][-1],
                    "target_mean": known.mean,
                    "target_variance": variance,
                },
            )
        )
    return results


def loaded(config: Config, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with given weights, in float64 and eval mode."""
    model = mlp(config.settings["sizes"], seed=config.seed)  # type: ignore[arg-type]
    model.load_state_dict(dict(state))
    return model.double().eval()


def network_at(config: Config, trained: Trained, epoch: int) -> nn.Module:
    """Return the network as it was after ``epoch`` epochs."""
    prefix = f"epoch{epoch}."
    state = {
        name.removeprefix(prefix): value
        for name, value in trained.tensors.items()
        if name.startswith(prefix)
    }
    if not state:
        raise unknown_name("logged epoch", epoch, trained.facts["logged"])
    return loaded(config, state)
