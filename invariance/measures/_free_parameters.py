"""Classifier parameters that training points leave open: declaration and law."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._estimate import Estimate
from invariance.core._groups import Group
from invariance.measures._activation_patterns import FIXED_BITS
from invariance.measures._registry import Setting, measure
from invariance.weakness.patterns import _regions as regions
from invariance.weakness.patterns._activation_layers import activation_layers, pick_layer


def wider_layer(setting: Setting) -> float | None:
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


@measure(
    invariant_under=FIXED_BITS - {Group.UNIT_SPLIT},
    law={Group.UNIT_SPLIT: wider_layer},
    discrete=True,
)
def free_parameters(
    model: nn.Module, x_train: Tensor, x_unseen: Tensor, layer: int = -1
) -> Estimate:
    """Sum over regions of max(0, d K + K - n_r).

    See :func:`invariance.weakness.patterns._regions.free_parameters`.

    Example:
        Two regions of ``d K + K = 6`` parameters; a training point in one of them takes one:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.from_weights([[[1.0], [-1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> unseen = torch.tensor([[-1.0], [2.0]]).double()
        >>> round(float(free_parameters(model, torch.tensor([[1.0]]).double(), unseen)), 9)
        11.0
    """
    return regions.free_parameters(model, x_train, x_unseen, layer)
