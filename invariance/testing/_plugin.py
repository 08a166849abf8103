"""The pytest plugin, loaded through the ``pytest11`` entry point.

Every pytest run of every project with this package installed imports this file, so it
imports nothing but pytest and the standard library; torch is loaded by the first test
that uses a fixture of ours.

PYTEST_DONT_REWRITE: there is no assertion here to rewrite, and rewriting costs start-up time.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from invariance.core._groups import Group
from invariance.testing.gate._recorder import ClaimRecord, collecting

if TYPE_CHECKING:
    from invariance.testing._networks import Networks, TrainedNetwork
    from invariance.testing.gate._session_defaults import Gate
    from invariance.transforms._base import Transform

#: Group to the transform whose name a test's id carries.
TRANSFORM_OF: Mapping[str, str] = {
    "layer_scaling": "LayerScaling",
    "neuron_scaling": "NeuronScaling",
    "permutation": "Permutation",
    "sign_flip": "SignFlip",
    "linear_mixing": "LinearMixing",
    "logit_shift": "LogitShift",
    "batchnorm_fold": "FoldBatchNorm",
    "batchnorm_scaling": "BatchNormScaling",
    "unit_split": "SplitUnits",
    "dormant_units": "DormantUnits",
}

#: Names of the fixture's networks.
NETWORKS = ("mlp", "mlp_batch_norm", "cnn", "resnet")

SUFFIXES = (".json", ".html")

MARKER = (
    "invariance(transforms=None, groups=None): run the test once for each function-preserving "
    "map; the test takes it as `transform`"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's options."""
    group = parser.getgroup("invariance", "invariance of measures")
    group.addoption(
        "--invariance-seed",
        type=int,
        default=0,
        metavar="SEED",
        help="seed of the random maps (default 0)",
    )
    group.addoption(
        "--invariance-examples",
        type=_positive,
        default=1,
        metavar="N",
        help="random members of each kind of map to try (default 1)",
    )
    group.addoption(
        "--invariance-report",
        metavar="PATH",
        help="write every claim and what came of it to PATH, as .json or .html",
    )


def _positive(text: str) -> int:
    import argparse

    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return number


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, if a report is asked for, what writes it."""
    config.addinivalue_line("markers", MARKER)
    path = config.getoption("--invariance-report")
    if path is not None and Path(path).suffix not in SUFFIXES:
        raise pytest.UsageError(
            f"--invariance-report expects a path ending in {' or '.join(SUFFIXES)}. Got {path!r}."
        )
    if path is not None and not hasattr(config, "workerinput"):
        from invariance.core._errors import UsageError
        from invariance.core._files import require_writable

        try:
            require_writable(path)
        except UsageError as error:
            raise pytest.UsageError(f"--invariance-report: {error}") from error
    config.pluginmanager.register(_Summary(config), "invariance-summary")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once for each map; see ``@pytest.mark.invariance``."""
    marker = metafunc.definition.get_closest_marker("invariance")
    if marker is None:
        return
    where = f"{metafunc.definition.nodeid}: @pytest.mark.invariance"
    if "transform" not in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{where} hands the test one map at a time, so the test needs an argument named "
            "`transform`."
        )
    unknown = sorted(set(marker.kwargs) - {"transforms", "groups"})
    if unknown or marker.args:
        what = unknown[0] if unknown else "a positional argument"
        raise pytest.UsageError(f"{where} takes transforms= and groups=. Got {what}.")
    transforms, groups = marker.kwargs.get("transforms"), marker.kwargs.get("groups")
    if transforms is not None and groups is not None:
        raise pytest.UsageError(f"{where} takes transforms= or groups=, not both.")
    if transforms is not None:
        _parametrize(metafunc, list(transforms), _ids(transforms))
        return
    names = list(TRANSFORM_OF) if groups is None else [_group(entry, where) for entry in groups]
    seed = metafunc.config.getoption("--invariance-seed")
    examples = metafunc.config.getoption("--invariance-examples")
    cases = [(name, seed + k) for name in names for k in range(examples)]
    ids = [
        TRANSFORM_OF[name] if examples == 1 else f"{TRANSFORM_OF[name]}-seed{number}"
        for name, number in cases
    ]
    _parametrize(metafunc, cases, ids)


