"""What a measure reads of a network, and the identities under which a map leaves that alone.

A measure is a function of one of these readings; if a map leaves the reading alone on a generic
network, it leaves every measure alone that is determined by it. Losses enter by the chain rule:
``H = J^T S J + sum_k r_k d^2 f_k`` with r and S functions of the logits (and labels), so what is
asked of J and ``d^2 f`` holds for every loss and, by linearity, for every mean over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from invariance.atlas.symbolic._derivatives import (
    along_theta,
    ball,
    derivatives,
    diagonal_law,
    gradients,
    input_jacobian,
    layers_orbit,
    relative,
    tangent,
    tensorwise,
    units_orbit,
    weights_tensorwise,
)
from invariance.atlas.symbolic._identities import (
    Identity,
    NotReadError,
    Reading,
    logits,
    raw,
    shared,
)
from invariance.atlas.symbolic._maps import maps_of
from invariance.atlas.symbolic._structure import (
    features,
    last_layer,
    last_rows,
    layer_matrices,
    parameters,
    path,
    patterns_and_width,
    preactivations,
    rotated_features,
    shape,
)
from invariance.core._groups import Group

_CHAIN = "By the chain rule H = J^T S J + sum_k r_k d^2 f_k, with r and S functions of the logits."


READINGS: Mapping[str, Reading] = {
    entry.name: entry
    for entry in (
        Reading(
            "logits", "the logits, for all inputs and weights",
            "A function of the logits and labels is the same number wherever these are.",
            raw(logits), of_function=True,
        ),
        Reading(
            "softmax", "the differences of the logits",
            "The softmax, every loss on it and every margin are functions of logit differences.",
            logits, of_function=True,
        ),
        Reading(
            "input_jacobian", "the logits' derivatives by the input",
            "The derivative by x of one function is one function.", raw(input_jacobian),
            of_function=True,
        ),
        Reading(
            "derivatives", "J and d^2 f, entry by entry up to order and sign",
            f"{_CHAIN} So H is conjugated by a signed permutation (or not moved at all), which "
            "keeps its trace, eigenvalues and norm.",
            derivatives,
        ),
        Reading(
            "gradients", "J, entry by entry up to order and sign",
            "Gradients of the rows are J^T r and the Fisher matrix is J^T S J: a signed "
            "permutation keeps lengths, inner products and traces.",
            gradients,
        ),
        Reading(
            "raw_gradients", "J of the logits themselves, up to order and sign",
            "The tangent kernel is J J^T: a signed permutation of J's columns keeps it.",
            raw(gradients),
        ),
        Reading(
            "relative", "theta_i d_i f and theta_i theta_j d_i d_j f, entry by entry",
            f"{_CHAIN} So D H D and D J^T with D = diag(theta) keep every entry (up to order), "
            "and an entry without a source is zero.",
            lambda made: iter(shared(made, relative)),
        ),
        Reading(
            "along_theta", "first and second derivatives of f along theta",
            "theta^T H theta = u^T S u + sum_k r_k q_k with u = (theta . grad) f and "
            "q = (theta . grad)^2 f; theta^T F theta = E u^T S u.",
            along_theta,
        ),
        Reading(
            "diagonal_law", "d_i f and d_i^2 f, each c_i and c_i^2 times its source's",
            f"{_CHAIN} So H'_ii = c_i^2 H_jj, and sums over the diagonal follow.",
            diagonal_law, "law",
        ),
        Reading(
            "relative_ball", "f(theta + theta * v) for every v",
            "The ball or cloud of perturbations |e_i / theta_i| is carried onto itself (v is only "
            "put in another order), and the loss on it is the same function of v.",
            ball(relative=True),
        ),
        Reading(
            "relative_draws", "f(theta + theta * v) for every v, in the same order",
            "With the same random numbers v the perturbed losses are the same, one by one.",
            ball(relative=True, aligned=True),
        ),
        Reading(
            "plain_ball", "f(theta + e) for every e",
            "The Euclidean ball is carried onto itself, and the loss on it is the same function.",
            ball(relative=False),
        ),
        Reading(
            "plain_draws", "f(theta + e) for every e, in the same order",
            "With the same random numbers e the perturbed losses are the same, one by one.",
            ball(relative=False, aligned=True),
        ),
        Reading(
            "paths", "the sum over paths of squared products, biases as paths",
            "The path norm is its square root; other orders p cancel alike.", path,
        ),
        Reading(
            "paths_and_margins", "path norm and logit differences",
            "A margin is a difference of logits, divided here by the path norm.",
            lambda made: iter([*path(made), *raw(logits)(made)]),
        ),
        Reading(
            "layer_matrices", "each folded weight matrix up to one constant, signs and order",
            "Orthogonally invariant norms ignore signs and order of rows and columns, and a "
            "product of norms ignores constants whose product is 1.",
            layer_matrices, of_function=True,
        ),
        Reading(
            "layer_matrices_and_margins", "weight matrices as above, and logit differences",
            "As for the products; a margin is a difference of logits.",
            lambda made: iter([*layer_matrices(made), *raw(logits)(made)]),
        ),
        Reading(
            "preactivations", "every unit's pre-activation up to a positive factor",
            "A pattern is the set of signs; positive factors, order and copies do not change "
            "which inputs share one.",
            preactivations, of_function=True,
        ),
        Reading(
            "patterns_and_width", "pre-activations up to positive factors, and the layers' widths",
            "The count is a function of the regions, their rows and the width of the layer.",
            patterns_and_width, of_function=True,
        ),
        Reading(
            "features", "the last features up to an invertible map",
            "Whether a linear layer on phi (with bias) classifies given points as given depends "
            "on the span of phi alone: a row u on phi is the row u M^-1 on M phi.",
            features, of_function=True,
        ),
        Reading(
            "rotated_features", "the last features up to order",
            "Solid angles in the weights of the last layer ignore an orthogonal map of phi.",
            rotated_features, of_function=True,
        ),
        Reading(
            "last_layer", "|phi|^2 |w_a - w_b|^2 for every pair of classes",
            "kappa = |phi|^2 tr(W^T S W) = |phi|^2 sum_(a<b) p_a p_b |w_a - w_b|^2.", last_layer,
        ),
        Reading(
            "last_rows", "|phi|^2 |w_s|^2 for every row",
            "sum_s |w_s|^2 Tr H_ss = sum_s |w_s|^2 |phi|^2 S_ss, S a function of the logits.",
            last_rows,
        ),
        Reading(
            "tensorwise", "one factor for each tensor, inverse in its derivatives",
            "|W_l|_F takes the factor that the derivatives lose, so |W_l|_F |W_m|_F H_lm stays.",
            tensorwise,
        ),
        Reading(
            "weights_tensorwise", "one factor for each weight matrix, inverse in its derivatives",
            "|W_l|_F^2 takes the factor that the block's trace loses.", weights_tensorwise,
        ),
        Reading(
            "units_orbit", "the diagonal of H along the orbit of all rescalings",
            "Rescaling by exp(u) after a member with factors a is rescaling by exp(u + log a): the "
            "infimum runs over the same networks. sum_i H_ii exp(-2 (D u)_i) is convex in u.",
            units_orbit,
        ),
        Reading(
            "layers_orbit", "the diagonal of H along the orbit of layer rescalings",
            "Rescaling by exp(u) after a member with factors a is rescaling by exp(u + log a): the "
            "infimum runs over the same networks.",
            layers_orbit,
        ),
        Reading(
            "tangent", "the span of the derivatives",
            "A projection onto the range of the score matrix depends on the span of its columns; "
            "columns times factors that are not zero, and repeated columns, span the same.",
            tangent,
        ),
        Reading(
            "parameters", "the absolute values of the parameters up to order",
            "A norm of the vector of parameters ignores order and signs.", parameters,
        ),
        Reading("shape", "the number of parameters", "It is a count.", shape),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """A reading, checked under every generic map of one kind.

    Attributes:
        reading: What was shown to stay, or to follow its law.
        group: The kind of map.
        identities: All equations, each of them true.
        titles: The maps, in words.
        written: Their formulas.
    """

    reading: Reading
    group: Group
    identities: tuple[Identity, ...]
    titles: tuple[str, ...]
    written: tuple[str, ...]


@cache
def prove_reading(name: str, group: Group) -> Proof | None:
    """Prove by algebra that a kind of map leaves a reading alone; ``None`` if it does not."""
    reading = READINGS[name]
    found: list[Identity] = []
    maps = maps_of(group)
    if not maps or (group is Group.COORDINATES and not reading.of_function):
        return None
    try:
        for made in maps:
            for identity in reading.checks(made):
                if not identity.holds:
                    return None
                found.append(identity)
    except NotReadError:
        return None
    return Proof(
        reading,
        group,
        tuple(found),
        tuple(made.title for made in maps),
        tuple(line for made in maps for line in made.written),
    )
