"""Would catch: a traceback where a sentence belongs, and exit code 0 where nothing was shown.

Three hundred command lines and three hundred calls, drawn from good and odd words and values.
"""

import random
import traceback
import warnings

import pytest
import torch

import invariance as inv
from invariance.cli._main import main
from invariance.core._errors import InvarianceError

LINES, CALLS, SEED = 300, 300, 20_261_127

MODULE = """
import sys
import torch
import invariance as inv


def right(model, x, y):
    return float(torch.nn.functional.cross_entropy(model(x), y).detach())


def wrong(model, x, y):
    return float(sum(p.detach().square().sum() for p in model.parameters()))


def leaves(model, x, y):
    sys.exit(0)


def fails(model, x, y):
    raise KeyError("own mistake")


def nothing(model, x, y):
    pass


def many(model, x, y, z, w):
    return 0.0


def network():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=source, dtype=torch.float64)
    model = inv.models.mlp((3, 4, 2), seed=1, dtype=torch.float64).eval()
    return model, x, torch.randint(0, 2, (6,), generator=source)


def network_leaves():
    raise SystemExit


def odd_network():
    return "model", None, 3


NUMBER = 3
"""

#: What is true of each target: the code of a check of it alone, if all else is in order.
TARGETS = {
    "right": 0,
    "wrong": 1,
    "leaves": 2,
    "fails": 1,
    "nothing": 1,
    "many": 2,
    "NUMBER": 2,
    "rihgt": 2,
    "": 2,
    "a.b": 2,
    "__class__": 2,
}
ODD_TARGETS = ["", ":", "::", "no.such:f", ".:f", "..a:f", "x.py:f", "folder:f", "path_nom", "\0:f"]
NETWORKS = {"network": True, "network_leaves": False, "odd_network": False, "NUMBER": False}
#: Words of options, and whether a check that is told them can still succeed.
OPTIONS = [
    (["--seed", "7"], True),
    (["--seed", str(-(10**30))], True),
    (["--seed", "1.5"], False),
    (["--seed", "9" * 5000], False),
    (["--rtol", "1e-5"], True),
    (["--rtol", "nan"], False),
    (["--rtol", "-1"], False),
    (["--rtol", "inf"], False),
    (["--dtype", "float64"], True),
    (["--dtype", "double"], False),
    (["--groups", "layer_scaling,permutation"], True),
    (["--groups", " layer_scaling , "], True),
    (["--groups", "layerscaling"], False),
    (["--groups", ""], False),
    (["--groups", "batchnorm_fold"], False),
    (["--examples", "2"], True),
    (["--examples", "-3"], False),
    (["--json", "-"], True),
    (["--json", "out/deep/r.json"], True),
    (["--json", "/dev/null"], True),
    (["--json", "folder"], False),
    (["--json", "x" * 300], False),
    (["--json", "/proc/none/x"], False),
    (["--config", "wrong.toml"], False),
    (["--config", "folder"], False),
    (["--config", "odd.toml"], False),
    (["--config", "\0"], False),
    (["--snapshot", "gone.json"], False),
    (["--snapshot", "folder"], False),
    (["--model", "mpl"], False),
    (["--modl", "mlp"], False),
    (["--frobnicate"], False),
]
#: Other commands, none of which may do its work here.
OTHERS = [
    ["report", "--task", "digist"],
    ["report", "--task", "digits", "--networks", "-1"],
    ["report", "--task", "digits", "--n-train", "0"],
    ["report", "--task", "digits", "--n-train", "99999"],
    ["report", "--task", "digits", "--n-unseen", "-1"],
    ["report", "--task", "digits", "--device", "tpu"],
    ["report", "--task", "digits", "--json", "folder"],
    ["report", "--seed", "x"],
    ["study"],
    ["study", "no-such-study"],
    ["study", "single-objectiv"],
    ["study", "no.such:thing"],
    ["study", "{name}:right"],
    ["study", "leaving_{name}:study"],
    ["study", "syntax_{name}:study"],
    ["study", "importing_{name}:study"],
    ["study", ":"],
    ["study", "..:x"],
    ["study", "single-objective", "--set", "rate"],
    ["study", "single-objective", "--set", "nonsense=1"],
    ["study", "single-objective", "--workers", "2", "--scheduler", "x"],
    ["study", "single-objective", "--n-train", "many"],
    ["studies", "--results", "gone"],
    ["studies", "--results", "x" * 300],
    ["studies", "--results", "{name}.py"],
    ["chekc", "{name}:right"],
    ["measures", "extra"],
    [],
    ["--frobnicate"],
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    name = f"fuzz_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"leaving_{name}.py").write_text("raise SystemExit(0)\n")
    (tmp_path / f"syntax_{name}.py").write_text("def f(:\n")
    (tmp_path / f"importing_{name}.py").write_text("import no_such_thing_at_all\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd.toml").write_text("[tool]\ninvariance = 3\n")
    (tmp_path / "wrong.toml").write_text("[tool.invariance]\nsed = 3\n")
    work = tmp_path / "work"
    work.mkdir()
    for entry in ("folder", "odd.toml", "wrong.toml"):
        (work / entry).symlink_to(tmp_path / entry)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def draw_line(source, name):
    """A command line, and whether it may end with 0."""
    if source.random() < 0.25:
        return [word.format(name=name) for word in source.choice(OTHERS)], False
    targets, codes = [], []
    for _ in range(source.choice([1, 1, 1, 2, 0])):
        if source.random() < 0.2:
            targets.append(source.choice(ODD_TARGETS))
            codes.append(2)
        else:
            function = source.choice([*TARGETS, "right", "right", "right", "wrong"])
            targets.append(f"{name}:{function}")
            codes.append(TARGETS[function])
    words, fine = ["check", *targets], bool(targets) and not any(codes)
    network = source.choice([*NETWORKS, "network", "network", "network", "network"])
    words += ["--model", f"{name}:{network}"]
    for option, ok in source.sample(OPTIONS, source.choice([0, 0, 1, 1, 2])):
        words += option
        fine = fine and ok
    return words, fine and NETWORKS[network]


def run_line(words):
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


def test_no_command_line_ends_in_a_traceback_or_a_false_zero(project, capsys):
    source = random.Random(SEED)
    wrong = []
    for _ in range(LINES):
        words, fine = draw_line(source, project)
        try:
            code = run_line(words)
        except BaseException as error:
            wrong.append((words, f"{type(error).__name__}: {error}"))
            continue
        printed = capsys.readouterr()
        if code not in (0, 1, 2) or (code == 0) != fine or "Traceback" in printed.err:
            wrong.append((words, code, fine, printed.err[-300:]))
        elif code == 2 and len(printed.err.strip()) < 10:
            wrong.append((words, "no sentence", printed.err))
    assert not wrong, "\n".join(map(str, wrong))


# -- calls ---------------------------------------------------------------------------------


def odd_values():
    """Values that people pass by mistake, made anew for each call."""
    x = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    return [
        None, True, -1, 0, 3, 2.5, 10**30, -(10**400), float("nan"), float("inf"), "", "digits",
        "hessian_trace", "LayerScaling", "no such thing", b"x", [], (), {}, set(), [None], ["x"],
        {"a": 1}, object(), int, len, lambda: 0, x, y, x[:0], x * float("nan"), (x, y),
        (x, y[:3]), (x, y.double()), (x, y - 5), [(x, y), (x, y)], [(x, y), 3], iter([(x, y)]),
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), 4, generator=torch.Generator()
        ),
        inv.transforms.Permutation(), inv.transforms.Permutation, [inv.transforms.SignFlip()],
        inv.transforms.LayerScaling([2.0, 0.5]), inv.transforms.FoldBatchNorm(),
        inv.measures.parameter_norm, torch.nn.Identity(), inv.models.mlp((3, 2)).double()[0],
        inv.models.mlp((3, 4, 2), batch_norm=True).train(), torch.float32, torch.int64, torch.relu,
    ]  # fmt: skip


