"""The function whose curvature is asked for: a model's mean loss over data, frozen and checked.

An :class:`Objective` holds a private copy of the model, so the caller's module, its
gradients and its modes are never touched, and training it further changes nothing here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError, MeasureError, ModelError
from invariance.core._forward import reading, run
from invariance.core._intake import takes_any
from invariance.core._modules import (
    all_finite,
    clone,
    computing_dtype,
    model_device,
    model_dtype,
    require_deterministic,
)
from invariance.core._reads import Reads, left_behind
from invariance.curvature._batches import Batches, Data, collect_batches
from invariance.curvature.losses._resolve import Loss, LossLike, loss_on
from invariance.curvature.products._parameter_space import ParameterSpace, select_parameters

#: Rows of the head of the data that are run again to catch randomness and coupled rows.
_PROBE_ROWS = 8


@dataclass(frozen=True, eq=False)
class Objective:
    """``L(theta) = sum_n values_n / sum_n masses_n`` over all rows of all batches.

    Attributes:
        model: A private copy of the module.
        loss: The loss.
        batches: The data, identical in every pass.
        space: The parameters that are differentiated.
        point: Their values, one detached tensor each.
        total_mass: The denominator over all the data.
        unused: Names of parameters that the outputs do not depend on: zero curvature.
        device: Where the computation runs.
        dtype: Its precision.
    """

    model: nn.Module
    loss: Loss
    batches: Batches
    space: ParameterSpace
    point: tuple[Tensor, ...]
    total_mass: float
    unused: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype

    def forward(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the outputs of the rows ``x`` with ``parameters`` in place of the point."""
        return run(self.model, x, dict(zip(self.space.names, parameters, strict=True)))

    def value(self, parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return these rows' share of the loss; the shares of all chunks sum to it."""
        return self.loss.total(self.forward(parameters, x), y) / self.total_mass

    def leaves(self) -> tuple[Tensor, ...]:
        """Return the point as fresh leaves that require gradients."""
        return tuple(tensor.clone().requires_grad_() for tensor in self.point)

    def chunks(self, rows: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the data in pieces of at most ``rows`` rows, on device and in dtype."""
        return self.chunks_in(self.dtype, rows)

    def chunks_in(
        self, dtype: torch.dtype, rows: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Like :meth:`chunks`, in another precision."""
        for batch_x, batch_y in self.batches:
            size = rows or batch_x.shape[0]
            for x, y in zip(torch.split(batch_x, size), torch.split(batch_y, size), strict=True):
                yield _place(x, self.device, dtype), y.to(self.device)

    def in_dtype(self, dtype: torch.dtype) -> Objective:
        """Return the same objective, computed in another precision."""
        copy = clone(self.model).to(dtype)
        named = dict(copy.named_parameters())
        point = tuple(named[name].detach() for name in self.space.names)
        return dataclasses.replace(self, model=copy, point=point, dtype=dtype)

    def thinned(self, stride: int) -> Objective:
        """Return the same objective on every ``stride``-th row of data held in memory.

        The denominator stays, so the value is a share of the whole and only directions mean
        anything.
        """
        assert self.batches.held is not None
        held = tuple((x[::stride], y[::stride]) for x, y in self.batches.held)
        rows = sum(x.shape[0] for x, _ in held)
        return dataclasses.replace(self, batches=Batches(held, None, rows))

    def notes(self) -> dict[str, object]:
        """Facts for ``Estimate.detail``: what was left out or has no influence."""
        notes: dict[str, object] = {"dim": self.space.dim, "rows": self.batches.rows}
        if self.unused:
            notes["without_influence"] = self.unused
        if self.space.frozen:
            notes["frozen"] = self.space.frozen
        return notes

    def remarks(self) -> str:
        """The same facts in words for ``Estimate.method``, empty when there are none."""
        words = ""
        if self.unused:
            words += f"; zero curvature in {', '.join(self.unused)} (no influence on the outputs)"
        if self.space.frozen:
            words += f"; frozen and left out: {', '.join(self.space.frozen)}"
        return words


@takes_any(streams=True)
def build_objective(
    model: nn.Module,
    x: Data,
    y: Tensor | None = None,
    *,
    loss: LossLike = "cross_entropy",
    parameters: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Objective:
    """Copy the model, check everything once, and return the objective.

    Shapes: ``x (n, ...)``.
    """
    require_deterministic(model)
    space = select_parameters(model, parameters)
    batches = collect_batches(x, y)
    resolved = loss_on(loss, batches, model)
    copy = clone(model)
    precision = dtype or computing_dtype(model_dtype(copy))
    if dtype is not None or precision != model_dtype(copy):
        copy.to(precision)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    named = dict(copy.named_parameters())
    for name, parameter in named.items() if dtype is not None else ():
        if not all_finite(parameter):
            raise ModelError(f"Parameter {name!r} overflows in {dtype}. Leave dtype out.")
    point = tuple(named[name].detach() for name in space.names)
    draft = Objective(copy, resolved, batches, space, point, 1.0, (), model_device(copy), precision)
    _check_copied(model, draft)
    total = _check_all_rows(draft)
    return Objective(
        copy, resolved, batches, space, point, total, _unused(draft), draft.device, precision
    )


def _check_copied(model: nn.Module, draft: Objective) -> None:
    """Refuse a copy that computes with the original's tensors: its curvature would be zero."""
    x, _ = next(draft.chunks(1))
    with torch.no_grad(), reading(draft.model, x), Reads(left_behind(draft.model, model)) as reads:
        draft.forward(draft.point, x)
    if reads.names:
        raise ModelError(
            f"The copy of your model does not use its own parameters: its output is computed with "
            f"{next(iter(reads.names))!r} of the {type(model).__name__} that you passed. A forward "
            "or a hook that names that module as a global, or holds it in a container, does this. "
            "Reach it through self, or through the module that a hook is given."
        )


def _check_all_rows(draft: Objective) -> float:
    """Run every row once: labels, finite outputs, repeatability, coupling; sum the masses."""
    buffers = {name: buffer.clone() for name, buffer in draft.model.named_buffers()}
    total = torch.zeros((), dtype=torch.float64, device=draft.device)
    with torch.no_grad():
        for number, (x, y) in enumerate(draft.chunks()):
            with reading(draft.model, x):
                outputs = draft.forward(draft.point, x)
            if not isinstance(outputs, Tensor):
                raise ModelError(f"The model must return a tensor. Got {type(outputs).__name__}.")
            draft.loss.check(outputs, y)
            if outputs.shape[0] != x.shape[0]:
                raise DataError(f"{x.shape[0]} rows gave outputs {tuple(outputs.shape)}.")
            total += draft.loss.masses(outputs, y).sum(dtype=torch.float64)
            if number == 0:
                _check_repeatable(draft, x, outputs)
    for name, buffer in draft.model.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise ModelError(
                f"The forward pass changes the buffer {name!r}, so no two passes agree. "
                "Call model.eval(), or stop the update."
            )
    mass = float(total)
    if mass <= 0:
        raise DataError("Every row has weight zero (all labels ignored?). Nothing to measure.")
    return mass


def _check_repeatable(draft: Objective, x: Tensor, outputs: Tensor) -> None:
    """Refuse a forward pass that is random, or in which rows influence each other."""
    head = x[:_PROBE_ROWS]
    once, again = draft.forward(draft.point, head), draft.forward(draft.point, head)
    slack = 10 * torch.finfo(draft.dtype).eps ** 0.5
    scale = float(outputs.abs().max()) or 1.0
    if float((once - again).abs().max()) > 1e-3 * slack * scale:
        raise ModelError(
            "Two forward passes over the same rows differ: the model is random. "
            "Remove the noise (functional dropout?) or fix its seed inside forward()."
        )
    if float((once - outputs[: len(head)]).abs().max()) > slack * scale:
        raise ModelError(
            "A row's output depends on the other rows of its batch, so the loss is not a sum "
            "over rows. Use running statistics instead of batch statistics."
        )


def _unused(draft: Objective) -> tuple[str, ...]:
    """Name the parameters that the outputs do not depend on at all."""
    x, _ = next(draft.chunks(1))
    leaves = draft.leaves()
    with torch.enable_grad():
        outputs = draft.forward(leaves, x)
        if not outputs.requires_grad:
            raise MeasureError(
                f"The outputs depend on none of {', '.join(draft.space.names)} in a "
                "differentiable way. Is forward() under no_grad, or detached?"
            )
        found = torch.autograd.grad(outputs.sum(), leaves, allow_unused=True)
    return tuple(name for name, grad in zip(draft.space.names, found, strict=True) if grad is None)


def _place(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)
