"""The studies: one file each, listed here. A new study is a new file and a line below.

A file exports ``STUDY``. What it has to say, in order: ``grid`` (every configuration),
``train`` and ``measure`` (one batch; reuse those of ``invariance.studies.recipes``),
``measurement`` (what decides the measured numbers, with a version), ``analyse`` (records to
claims, with regions that were fixed before) and ``figures``. ``invariance.studies`` shows a
whole study in forty lines.
"""

from __future__ import annotations

from invariance.studies.catalog import (
    boundary_tightness,
    flat_not_general,
    model_selection,
    pair_proxy,
    regularisation,
    reparameterisation,
    single_objective,
    vanishing_advantage,
)
from invariance.studies.study import Study

#: Every study that comes with the package, in the order of the report.
STUDIES: tuple[Study, ...] = (
    reparameterisation.STUDY,
    vanishing_advantage.STUDY,
    model_selection.STUDY,
    pair_proxy.STUDY,
    single_objective.STUDY,
    boundary_tightness.STUDY,
    regularisation.STUDY,
    flat_not_general.STUDY,
)
