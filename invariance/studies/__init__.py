"""Studies: published claims as experiments that can be run, resumed and judged."""

from invariance.studies.claims import Claim, Region
from invariance.studies.config import Config
from invariance.studies.engine import Interrupted, run_study
from invariance.studies.output import Outcome
from invariance.studies.study import Context, Findings, Options, Record, Study, Table, Trained

__all__ = [
    "Claim",
    "Config",
    "Context",
    "Findings",
    "Interrupted",
    "Options",
    "Outcome",
    "Record",
    "Region",
    "Study",
    "Table",
    "Trained",
    "run_study",
]
