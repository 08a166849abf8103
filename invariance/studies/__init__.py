"""Studies: published claims as experiments that can be run, resumed and judged.

A study is one file: a grid of configurations, how they are trained and measured, and what
is claimed. This is a whole one; save it as ``my_coin.py`` and run it, from the same folder,
with ``invariance study my_coin:COIN --quick``::

    import torch

    from invariance.studies import Claim, Config, Findings, Options, Region, Study, Trained


    def grid(options):  # every network: all settings that decide it, and its seed
        return [Config("coin/1", {"sides": 2}, options.seed + i) for i in range(options.networks)]


    def train(configs, context):  # one batch of one cell; here a "network" is one toss
        random = [torch.Generator().manual_seed(config.seed % 2**63) for config in configs]
        return [Trained({"side": torch.rand(1, generator=r)}, {"epochs": 0}) for r in random]


    def measure(configs, trained, context):
        return [{"measures": {"side": float(toss.tensors["side"])}} for toss in trained]


    def analyse(records, options):  # fix the region before looking at the number
        sides = [record.measured["measures"]["side"] for record in records]
        mean, half = sum(sides) / len(sides), 1.96 * (1 / 12 / len(sides)) ** 0.5
        fair = Claim("fair", "The coin is fair.", "mean side", 0.5, Region(0.3, 0.7),
                     mean, mean - half, mean + half, len(sides))
        return Findings(claims=(fair,))


    COIN = Study(
        name="coin", title="A coin", paper="Nobody (2026)", question="Is it fair?",
        full=Options(networks=500), quick=Options(networks=100, quick=True, scale={"tosses": 1}),
        grid=grid, train=train, measure=measure, analyse=analyse,
    )

The engine does the rest: batches over all cores or a cluster, records that survive being
killed, ``results.json`` and a report. From Python, :func:`run_study` does the same. The
studies that come with the package are in :mod:`invariance.papers`; a distribution of yours
adds its own by the entry point ``invariance.studies``.
"""

from invariance.studies._config import Config
from invariance.studies._engine import Interrupted, run_study
from invariance.studies._study import Context, Findings, Options, Record, Study, Table, Trained
from invariance.studies.claims._claims import Claim, Region
from invariance.studies.report._output import StudyOutcome

__all__ = [
    "Claim",
    "Config",
    "Context",
    "Findings",
    "Interrupted",
    "Options",
    "Record",
    "Region",
    "Study",
    "StudyOutcome",
    "Table",
    "Trained",
    "run_study",
]
