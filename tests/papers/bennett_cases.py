"""The four studies of one paper at sizes that take seconds, for the tests that share them."""

from invariance.papers.bennett.model_selection import _study as model_selection
from invariance.papers.bennett.pair_proxy import _study as pair_proxy
from invariance.papers.bennett.reparameterisation import _study as reparameterisation
from invariance.papers.bennett.vanishing_advantage import _study as vanishing_advantage
from invariance.studies import Context

MODULES = {
    "reparameterisation": reparameterisation,
    "vanishing-advantage": vanishing_advantage,
    "model-selection": model_selection,
    "pair-proxy": pair_proxy,
}

#: Sizes at which a study takes seconds.
TINY = {
    "reparameterisation": {
        "networks": 4,
        "n_train": (60,),
        "n_unseen": 6,
        "scale": {"narrow_networks": 4, "pattern_points": 100, "wide_pair_points": 1},
    },
    "vanishing-advantage": {
        "networks": 4,
        "n_train": (40, 80),
        "n_unseen": 200,
        "scale": {
            "subsets": 1,
            "subset_networks": 4,
            "subset_n": 40,
            "early_networks": 4,
            "early_n": 40,
        },
    },
    "model-selection": {
        "networks": 6,
        "n_train": (60,),
        "n_unseen": 300,
        "scale": {"subsets": 1, "subset_networks": 4, "pair_points": 4, "unseen_draws": 2},
    },
    "pair-proxy": {
        "task": "digits",
        "networks": 6,
        "n_train": (60,),
        "n_unseen": 8,
        "scale": {
            "subsets": 1,
            "subset_networks": 4,
            "unseen_draws": 1,
            "extension_points": 2,
            "extension_pool": 5,
        },
    },
}


def tiny(name):
    study = MODULES[name].STUDY
    return study, study.quick.but(**({"task": "digits"} | TINY[name]))


def context(options):
    return Context(options, "cpu", lambda share: None)
