"""A study without training: numbers made from seeds. For what the engine does with them."""

import math

import torch

from invariance.core._rng import generator
from invariance.studies import Claim, Config, Context, Findings, Options, Region, Study, Trained


def grid(options: Options) -> list[Config]:
    return [
        Config("toy/1", {"n": n}, options.seed + i)
        for n in options.n_train
        for i in range(options.networks)
    ]


def train(configs, context: Context) -> list[Trained]:
    trained = []
    for config in configs:
        random = generator(config.seed, config.cell)
        trained.append(Trained({"w": torch.randn(5, generator=random)}, {"epochs": config.seed}))
        context.tell(len(trained) / len(configs))
    return trained


def measure(configs, trained, context: Context):
    return [
        {"measures": {"norm": float(kept.tensors["w"].norm()), "odd": math.inf}, "curve": (1, 2)}
        for kept in trained
    ]


def analyse(records, options: Options) -> Findings:
    norms = [record.measured["measures"]["norm"] for record in records]
    mean = sum(norms) / len(norms)
    claim = Claim("mean", "The mean is positive.", "mean norm", 2.0, Region(low=0.0), mean,
                  mean - 0.5, mean + 0.5, len(norms), 0.01, "Holm")  # fmt: skip
    return Findings(claims=(claim,))


STUDY = Study(
    name="toy",
    title="Toy norms",
    paper="Nobody (0000.00000)",
    question="Is it?",
    full=Options(networks=5, n_train=(1, 2), scale={"steps": 3, "rate": 0.1, "kinds": ("a",)}),
    quick=Options(networks=2, n_train=(1,), quick=True, scale={"steps": 1, "rate": 0.1}),
    grid=grid,
    train=train,
    measure=measure,
    measurement=lambda options: {"version": 1, "n_unseen": options.n_unseen},
    analyse=analyse,
    figures=lambda records, findings, folder: [],
    batch_size=lambda config: 3,
    cost=lambda config: float(config.settings["n"]),
)
