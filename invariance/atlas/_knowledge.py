"""What is known of each measure: where it is from, what it reads, and what rests on an argument.

A measure is *determined by* its readings (:mod:`invariance.atlas.symbolic`): a kind of map that
provably leaves one of them alone leaves the measure alone. What no reading settles stands in
``arguments``, a text with the lemma that it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from invariance.core._groups import Group


@dataclass(frozen=True)
class Known:
    """Facts about one measure that its declaration rests on.

    Attributes:
        source: The paper, or what else defines it.
        readings: Names of readings that determine it, any of which suffices.
        arguments: Group to a text, for cells that no reading proves.
        pitfall: How published code gets it wrong, where it is known to.
    """

    source: str
    readings: tuple[str, ...] = ()
    arguments: Mapping[Group, str] = field(default_factory=dict)
    pitfall: str = ""


_FOLDED = (
    "It folds every BatchNorm before anything else, and folding is the identity on what is folded "
    "already (theory of eval-mode BatchNorm: y = gamma (W x + b - mu) / sqrt(v + eps) + beta is "
    "the linear layer s W, beta + s (b - mu))."
)
_FOLDED_SCALING = (
    "It folds every BatchNorm first, and the folded layer does not move: s' W' = (s / a)(a W)."
)
_BENNETT = "Bennett, Are Flat Minima an Illusion? (arXiv 2605.05209)"
_REPAIRED = (
    "The repair removes what the function does not read before anything is counted, and a unit "
    "without outgoing weights is never read. Lemma: two networks with one reduced network have "
    "one count."
)
_MINIMUM = {
    Group.BATCHNORM_FOLD: _FOLDED,
    Group.BATCHNORM_SCALING: _FOLDED_SCALING,
}
_SPAN = Known(_BENNETT, ("features",))
#: Units between linear layers have no bits.
_LAST_MIXED = {
    Group.LINEAR_MIXING: "Nothing bends between the mixed layers, so there is no bit to count."
}

KNOWLEDGE: Mapping[str, Known] = {
    "hessian_trace": Known("Hochreiter & Schmidhuber (1997); Yao et al. (2020), PyHessian",
                           ("derivatives", "diagonal_law")),
    "hessian_eigenvalues": Known("Keskar et al. (2017); LeCun et al. (1998)", ("derivatives",),
                                 pitfall="hessian-eigenthings 1.0.0a5 returns lambda - momentum"),
    "hessian_norm": Known("Wu, Wang & Su (2022)", ("derivatives",)),
    "hessian_quadratic_form": Known("Liang et al. (2019), section 2", ("along_theta",)),
    "fisher_rao_norm": Known("Liang, Poggio, Rakhlin & Stokes (2019)", ("along_theta",)),
    "fisher_rao_closed_form": Known(
        "Liang, Poggio, Rakhlin & Stokes (2019), theorem 3.1", ("softmax",),
        pitfall="used as if it were the definition for networks with biases"),
    "adaptive_trace": Known(
        "Kwon et al. (2021), ASAM, to second order", ("relative", "diagonal_law"),
        pitfall="ASAM's reference code leaves biases out and adds 0.01"),
    "adaptive_eigenvalue": Known("Kwon et al. (2021), ASAM, to second order", ("relative",),
                                 pitfall="eta > 0 added to |theta| breaks it"),
    "adaptive_sharpness": Known("Kwon et al. (2021), ASAM", ("relative",),
                                pitfall="ASAM's reference code leaves biases out and adds 0.01"),
    "adaptive_worst_case_sharpness": Known("Andriushchenko et al. (2023)", ("relative_ball",)),
    "adaptive_gaussian_sharpness": Known("Andriushchenko et al. (2023)", ("relative_draws",)),
    "gaussian_sharpness": Known("Neyshabur et al. (2017)", ("plain_draws",)),
    "sam_sharpness": Known("Foret et al. (2021), SAM", ("plain_ball",)),
    "worst_case_sharpness": Known("Keskar et al. (2017)", ("plain_ball",)),
    "relative_flatness": Known(
        "Petzka et al. (2021)", ("last_layer",),
        pitfall="published code multiplies by |w| instead of |w|^2"),
    "diagonal_relative_flatness": Known("Petzka et al. (2021), diagonal form", ("last_rows",)),
    "standardized_relative_flatness": Known(
        "Petzka et al. (2021) with features divided by their deviation", ("last_layer",),
        {Group.NEURON_SCALING: "phi_j / sd(phi_j) does not move when phi_j takes a factor a > 0, "
         "and w_j sd(phi_j) neither: the standardized layer is the same layer.",
         Group.COORDINATES: "Weight and features are read as the layer uses them, not as they are "
         "parametrized."},
        pitfall="published code divides by the variance without recomputing the loss"),
    "frobenius_trace": Known("Petzka et al. (2021), without inner products",
                             ("weights_tensorwise",),
                             pitfall="with |W| in place of |W|^2 no layer scaling cancels"),
    "normalized_eigenvalue": Known("Rangamani et al. (2019)", ("tensorwise",)),
    "minimum_sharpness": Known(
        "Ibayashi, Hamaguchi & Imaizumi (2021)", ("units_orbit",),
        _MINIMUM | {
            Group.UNIT_SPLIT: "Copies with shares lambda, 1 - lambda have incoming curvature "
            "lambda^2 T and (1 - lambda)^2 T and outgoing curvature U each; the least of "
            "lambda^2 T e^-2u + U e^2u is 2 lambda sqrt(T U), and the shares add up to 1.",
            Group.DORMANT_UNITS: "Its incoming curvature is 0 and its outgoing curvature U e^2u "
            "has infimum 0 as u -> -infinity.",
        }),
    "layer_minimum_sharpness": Known("Ibayashi, Hamaguchi & Imaizumi (2021)", ("layers_orbit",),
                                     _MINIMUM),
    "information_geometric_sharpness": Known(
        "Jang, Lee, Park & Noh (2022)", ("tangent",),
        {Group.BATCHNORM_FOLD: "The derivatives by gamma and beta are combinations of those by W "
         "and b: df/dbeta = (df/db) / s, df/dgamma_i = sum_j W_ij / gamma_i df/dW_ij + (b_i - "
         "mu_i) / gamma_i df/db_i. So folding loses no direction.",
         Group.LINEAR_MIXING: "J' = J C with C the invertible matrix of the map theta -> T theta "
         "(inverse): the range of the score matrix stays.",
         Group.COORDINATES: "J' = J Dg by the chain rule, Dg invertible: the range of the score "
         "matrix stays."},
        pitfall="truncated or damped pseudo-inverses are not invariant"),
    "parameter_norm": Known("Bartlett (1998)", ("parameters",)),
    "path_norm": Known("Neyshabur, Tomioka & Srebro (2015)", ("paths",)),
    "path_norm_margin": Known("Neyshabur et al. (2017), section 2", ("paths_and_margins",)),
    "spectral_norm_product": Known("Bartlett, Foster & Telgarsky (2017)", ("layer_matrices",)),
    "frobenius_norm_product": Known("Neyshabur, Tomioka & Srebro (2015)", ("layer_matrices",)),
    "activation_patterns": Known(_BENNETT, ("preactivations",), _LAST_MIXED),
    "free_regions": Known(_BENNETT, ("preactivations",), _LAST_MIXED),
    "region_class_weakness": Known(_BENNETT, ("preactivations",), _LAST_MIXED),
    "free_parameters": Known(
        _BENNETT, ("patterns_and_width",),
        _LAST_MIXED | {Group.UNIT_SPLIT: "The regions and their rows stay (copies repeat a bit) "
                       "and the layer is wider: max(0, d K + K - n_r) with the new d."}),
    "pair_proxy": _SPAN,
    "extension_count": _SPAN,
    "volume_weakness": _SPAN,
    "volume_weakness_raw": Known(_BENNETT, ("rotated_features",)),
    "repaired_pair_proxy": Known(_BENNETT, ("features",), {Group.DORMANT_UNITS: _REPAIRED}),
    "function_pair_proxy": Known(_BENNETT, ("softmax",)),
    "margin_pair_proxy": Known(_BENNETT, ("softmax",)),
    "repaired_activation_patterns": Known(_BENNETT, ("preactivations",),
                                          _LAST_MIXED | {Group.DORMANT_UNITS: _REPAIRED}),
    "repaired_free_regions": Known(_BENNETT, ("preactivations",),
                                   _LAST_MIXED | {Group.DORMANT_UNITS: _REPAIRED}),
}  # fmt: skip
