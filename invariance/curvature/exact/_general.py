"""The exact sweep for any module: taps on its layers, autograd in between.

The forward pass is recorded once per chunk of rows; then the columns of the root of the
loss's Hessian are pulled back to the outputs of the tapped layers, one at a time, which
needs no gradient in a weight. Parameters that no tap covers (used by several layers in
parallel, slopes of a PReLU, embeddings, parameters of the user's own) go through
:mod:`~invariance.curvature.exact._rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from invariance.core._errors import MeasureError
from invariance.core._forward import first_input, run
from invariance.core._perceptron import qualified
from invariance.curvature._batches import Batches, Sums, Tally
from invariance.curvature.exact._collector import Collector
from invariance.curvature.exact._directional import forward_bytes, move_like
from invariance.curvature.exact._linearity import Linearity
from invariance.curvature.exact._result import Wants
from invariance.curvature.exact._rows import check_rows_independent, rows_bytes, sweep_rows
from invariance.curvature.exact._taps import Tap, make_tap, tap_bytes, tappable
from invariance.curvature.losses._base import Draws, HessianFactor, Loss


@dataclass(frozen=True)
class Plan:
    """Which parameters are swept how.

    Attributes:
        tapped: Module name to the module, each called once per forward pass.
        rows: Parameters that need per-row gradients.
        silent: Parameters without influence on the outputs: zero curvature.
    """

    tapped: dict[str, nn.Module]
    rows: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass
class _Record:
    """What the hooks saw in one forward pass."""

    edges: dict[str, GradientEdge] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def make_plan(model: nn.Module, linearity: Linearity, names: Sequence[str], row: Tensor) -> Plan:
    """Choose taps for the parameters ``names``, in all of which the network is linear.

    Shapes: ``row (1, ...)``.
    """
    silent = tuple(name for name in names if name in linearity.silent)
    wanted = [name for name in names if name not in linearity.silent]
    candidates = {
        name: module
        for name, module in model.named_modules()
        if tappable(module)
        and any(qualified(name, leaf) in wanted for leaf in ("weight", "bias"))
        and all(
            linearity.uses.get(qualified(name, leaf), 0) == 1
            for leaf, _ in module.named_parameters(recurse=False)
        )
    }
    record = _Record()
    with torch.enable_grad(), _hooks(candidates, record):
        run(model, row, _differentiable(model))
    tapped = {
        name: module
        for name, module in candidates.items()
        if record.calls.get(name) == 1 and record.inputs[name].shape[0] == row.shape[0]
    }
    covered = {
        qualified(name, leaf)
        for name, module in tapped.items()
        for leaf, _ in module.named_parameters(recurse=False)
    }
    return Plan(tapped, tuple(name for name in wanted if name not in covered), silent)


def sweep_module(
    model: nn.Module,
    plan: Plan,
    batches: Batches,
    loss: Loss,
    wants: Wants,
    memory_budget: int,
    draws: Draws | None = None,
) -> Sums:
    """Sweep all rows."""
    sums = Sums()
    like = next(iter(model.parameters()))
    chunk = 0
    for bx, by in batches:
        if not chunk:
            row = move_like(bx[:1], like)
            chunk = max(1, memory_budget // _row_bytes(model, plan, row, wants))
            pair = move_like(bx[:2], like)
            with torch.no_grad():
                alone = run(model, row)
                if draws is None:  # the root of the loss's Hessian has up to K columns a row
                    chunk = max(1, min(chunk, memory_budget // (2 * alone.numel() * alone.nbytes)))
                if not check_rows_independent(alone, run(model, pair)[:1]):
                    raise MeasureError(
                        "A row's outputs depend on the other rows of its batch, so the loss is "
                        "not a mean over rows. Remove what mixes rows, or put it in eval mode."
                    )
        for px, py in zip(torch.split(bx, chunk), torch.split(by, chunk), strict=True):
            _sweep_chunk(
                model, plan, move_like(px, like), py.to(like.device), loss, draws, wants, sums
            )
    return sums


def _sweep_chunk(
    model: nn.Module,
    plan: Plan,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    draws: Draws | None,
    wants: Wants,
    sums: Sums,
) -> None:
    """Record one chunk's forward pass, then pull every cotangent back."""
    state = _differentiable(model)
    record = _Record()
    with torch.enable_grad(), _hooks(plan.tapped, record):
        outputs = run(model, x, state)
    detached = outputs.detach()
    loss.check(detached, y)
    with torch.no_grad():
        find = loss.hessian_factor if draws is None else draws.factor
        factor = find(detached, y)
        sums.columns = max(sums.columns, factor.root.shape[-1])
        taps = [
            make_tap(name, module, record.inputs[name], wants)
            for name, module in plan.tapped.items()
        ]
        collector = Collector(wants, factor.root.shape[-1], factor.samples)
        _pull_back(outputs, factor, taps, record, collector)
        mass = loss.masses(detached, y).sum()
        tally = Tally(factor.samples)
        for tap in taps:
            tap.finish(collector, sums)
        collector.report(tally, sums, state)
    del outputs, record, taps
    if plan.rows:
        sweep_rows(model, state, plan.rows, x, factor, wants).report(tally, sums, state)
    # No influence, or a loss without curvature (a softmax over one class): zeros.
    names = [
        qualified(layer, leaf)
        for layer, module in plan.tapped.items()
        for leaf, _ in module.named_parameters(recurse=False)
    ]
    for name in (*names, *plan.rows, *plan.silent):
        tally.scalars.setdefault(("trace", name), mass.new_zeros(()))
        if wants.scales is not None:
            tally.scalars.setdefault(("scaled", name), mass.new_zeros(()))
        layer, _, leaf = name.rpartition(".")
        if wants.relative_flatness and leaf == "weight" and state[name].ndim > 1:
            tally.scalars.setdefault(("kappa", layer), mass.new_zeros(()))
        if wants.diagonal and name not in sums.diagonals:
            zeros = torch.zeros_like(state[name])
            sums.add_diagonal(name, zeros, None if factor.samples is None else zeros.clone())
    sums.add_chunk(x.shape[0], mass, tally)