def entry_points():
    """Functions of the front door, with arguments that are in order."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=source, dtype=torch.float64)
    y = torch.randint(0, 2, (6,), generator=source)
    net = inv.models.mlp((3, 4, 2), seed=1, dtype=torch.float64).eval()

    def loss(model, x, y):
        return float(torch.nn.functional.cross_entropy(model(x), y).detach())

    maps = [inv.transforms.LayerScaling([2.0, 0.5]), inv.transforms.Permutation()]
    gate = {"measure": loss, "model": net, "x": x, "y": y, "transforms": maps, "groups": None}
    gate |= {"rtol": 1e-6, "dtype": "float64", "seed": 0, "examples": 1, "name": "loss"}
    check = {"model": net, "task": (x, y), "transforms": maps, "measures": [loss], "seed": 0}
    return [
        (inv.check, {**check, "dtype": torch.float64, "rtol": 1e-9}),
        (inv.testing.assert_invariant, gate),
        (
            inv.testing.describe,
            {key: gate[key] for key in ("measure", "model", "x", "y", "rtol", "dtype", "seed")}
            | {"groups": ["permutation"]},
        ),
        (
            inv.fit,
            {"model": net, "task": (x, y), "seed": 0, "lr": 0.1, "batch_size": 3, "max_epochs": 1}
            | {"target_accuracy": None, "optimizer": "sgd", "momentum": 0.0, "device": "cpu"}
            | {"dtype": None, "vectorize": None, "augmentation": None, "on_divergence": "keep"},
        ),
        (
            inv.fit_ensemble,
            {"model_or_sizes": (3, 4, 2), "task": (x, y), "seeds": [0, 1], "max_epochs": 1},
        ),
        (
            inv.load_task,
            {"name": "digits", "n_train": 20, "n_unseen": 3, "seed": 0, "unseen_seed": None}
            | {"unseen_from": "rest", "root": None, "download": False},
        ),
        (
            inv.models.mlp,
            {"sizes": (3, 4, 2), "activation": "relu", "batch_norm": False, "bias": True}
            | {"seed": 0, "dtype": None},
        ),
        (inv.measures.hessian_trace, {"model": net, "x": x, "y": y}),
        (inv.measures.parameter_norm, {"model": net}),
        (inv.transforms.Compose, {"transforms": maps}),
        (inv.transforms.Permutation(), {"model": net, "example_input": x}),
        (inv.transforms.LayerScaling, {"factors": [2.0, 0.5]}),
        (inv.transforms.NeuronScaling, {"spread": 10.0, "seed": 0}),
    ]


def draw_call(source):
    function, good = source.choice(entry_points())
    arguments = dict(good)
    for name in source.sample(list(good), min(len(good), source.choice([0, 1, 1, 1, 2]))):
        arguments[name] = source.choice(odd_values())
    return function, arguments


def run_call(function, arguments):
    """What came of a call, if it is neither a value nor an answer; an error's own class else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(**arguments)
    except (InvarianceError, AssertionError) as error:
        return None if len(str(error)) > 20 else repr(error)
    except BaseException as error:
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        own = "loss" in frames  # the user's own mistake, in the user's own measure
        return None if own else f"{type(error).__name__}: {error}"
    return None


def test_no_call_ends_in_an_internal_exception():
    source = random.Random(SEED)
    before = torch.get_rng_state()
    wrong = []
    for _ in range(CALLS):
        function, arguments = draw_call(source)
        if problem := run_call(function, arguments):
            name = getattr(function, "__name__", repr(function))
            wrong.append(f"{name}: {str(arguments)[:300]}\n    {problem[:300]}")
    assert not wrong, f"{len(wrong)} of {CALLS}:\n" + "\n".join(wrong)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_is_none_is_named_by_every_measure():
    from invariance.measures._registry import all_measures, get_measure

    x, y = torch.rand(6, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    for name in all_measures():
        measure = get_measure(name)
        inputs = {key: x if field[0] == "x" else y for key, field in measure.fields.items()}
        with pytest.raises(InvarianceError, match=r"nn\.Module|Got int"):
            measure(3, **inputs)
