"""Catches: a second distribution behind "after rescaling", factors that networks share."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import invariance as inv
from invariance.core._rng import generator
from invariance.papers import STUDIES
from invariance.papers.wen.flat_not_general._measuring import RESCALING
from invariance.transforms import UNITS_RESCALED, random_rescaling

T = inv.transforms


@pytest.fixture(scope="module")
def network():
    return inv.models.mlp([5, 200, 100, 3], dtype=torch.float64).eval()


X = torch.rand(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_perceptron_gets_the_factors_that_committed_results_were_made_with(network):
    """A layer scaling with log-uniform cumulative factors, then a scaling of every neuron."""
    for seed in (0, 7):
        source = generator(seed, "layer scaling")
        draws = torch.rand(2, generator=source, dtype=torch.float64).tolist()
        cumulative = [math.exp((2 * u - 1) * math.log(30)) for u in draws]
        steps = [now / then for then, now in itertools.pairwise([1.0, *cumulative, 1.0])]
        layers = T.LayerScaling(steps)
        by_hand = T.Compose([layers, T.NeuronScaling(seed=seed)])(network, X)
        for units, expected in ((False, layers(network, X)), (True, by_hand)):
            found = random_rescaling(network, X, seed, units=units)(network, X)
            for a, b in zip(found.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


def test_factors_are_log_uniform_in_the_stated_ranges(network):
    groups, own = [], []
    for seed in range(60):
        layer = random_rescaling(network, X, seed, units=False).factors
        both = random_rescaling(network, X, seed).factors
        for shared, factors in zip(layer, both, strict=True):
            assert len(set(shared)) == 1
            groups.append(math.log(shared[0]) / math.log(30))
            own.extend(np.log(np.array(factors) / shared[0]) / math.log(10))
    # Uniform on [-1, 1]: mean 0, standard deviation 1 / sqrt(3); five standard errors.
    for sample in (np.array(groups), np.array(own)):
        assert np.abs(sample).max() <= 1 + 1e-12
        assert abs(sample.mean()) < 5 / math.sqrt(3 * sample.size)
        assert abs(sample.std() * math.sqrt(3) - 1) < 5 / math.sqrt(sample.size)


def test_every_table_says_how_networks_were_rescaled(network):
    rescaled = {study.name: study.rescaling for study in STUDIES}
    assert set(rescaled.values()) == {UNITS_RESCALED, RESCALING}
    results = Path(__file__).parents[2] / "demos" / "results"
    for folder in filter(Path.is_dir, results.iterdir()):
        report = (folder / "report.md").read_text()
        assert "rho after rescaling" not in report or "log-uniform" in report or "exp(z)" in report
