"""Would catch: a plugin that needs configuration, slows start-up, or loses claims on the way."""

from __future__ import annotations

import json
import subprocess
import sys

import planted_measures as planted
import pytest
import torch

import invariance as inv
from invariance.testing._networks import Networks

pytest_plugins = ["pytester"]

#: No assertion rewriting and no collection of garbage at the end: both are slow under torch.
STRICT = """
[pytest]
filterwarnings = error
addopts =
    --strict-markers --assert=plain
    -p no:cacheprovider -p no:unraisableexception -p no:hypothesispytest
"""

MEASURES = """
    def loss(model, x, y):
        import torch
        return float(torch.nn.functional.cross_entropy(model(x), y).detach())

    def norm(model, x, y):
        return float(sum(p.detach().square().sum() for p in model.parameters()))

    def network():
        import torch, invariance as inv
        model = inv.models.mlp((4, 5, 3), seed=1, dtype=torch.float64).eval()
        source = torch.Generator().manual_seed(0)
        x = torch.randn(8, 4, generator=source, dtype=torch.float64)
        return model, x, torch.randint(0, 3, (8,), generator=source)
"""


@pytest.fixture(scope="module", autouse=True)
def everything_imported():
    """Import whatever a failing assertion imports: pytester drops modules that it saw loaded."""

    import invariance.testing.gate._session_defaults
    import invariance.testing.project._session_report  # noqa: F401

    model = inv.models.mlp((3, 4, 2)).eval()
    x, y = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(AssertionError):
        inv.testing.assert_invariant(planted.squared_norm, model, x, y)
    Networks()["mlp_batch_norm"]


@pytest.fixture
def project(pytester):
    pytester.makeini(STRICT)
    pytester.makepyfile(measures=MEASURES)
    return pytester


def test_one_test_a_map_with_readable_ids(project):
    project.makepyfile(
        """
        import pytest, invariance as inv
        from measures import loss, norm, network

        @pytest.mark.invariance(groups=["layer_scaling", "permutation"])
        def test_groups(transform):
            inv.testing.assert_invariant(loss, *network(), transforms=[transform])

        @pytest.mark.invariance(transforms=[inv.transforms.NeuronScaling(seed=3),
                                            inv.transforms.LayerScaling([2.0, 0.5]),
                                            inv.transforms.LayerScaling([4.0, 0.25])])
        def test_named(transform):
            inv.testing.assert_invariant(norm, *network(), transforms=transform)
        """
    )
    result = project.runpytest("-v")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*test_groups[[]LayerScaling[]]*PASSED*",
            "*test_groups[[]Permutation[]]*PASSED*",
            "*test_named[[]NeuronScaling[]]*FAILED*",
            "*test_named[[]LayerScaling-0[]]*FAILED*",
            "*test_named[[]LayerScaling-1[]]*FAILED*",
            "*measure 'norm' is not invariant under NeuronScaling*",
            "*invariance: 5 claims, 3 broken*",
        ]
    )


def test_seed_and_examples_draw_more_members(project):
    project.makepyfile(
        """
        import pytest, invariance as inv
        from measures import loss, network

        @pytest.mark.invariance(groups=["neuron_scaling"])
        def test_it(transform):
            model, *_ = network()
            print("DRAWN", transform.resolve(model))
        """
    )
    result = project.runpytest("-v", "-s", "--invariance-seed=7", "--invariance-examples=3")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*NeuronScaling-seed7*DRAWN*seed=7*", "*DRAWN*seed=9*"])


def test_gate_fixture_fills_in_the_options(project):
    project.makepyfile(
        """
        from measures import loss, network

        def test_it(invariance_gate):
            assert (invariance_gate.seed, invariance_gate.examples) == (5, 2)
            certificate = invariance_gate.assert_invariant(loss, *network())
            assert any("seed=6" in row.label for row in certificate.rows)
        """
    )
    project.runpytest("--invariance-seed=5", "--invariance-examples=2").assert_outcomes(passed=1)


TWO_CLAIMS = """
    import pytest, invariance as inv
    from measures import loss, norm, network

    def test_right():
        inv.testing.assert_invariant(loss, *network(), groups=["layer_scaling"])

    def test_wrong():
        inv.testing.assert_invariant(norm, *network(), groups=["layer_scaling"])

    def test_faulty():
        inv.testing.assert_invariant(lambda m, x, y: float("nan"), *network())
"""


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((), id="one process"),
        pytest.param(("-n", "1"), id="xdist", marks=pytest.mark.slow),
    ],
)
def test_json_report_holds_every_claim(project, extra):
    project.makepyfile(TWO_CLAIMS)
    result = project.runpytest("--invariance-report=out/report.json", *extra)
    result.assert_outcomes(passed=1, failed=2)
    report = json.loads((project.path / "out" / "report.json").read_text())
    assert report["summary"] == {"claims": 3, "broken": 2}
    by_test = {entry["test"].split("::")[1]: entry for entry in report["claims"]}
    assert by_test["test_right"]["holds"]
    wrong = by_test["test_wrong"]["detail"]["findings"][0]
    assert wrong["measure"] == "norm"
    assert wrong["verdict"] == "contradicts"
    assert wrong["replay"].startswith("import invariance as inv; ")
    assert by_test["test_faulty"]["detail"]["fault"] == "nan"


def test_html_report_is_self_contained(project):
    project.makepyfile(TWO_CLAIMS)
    project.runpytest("--invariance-report=report.html")
    page = (project.path / "report.html").read_text()
    assert "3 claims, 2 broken" in page
    assert "&#x27;norm&#x27; is not invariant" in page
    assert "http" not in page.replace("http-equiv", "")