def _pull_back(
    outputs: Tensor,
    factor: HessianFactor,
    taps: Sequence[Tap],
    record: _Record,
    collector: Collector,
) -> None:
    """Pull every column of the root back to the tapped layers' outputs."""
    if not taps:
        return
    edges = [record.edges[tap.name] for tap in taps]
    channels = factor.root.shape[-1]
    for r in range(channels):
        collector.next_column()
        gradients = torch.autograd.grad(
            outputs,
            edges,
            grad_outputs=factor.root[..., r].contiguous(),
            retain_graph=r + 1 < channels,
            allow_unused=True,
        )
        signs = None if factor.signs is None else factor.signs[:, r]
        for tap, gradient in zip(taps, gradients, strict=True):
            if gradient is not None:
                tap.observe(gradient, signs, collector)


@contextmanager
def _hooks(modules: dict[str, nn.Module], record: _Record) -> Iterator[None]:
    """Watch the inputs of ``modules`` and where their outputs enter the graph."""

    def watch(name: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            record.calls[name] = record.calls.get(name, 0) + 1
            record.inputs[name] = first_input(args, kwargs).detach()
            # The edge names the output as it is now: an activation that then works in place
            # would move the tensor itself on.
            record.edges[name] = get_gradient_edge(output)

        return hook

    # In front of the user's own hooks: what they make of the output is part of what follows.
    handles = [
        module.register_forward_hook(watch(name), prepend=True, with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _differentiable(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters' handles that require gradients; ``.grad`` stays away."""
    return {
        name: parameter.detach().requires_grad_(parameter.is_floating_point())
        for name, parameter in model.named_parameters()
    }


def _row_bytes(model: nn.Module, plan: Plan, row: Tensor, wants: Wants) -> int:
    """Measure what one row needs in :func:`_sweep_chunk`, in bytes."""
    state = _differentiable(model)
    record = _Record()
    with torch.enable_grad(), _hooks(plan.tapped, record):
        run(model, row, state)
    taps = [
        make_tap(name, module, record.inputs[name], wants) for name, module in plan.tapped.items()
    ]
    held = tap_bytes(taps)
    # Recorded activations, and during the pull-back about as much again in cotangents.
    return 2 * forward_bytes(model, row) + held + rows_bytes(state, plan.rows)
