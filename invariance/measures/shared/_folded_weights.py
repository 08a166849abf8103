"""The weight matrices of a network once its BatchNorms are folded in."""

from __future__ import annotations

from torch import Tensor, nn

from invariance.core._errors import MeasureError, TransformError
from invariance.core._modules import BATCH_NORMS, require_deterministic, weight_layers
from invariance.core._perceptron import Dense, Norm, fold_norms, read_perceptron


def folded_model(model: nn.Module, example_input: Tensor | None = None) -> nn.Module:
    """Return the network with every BatchNorm folded into a weight layer."""
    from invariance.transforms import FoldBatchNorm

    if not any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return model
    try:
        return FoldBatchNorm(strict=True)(model, example_input)
    except TransformError as error:
        raise MeasureError(
            f"The measure folds BatchNorm first, which failed here: {error} A convolutional "
            "network needs example_input."
        ) from error


def folded_weights(model: nn.Module, example_input: Tensor | None = None) -> dict[str, Tensor]:
    """Return every weight layer's matrix, BatchNorm folded, in float64 on the CPU.

    Shapes: returns ``(out, in)``.
    """
    require_deterministic(model)
    steps = read_perceptron(model)
    if steps is not None:
        folded = fold_norms(steps)
        if not any(isinstance(step, Norm) for step in folded):
            return {
                step.name: step.weight.cpu().double() for step in folded if isinstance(step, Dense)
            }
    return {
        # By attribute: under a parametrization it is no parameter, but still the weight.
        name: layer.weight.detach().cpu().double().flatten(1)  # type: ignore[operator]
        for name, layer in weight_layers(folded_model(model, example_input))
    }
