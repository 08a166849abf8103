"""Evidence that a transform kept the function: both networks run on the same rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invariance.core.errors import TransformError
from invariance.core.modules import BATCH_NORMS, clone, in_train_mode, model_device, model_dtype
from invariance.core.modules import weight_layers as list_weight_layers
from invariance.core.rng import generator
from invariance.transforms.base import Verification

#: Largest difference, relative to the output's scale, that round-off may explain.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


def example_or_default(model: nn.Module, example_input: Tensor | None, who: str) -> Tensor:
    """Return ``example_input``, or random rows for a network that begins with a linear layer.

    Args:
        model: The network.
        example_input: What the caller gave.
        who: The transform, for the message.

    Returns:
        A batch that the model accepts.

    Raises:
        TransformError: If none was given and none can be made up.
    """
    if example_input is not None:
        return example_input
    layers = list_weight_layers(model)
    if not layers or not isinstance(layers[0][1], nn.Linear):
        first = f"{layers[0][0]!r} is a {type(layers[0][1]).__name__}" if layers else "none"
        raise TransformError(
            f"{who} needs an example input here: only a network whose first weight layer is "
            f"nn.Linear can do without. First weight layer: {first}. Pass example_input=x."
        )
    draw = generator(0, "example input")
    rows = torch.randn(16, layers[0][1].in_features, generator=draw, dtype=torch.float64)
    return rows.to(device=model_device(model), dtype=model_dtype(model))


def refuse_train_mode(model: nn.Module, who: str) -> None:
    """Refuse BatchNorm in train mode, whose function depends on the batch.

    Raises:
        TransformError: Names the first such submodule.
    """
    name = in_train_mode(model, BATCH_NORMS)
    if name is not None:
        raise TransformError(
            f"{who}: BatchNorm {name!r} is in train mode, where the network's function depends "
            "on the whole batch. Call model.eval() first."
        )


@torch.no_grad()
def verify(
    old: nn.Module, new: nn.Module, example_input: Tensor, who: str, *, compared: str = "logits"
) -> Verification:
    """Run both networks in eval mode and compare; refuse a change of function.

    Args:
        old: The network before.
        new: The network after.
        example_input: A batch for both.
        who: The transform, for the message.
        compared: ``"logits"``, or ``"softmax"`` over the last dimension.

    Returns:
        The measured difference.

    Raises:
        TransformError: If an output is not finite, or the difference exceeds round-off.
    """
    before, after = (clone(model).eval()(example_input) for model in (old, new))
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        raise TransformError(f"{who}: expected one output tensor. Got {type(before).__name__}.")
    labels_changed = int((before.argmax(-1) != after.argmax(-1)).sum()) if before.dim() else 0
    if compared == "softmax":
        before, after = before.softmax(-1), after.softmax(-1)
    if not bool(torch.isfinite(before).all()):
        raise TransformError(f"{who}: the network's own output on the example is not finite.")
    difference = float((after.double() - before.double()).abs().max())
    scale = float(before.double().abs().max())
    tolerance = _TOLERANCE.get(before.dtype, 5e-2)
    if not difference <= tolerance * max(scale, torch.finfo(before.dtype).tiny):
        raise TransformError(
            f"{who} would change the function: the {compared} differ by {difference:.3g}, at a "
            f"scale of {scale:.3g} in {before.dtype}, more than round-off explains. Nothing was "
            "changed; try a milder setting or float64, and report the module if it persists."
        )
    return Verification(
        max_abs_logit_diff=difference,
        labels_changed=labels_changed,
        bitwise=torch.equal(before, after),
        output_scale=scale,
        rows=int(before.shape[0]) if before.dim() else 1,
        compared=compared,
    )
