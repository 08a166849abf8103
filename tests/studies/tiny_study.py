"""A study that takes a second: perceptrons on digits, measured by the size of their weights."""

from invariance.papers.recipes._perceptrons import network, perceptron, task_of, train
from invariance.studies import Claim, Config, Context, Findings, Options, Region, Study, Table


def grid(options: Options) -> list[Config]:
    return [
        perceptron(
            options.seed + index,
            task=options.task,
            n_train=n,
            sizes=(64, width, 10),
            lr=0.2,
            batch_size=8,
            max_epochs=100,
        )
        for n in options.n_train
        for width in (24, 16)
        for index in range(options.networks)
    ]


def measure(configs, trained, context: Context):
    found = []
    for index, (config, kept) in enumerate(zip(configs, trained, strict=True)):
        task = task_of(config)
        model = network(config, kept)
        logits = model(task.x_test.double()).detach()
        context.tell((index + 1) / len(configs))
        found.append(
            {
                "targets": {"test_accuracy": kept.facts["test_accuracy"]},
                "measures": {
                    "norm": sum(float(p.square().sum()) for p in kept.tensors.values()) ** 0.5,
                    "mean_logit": float(logits.mean()),
                    "undefined": float("nan"),
                },
            }
        )
    return found


def measurement(options: Options):
    return {"version": 1, "n_unseen": options.n_unseen}


def analyse(records, options: Options) -> Findings:
    norms = [record.measured["measures"]["norm"] for record in records]
    claim = Claim(
        name="positive",
        statement="Norms are positive.",
        quantity="smallest norm",
        paper=None,
        region=Region(low=0.0),
        value=min(norms),
        ci_low=min(norms),
        ci_high=max(norms),
        n=len(records),
    )
    rows = [{"measure": "norm", "target": "test_accuracy", "n": len(records), "rho": 0.5}]
    table = Table(
        "Norms",
        ("seed", "norm"),
        tuple((r.config.seed, n) for r, n in zip(records, norms, strict=True)),
    )
    return Findings(tuple(rows), (claim,), (table,), ("A note.",))


def figures(records, findings, folder):
    path = folder / "norms.txt"
    path.write_text(str(len(records)))
    return [(path, "Norms.")]


STUDY = Study(
    name="tiny",
    title="Norms are positive",
    paper="Nobody, Nothing (0000.00000)",
    question="Are they?",
    full=Options(task="digits", networks=4, n_train=(60, 40), scale={"steps": 3}),
    quick=Options(task="digits", networks=2, n_train=(40,), quick=True, scale={"steps": 1}),
    grid=grid,
    train=train,
    measure=measure,
    measurement=measurement,
    analyse=analyse,
    figures=figures,
    batch_size=lambda config: 2,
    cost=lambda config: float(config.settings["n_train"]),
)
