"""Weakness as measures: what each function of ``invariance.weakness`` declares."""

from __future__ import annotations

from invariance.core._groups import Group
from invariance.measures._registry import Setting, measure
from invariance.weakness.extensions import _extension_count as extensions
from invariance.weakness.patterns import _patterns as patterns
from invariance.weakness.patterns import _regions as regions
from invariance.weakness.patterns import _repaired as repaired
from invariance.weakness.patterns._activation_layers import activation_layers, pick_layer
from invariance.weakness.separability import _margin_pair_proxy as margins
from invariance.weakness.separability import _pair_proxy as pairs
from invariance.weakness.separability import _repaired_pair_proxy as repair
from invariance.weakness.volume import _version_space as volume

EVERY_GROUP = frozenset(Group)

#: Every map in these groups acts on the last linear layer's features by an invertible
#: affine map (scalings, permutations, flips, mixings, splits: the span of the features is
#: kept) or not at all (logit shifts, foldings, coordinates). A dormant unit adds or
#: changes a feature that the function does not use, so the count varies.
FIXED_FEATURE_SPAN = EVERY_GROUP - {Group.DORMANT_UNITS}

#: Every exact map but one leaves the sign of each pre-activation alone. Positive scalings
#: scale it, permutations reorder the bits, a split repeats a bit, and a sign flip needs a
#: BatchNorm (whose output does not change) or an odd activation (which is refused). Giving
#: the layer a dormant unit, or moving one, adds or changes a bit: the count varies.
FIXED_BITS = EVERY_GROUP - {Group.DORMANT_UNITS}

#: Solid angles in raw coordinates survive what leaves the last features as they are, and
#: orthogonal maps of them (permutations, sign flips). Scaling, splitting and mixing change
#: lengths or angles; a dormant unit adds a direction.
SAME_FEATURES_UP_TO_ROTATION = frozenset(
    {
        Group.PERMUTATION,
        Group.SIGN_FLIP,
        Group.LOGIT_SHIFT,
        Group.BATCHNORM_FOLD,
        Group.BATCHNORM_SCALING,
        Group.COORDINATES,
    }
)


def _wider_layer(setting: Setting) -> float | None:
    """Splitting keeps every region's points and only widens the layer: replace d."""
    before, model = setting.before.detail, setting.applied.model
    layers = activation_layers(model, setting.inputs["x_train"][:1])
    units = pick_layer(layers, int(setting.inputs.get("layer", -1))).units
    return float(
        sum(
            regions.free_parameter_parts(
                before["train_counts"], before["free_regions"], units, before["classes"]
            )
        )
    )


_fixed_bits = measure(invariant_under=FIXED_BITS, discrete=True)
_repaired_pairs = measure(invariant_under=EVERY_GROUP, discrete=True, cost="solver")

activation_patterns = measure(invariant_under=FIXED_BITS, fields={"x": "x_unseen"}, discrete=True)(
    patterns.activation_patterns
)
extension_count = measure(invariant_under=FIXED_FEATURE_SPAN, discrete=True, cost="sampling")(
    extensions.extension_count
)
free_parameters = measure(
    invariant_under=FIXED_BITS - {Group.UNIT_SPLIT},
    law={Group.UNIT_SPLIT: _wider_layer},
    discrete=True,
)(regions.free_parameters)
free_regions = _fixed_bits(regions.free_regions)
pair_proxy = measure(
    invariant_under=FIXED_FEATURE_SPAN,
    discrete=True,
    cost="solver",
    ensemble=pairs.pair_proxy_ensemble,
)(pairs.pair_proxy)
region_class_weakness = _fixed_bits(regions.region_class_weakness)
repaired_pair_proxy = _repaired_pairs(repair.repaired_pair_proxy)
function_pair_proxy = _repaired_pairs(repair.function_pair_proxy)
# A check leaves it out unless it is named: it solves every pair to the end.
margin_pair_proxy = measure(invariant_under=EVERY_GROUP, cost="sampling")(margins.margin_pair_proxy)
repaired_activation_patterns = measure(
    invariant_under=EVERY_GROUP, fields={"x": "x_unseen"}, discrete=True
)(repaired.repaired_activation_patterns)
repaired_free_regions = measure(invariant_under=EVERY_GROUP, discrete=True)(
    repaired.repaired_free_regions
)
volume_weakness = measure(invariant_under=FIXED_FEATURE_SPAN, cost="sampling")(
    volume.volume_weakness
)
volume_weakness_raw = measure(invariant_under=SAME_FEATURES_UP_TO_ROTATION, cost="sampling")(
    volume.volume_weakness_raw
)
