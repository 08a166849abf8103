"""The studies of our own: quick sizes run whole, and units that say nothing say nothing.

Would catch: silent units that change the function, faint ones that differ from silent ones in
more than their outgoing weights, a claim without a region, a study that does not run.
"""

import pytest
import torch

import invariance as inv
from invariance.papers import STUDIES
from invariance.papers.ours.manufactured_weakness._units import FAINT, MOST, how_many, with_units
from invariance.studies import run_study


def test_units_leave_the_function_and_widen_the_features():
    model = inv.models.mlp([6, 8, 5, 3], seed=2).double().eval()
    x = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    silent, faint = (with_units(model, 3, 7, size) for size in (0.0, FAINT))
    assert (silent(x) - model(x)).abs().max() < 1e-13
    assert 0 < (faint(x) - model(x)).abs().max() < 1e-7
    a, b = silent.state_dict(), faint.state_dict()
    differ = [name for name in a if not torch.equal(a[name], b[name])]
    last = [name for name in a if name.endswith("weight")][-1]
    assert differ == [last]
    assert torch.equal(a[last][:, :5], b[last][:, :5])
    assert torch.equal(a[last][:, 5:], torch.zeros(3, 3).double())
    counts = [how_many(seed) for seed in range(60)]
    assert set(counts) == set(range(MOST + 1))


@pytest.mark.parametrize("name", ["manufactured-weakness", "intervention", "fantastic-measures"])
def test_a_question_runs_and_every_claim_has_a_region(name, tmp_path):
    (study,) = [study for study in STUDIES if study.name == name]
    scale = {"steps": 2, "rate": 0.005} if name == "intervention" else {}
    networks = 1 if name == "fantastic-measures" else 5
    options = study.quick.but(
        task="digits", networks=networks, n_train=(80,), n_unseen=3, scale=scale or None
    )
    outcome = run_study(study, options, out=tmp_path / "out", workers=1)
    assert study.declared is not None
    if name == "fantastic-measures":  # its file names the claims of the two full data sets
        names = {c.name.replace("digits", "mnist") for c in outcome.findings.claims}
        assert names <= set(study.declared.regions)
        assert len(outcome.findings.claims) == 3 * 11
    else:
        assert study.declared.check(outcome.findings.claims) == []
        assert {c.name for c in outcome.findings.claims} == set(study.declared.regions)
    verdicts = {claim.name: claim.verdict for claim in outcome.findings.claims}
    if name == "manufactured-weakness":
        assert verdicts["silent labels"] == verdicts["repaired silent"] == "theorem"
        assert verdicts["margin faint"] in ("theorem", "open")
    for figure in outcome.results["figures"]:
        assert (tmp_path / "out" / figure["file"]).stat().st_size > 5_000
