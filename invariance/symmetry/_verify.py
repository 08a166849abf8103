"""Measure that a transform kept the function, and refuse its result if it did not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from invariance.core._applied import Verification
from invariance.core._errors import TransformError
from invariance.core._modules import clone, weight_layers
from invariance.core._rng import generator
from invariance.symmetry._examples import each
from invariance.symmetry.analysis._tracing import all_tensors_in, tensors_in

#: How many rounding errors a layer's output may accumulate, in units of eps times its scale.
ROUNDINGS_PER_LAYER = 32.0
#: How far beyond the measured effect of one rounding of every parameter we still accept.
NOISE_FACTOR = 64.0


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return every output tensor of a model in eval mode, without a graph.

    A copy is run, on copies of the inputs, for a forward pass may count its calls. What it
    writes into its arguments (a cache) is output, too.
    """
    given = copy.deepcopy(inputs)
    with torch.no_grad():
        result = clone(model).eval()(*given)
    before, after = all_tensors_in(inputs), all_tensors_in(given)
    written = [
        tensor
        for place, tensor in enumerate(after)
        if place >= len(before) or not torch.equal(tensor, before[place])
    ]
    return all_tensors_in(result) + written


def verify(
    before: nn.Module,
    after: nn.Module,
    inputs: tuple[Any, ...],
    what: str,
    *,
    softmax: bool = False,
) -> Verification:
    """Compare two models on an input.

    A difference below ``32 eps (layers + 1)`` times the output's scale is round-off. Above
    that, the noise floor is measured: the original is run with every parameter moved by one
    rounding error up or down, and a difference within 64 times that effect is round-off too
    (cancellation in the network amplifies rounding). Anything larger is a wrong result.

    The epsilon is that of the output, or of the coarsest format inside the network.
    """
    parts = [_verify(before, after, example, what, softmax) for example in each(inputs)]
    return Verification(
        max_abs_logit_diff=max(part.max_abs_logit_diff for part in parts),
        labels_changed=sum(part.labels_changed for part in parts),
        bitwise=all(part.bitwise for part in parts),
        output_scale=max(part.output_scale for part in parts),
        rows=sum(part.rows for part in parts),
        compared=parts[0].compared,
    )


def _verify(
    before: nn.Module, after: nn.Module, inputs: tuple[Any, ...], what: str, softmax: bool
) -> Verification:
    """Compare two models on one example."""
    old, new = outputs(before, inputs), outputs(after, inputs)
    if len(old) != len(new) or any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
        raise TransformError(f"{what} changed the shape of the output. Please report this.")
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.is_floating_point()]
    if softmax:
        pairs = [(a.softmax(-1), b.softmax(-1)) for a, b in pairs]
    finite = all(bool(torch.isfinite(a).all()) for a, _ in pairs)
    if not finite:
        raise TransformError(
            f"The model's output has NaN or infinite entries on the example input, so {what} "
            "cannot be verified. Check its parameters and the input."
        )
    difference = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    scale = max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0)
    eps = max((torch.finfo(a.dtype).eps for a, _ in pairs), default=0.0)
    allowed = ROUNDINGS_PER_LAYER * eps * (len(weight_layers(before)) + 1) * scale
    if not difference <= allowed:
        # Rare: look for the coarsest number format inside, and for cancellation.
        eps = max(eps, coarsest_eps(before, inputs))
        layered = ROUNDINGS_PER_LAYER * eps * (len(weight_layers(before)) + 1) * scale
        allowed = max(layered, NOISE_FACTOR * noise_floor(before, inputs, old))
    if not difference <= allowed:
        raise TransformError(
            f"{what} changed the function: outputs differ by {difference:.3g} where float error "
            f"explains at most {allowed:.3g} (output scale {scale:.3g}). Nothing was returned."
        )
    first_old, first_new = old[0], new[0]
    rows = int(first_old.shape[0]) if first_old.dim() else 1
    labels = 0
    if first_old.dim() >= 2 and first_old.is_floating_point():
        labels = int((first_old.argmax(-1) != first_new.argmax(-1)).sum())
    return Verification(
        max_abs_logit_diff=difference,
        labels_changed=labels,
        bitwise=all(torch.equal(a, b) for a, b in zip(old, new, strict=True)),
        output_scale=scale,
        rows=rows,
        compared="softmax" if softmax else "logits",
    )


class _Formats(TorchFunctionMode):
    """Notes the machine epsilon of every floating-point result."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        return result


def coarsest_eps(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Return the epsilon of the coarsest format in a forward pass (norms cast to float32)."""
    formats = _Formats()
    with formats:
        outputs(model, inputs)
    return formats.eps


def noise_floor(model: nn.Module, inputs: tuple[Any, ...], old: list[Tensor]) -> float:
    """Measure how much one rounding error in every parameter moves the output."""
    worst = 0.0
    for draw in range(2):
        noisy = clone(model)
        stream = generator(draw, "rounding noise")
        with torch.no_grad():
            for tensor in (*noisy.parameters(), *noisy.buffers()):
                if not tensor.is_floating_point():
                    continue
                signs = torch.randint(0, 2, tensor.shape, generator=stream).mul_(2).sub_(1)
                eps = torch.finfo(tensor.dtype).eps
                tensor.mul_(1 + eps * signs.to(tensor))
        moved = outputs(noisy, inputs)
        for a, b in zip(old, moved, strict=True):
            if a.is_floating_point() and a.numel():
                worst = max(worst, float((a - b).abs().max()))
    return worst