def test_junit_file_carries_the_claims(project):
    project.makepyfile(TWO_CLAIMS)
    project.runpytest("--junitxml=junit.xml")
    text = (project.path / "junit.xml").read_text()
    assert 'name="invariance"' in text
    assert "invariant norm: broken" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("@pytest.mark.invariance(groups=['nope'])\ndef test_it(transform): pass", "unknown group"),
        ("@pytest.mark.invariance()\ndef test_it(): pass", "argument named"),
        ("@pytest.mark.invariance(grops=[])\ndef test_it(transform): pass", "takes transforms="),
        ("@pytest.mark.invariance(groups=[])\ndef test_it(transform): pass", "names no map"),
        (
            "@pytest.mark.invariance(groups=['permutation'], transforms=[1])\n"
            "def test_it(transform): pass",
            "not both",
        ),
    ],
)
def test_wrong_markers_are_usage_errors(project, body, words):
    project.makepyfile("import pytest\n" + body)
    result = project.runpytest()
    assert result.ret != 0
    assert words in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--invariance-report=report.txt", ".json or .html"),
        ("--invariance-examples=0", "positive integer"),
        ("--invariance-seed=x", "invalid int"),
    ],
)
def test_wrong_options_are_usage_errors(project, option, words):
    project.makepyfile("def test_it(): pass")
    result = project.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str() + result.stdout.str()


def test_fixture_without_marker_says_so(project):
    project.makepyfile("def test_it(transform): pass")
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    assert "needs @pytest.mark.invariance" in result.stdout.str()


def test_own_fixture_named_transform_wins(project):
    project.makepyfile(
        """
        import pytest

        @pytest.fixture
        def transform():
            return 42

        def test_it(transform):
            assert transform == 42
        """
    )
    project.runpytest().assert_outcomes(passed=1)


# -- start-up ----------------------------------------------------------------------------


def test_loading_the_plugin_imports_neither_torch_nor_numpy():
    code = (
        "import sys, invariance.testing._plugin; "
        "print(sorted({'torch', 'numpy', 'scipy', 'hypothesis', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == "[]"


def test_a_project_that_does_not_use_it_never_imports_torch(pytester):
    pytester.makeini(STRICT)
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert "torch" not in sys.modules and "numpy" not in sys.modules
            assert "invariance.testing._plugin" in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:xdist", timeout=60)
    result.assert_outcomes(passed=1)


# -- networks --------------------------------------------------------------------------


def test_networks_are_trained_once_and_kept_without_pickles(tmp_path):
    first = Networks(tmp_path)["mlp"]
    (file,) = tmp_path.glob("mlp-*.pt")
    stamp = file.stat().st_mtime_ns
    again = Networks(tmp_path)["mlp"]
    assert file.stat().st_mtime_ns == stamp
    assert all(
        torch.equal(p, q)
        for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True)
    )
    torch.load(file, weights_only=True)  # nothing in it can run code
    accuracy = (first.model(first.x).argmax(1) == first.y).float().mean()
    assert accuracy > 0.9


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x80\x04K\x01."])
def test_a_broken_cache_is_trained_anew(tmp_path, junk):
    networks = Networks(tmp_path)
    networks.path("mlp").write_bytes(junk)
    assert networks["mlp"].x.shape == (48, 64)
    torch.load(networks.path("mlp"), weights_only=True)


def test_a_kept_network_with_other_weights_is_trained_anew(tmp_path, monkeypatch):
    """Zeros pass every test of invariance; so may the weights of another seed or recipe."""
    trained = []
    right = Networks._train
    monkeypatch.setattr(
        Networks, "_train", lambda *words: trained.append(words[1]) or right(*words)
    )

    def used():
        before = len(trained)
        Networks(tmp_path)["mlp"]
        return len(trained) == before

    assert (used(), used()) == (False, True)
    path = Networks(tmp_path).path("mlp")
    for spoil in (torch.zeros_like, lambda value: value * 1.0000001):
        kept = torch.load(path, weights_only=True)
        kept["state"] = {name: spoil(value) for name, value in kept["state"].items()}
        torch.save(kept, path)
        assert (used(), used()) == (False, True)
    other = Networks(tmp_path, seed=1)
    assert other["mlp"].name == "mlp"
    path.write_bytes(other.path("mlp").read_bytes())  # whole, but not the one asked for
    assert not used()


def test_what_a_network_follows_from_is_in_the_name_of_its_file(tmp_path, monkeypatch):
    from invariance.testing import _networks as networks

    names = {Networks(tmp_path).path("mlp"), Networks(tmp_path, seed=1).path("mlp")}
    monkeypatch.setattr(networks, "TRAINING", {**networks.TRAINING, "lr": 0.2})
    names.add(Networks(tmp_path).path("mlp"))
    monkeypatch.setattr(networks, "N_TRAIN", 140)
    names.add(Networks(tmp_path).path("mlp"))
    monkeypatch.setitem(networks.BUILDERS, "mlp", lambda: inv.models.mlp((64, 12, 9, 10)))
    names.add(Networks(tmp_path).path("mlp"))
    assert len(names) == 5


def test_every_network_is_trained_and_its_own_copy(invariance_network):
    assert not any(module.training for module in invariance_network.model.modules())
    logits = invariance_network.model(invariance_network.x)
    assert (logits.argmax(1) == invariance_network.y).float().mean() > 0.8


def test_users_cannot_disturb_each_other(invariance_networks):
    one, other = invariance_networks["mlp"], invariance_networks["mlp"]
    with torch.no_grad():
        next(one.model.parameters()).zero_()
    assert next(other.model.parameters()).abs().sum() > 0


def test_unknown_network_lists_the_known(invariance_networks):
    with pytest.raises(ValueError, match="mlp_batch_norm"):
        invariance_networks["mpl"]
