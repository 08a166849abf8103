"""Two-bit parity: flat networks that memorise beside flat networks that generalise."""

from invariance.studies.parity.constructions import (
    Construction,
    construct,
    exact_trace,
    isolable,
    minimum_trace,
    realise,
)
from invariance.studies.parity.contest import Row, contest
from invariance.studies.parity.networks import build
from invariance.studies.parity.problem import Problem, draw_problem, parity
from invariance.studies.parity.published import PublishedConstant, published_constants
from invariance.studies.parity.sharpness import Sharpness, sharpness
from invariance.studies.parity.training import Phase, Recipe, train_network

__all__ = [
    "Construction",
    "Phase",
    "Problem",
    "PublishedConstant",
    "Recipe",
    "Row",
    "Sharpness",
    "build",
    "construct",
    "contest",
    "draw_problem",
    "exact_trace",
    "isolable",
    "minimum_trace",
    "parity",
    "published_constants",
    "realise",
    "sharpness",
    "train_network",
]
