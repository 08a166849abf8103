"""Published claims as studies, one folder a paper, one folder a study.

A new study is a new folder and a line below; ``recipes`` holds what several share.

Its ``_study.py`` exports ``STUDY``. What it has to say, in order: ``grid`` (every configuration),
``train`` and ``measure`` (one batch; reuse those of ``invariance.papers.recipes``),
``measurement`` (what decides the measured numbers, with a version), ``analyse`` (records to
claims, with regions that were fixed before) and ``figures``. ``invariance.studies`` shows a
whole study in forty lines.
"""

from __future__ import annotations

from invariance.papers.bennett.model_selection import _study as model_selection
from invariance.papers.bennett.pair_proxy import _study as pair_proxy
from invariance.papers.bennett.reparameterisation import _study as reparameterisation
from invariance.papers.bennett.vanishing_advantage import _study as vanishing_advantage
from invariance.papers.mason_williams.boundary_tightness import _study as boundary_tightness
from invariance.papers.mason_williams.regularisation import _study as regularisation
from invariance.papers.mason_williams.single_objective import _study as single_objective
from invariance.papers.ours.fantastic_measures import _study as fantastic_measures
from invariance.papers.ours.intervention import _study as intervention
from invariance.papers.ours.manufactured_weakness import _study as manufactured_weakness
from invariance.papers.wen.flat_not_general import _study as flat_not_general
from invariance.studies._study import Study

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
    manufactured_weakness.STUDY,
    intervention.STUDY,
    fantastic_measures.STUDY,
)
