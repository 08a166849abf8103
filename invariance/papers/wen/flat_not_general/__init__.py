"""Two-bit parity: flat networks that memorise beside flat networks that generalise."""

from invariance.papers.wen.flat_not_general._constructions import (
    Construction,
    construct,
    exact_trace,
    isolable,
    minimum_trace,
    realise,
)
from invariance.papers.wen.flat_not_general._memoriser_or_generaliser import RankingRow, contest
from invariance.papers.wen.flat_not_general._networks import build
from invariance.papers.wen.flat_not_general._problem import Problem, draw_problem, parity
from invariance.papers.wen.flat_not_general._published_constants import (
    PublishedConstant,
    published_constants,
)
from invariance.papers.wen.flat_not_general._sharpness import Sharpness, sharpness
from invariance.papers.wen.flat_not_general._training import Phase, Recipe, train_network

__all__ = [
    "Construction",
    "Phase",
    "Problem",
    "PublishedConstant",
    "RankingRow",
    "Recipe",
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