def _parametrize(metafunc: pytest.Metafunc, values: Sequence[Any], ids: Sequence[str]) -> None:
    if not values:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: @pytest.mark.invariance names no map to apply."
        )
    metafunc.parametrize("transform", values, ids=ids, indirect=True)


def _group(entry: object, where: str) -> str:
    name = str(entry)
    if name not in TRANSFORM_OF:
        raise pytest.UsageError(
            f"{where}: unknown group {name!r}. Known groups: {', '.join(TRANSFORM_OF)}."
        )
    return str(Group(name).value)


def _ids(transforms: Sequence[Any]) -> list[str]:
    """Names of the transforms, numbered where several share one."""
    names = [type(entry).__name__ for entry in transforms]
    return [
        name if names.count(name) == 1 else f"{name}-{names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


@pytest.fixture
def transform(request: pytest.FixtureRequest) -> Transform:
    """The map that a test marked with ``@pytest.mark.invariance`` is run for."""
    value = getattr(request, "param", None)
    if value is None:
        raise pytest.UsageError(
            f"{request.node.nodeid}: the fixture `transform` needs @pytest.mark.invariance on "
            "the test."
        )
    if isinstance(value, tuple):
        from invariance.transforms._members import MemberOf

        return MemberOf(*value)
    found: Transform = value
    return found


@pytest.fixture(scope="session")
def invariance_networks(request: pytest.FixtureRequest) -> Networks:
    """Small trained networks by name, trained once and kept in pytest's cache directory."""
    from invariance.testing._networks import Networks

    cache = getattr(request.config, "cache", None)  # absent under -p no:cacheprovider
    folder = None if cache is None else cache.mkdir("invariance")
    return Networks(folder, seed=request.config.getoption("--invariance-seed"))


@pytest.fixture(params=NETWORKS)
def invariance_network(
    request: pytest.FixtureRequest, invariance_networks: Networks
) -> TrainedNetwork:
    """Each of the small trained networks in turn, with its data."""
    return invariance_networks[request.param]


@pytest.fixture
def invariance_gate(request: pytest.FixtureRequest) -> Gate:
    """The assertions with the command line's seed and number of examples filled in."""
    from invariance.testing.gate._session_defaults import Gate

    return Gate(
        seed=request.config.getoption("--invariance-seed"),
        examples=request.config.getoption("--invariance-examples"),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Collect the claims that a test makes."""
    with collecting() as found:
        try:
            return (yield)
        finally:
            item.stash[_FOUND] = found
            for entry in found:
                verdict = "holds" if entry["holds"] else "broken"
                first = entry["message"].split("\n", 1)[0]
                item.user_properties.append(
                    ("invariance", f"{entry['claim']} {entry['measure']}: {verdict}. {first}")
                )


_FOUND = pytest.StashKey[list[ClaimRecord]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Attach the claims to the test's report, which also travels between xdist's processes."""
    report: Any = yield
    if report.when == "call" and _FOUND in item.stash:
        report.invariance = item.stash[_FOUND]
    return report


class _Summary:
    """Gathers the claims of a session, prints a line about them and writes the report."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.claims: list[ClaimRecord] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for entry in getattr(report, "invariance", ()):
            self.claims.append({"test": report.nodeid, **entry})

    def pytest_sessionfinish(self) -> None:
        path = self.config.getoption("--invariance-report")
        if path is None or hasattr(self.config, "workerinput"):
            return
        from invariance.testing.project._session_report import write_session_report

        write_session_report(Path(path), self.claims, self.config.getoption("--invariance-seed"))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.claims:
            return
        broken = sum(not entry["holds"] for entry in self.claims)
        path = self.config.getoption("--invariance-report")
        where = f"; report in {path}" if path else ""
        terminalreporter.write_line(
            f"invariance: {len(self.claims)} claims, {broken} broken{where}"
        )
