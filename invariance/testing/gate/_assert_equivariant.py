"""Training steps that do the same to a network however it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invariance.cells._faults import isolated
from invariance.cells._mapped_network import EXAMPLE_ROWS
from invariance.core._errors import InvarianceError, MeasureError, UsageError
from invariance.core._groups import Group
from invariance.core._modules import clone
from invariance.testing.blame._narrowing import ladders
from invariance.testing.gate._binding import cast, check_data, require_evaluation_mode
from invariance.testing.gate._findings import replayable
from invariance.testing.gate._recorder import recorded
from invariance.transforms._base import Transform, as_transforms
from invariance.transforms._members import default_transforms

#: ``step(model, x, y)`` returns the trained model, or trains its argument and returns ``None``.
TrainingStep = Callable[[nn.Module, Tensor, Tensor], nn.Module | None]

#: Kinds of map that are determined by what they do to the parameters: the trained networks are
#: compared parameter by parameter. Under the others many networks have one function (shares of a
#: split unit, a dormant unit's weights), and functions are compared.
FREE = frozenset(
    {Group.LAYER_SCALING, Group.NEURON_SCALING, Group.PERMUTATION, Group.SIGN_FLIP,
     Group.LINEAR_MIXING, Group.BATCHNORM_SCALING}
)  # fmt: skip

#: Round-off of a few operations, in units of the values.
ROUND_OFF = 1e-12


class NotEquivariantError(AssertionError):
    """A training step whose result depends on how the network is written."""


@dataclass(frozen=True)
class Gap:
    """How far the two ways round are apart, relative to how far the step went."""

    compared: str
    where: str
    size: float
    allowed: float

    @property
    def broken(self) -> bool:
        return not self.size <= self.allowed


def assert_equivariant(
    step: TrainingStep,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    transforms: Sequence[Transform] | Transform | None = None,
    rtol: float = 1e-6,
    seed: int = 0,
    name: str | None = None,
) -> tuple[str, ...]:
    """Assert that training the transformed network gives the transformed trained network.

    With ``g`` a function-preserving map, ``step(g(model))`` is compared with ``g(step(model))``:
    by parameters under scalings, permutations, sign flips and mixings, and by functions (logits
    on ``x``; probabilities under a logit shift) under maps that are not free, such as a unit's
    split. A map ``theta -> D theta`` turns the gradient g into ``D^-1 g``, so a step
    ``theta - eta P g`` passes if ``P(D theta) = D P(theta) D``: elementwise ``|theta|^2``, or the
    inverse of the Fisher matrix, but not the identity. Everything runs in float64.

    Args:
        step: The training step; called on a copy, in place or not, with chance of its own seed.
        model: The network, in eval mode.
        x: Inputs.
        y: Labels.
        transforms: What to apply; by default a member of every kind that the model admits.
        rtol: How far apart the results may be, relative to how far the step goes.
        seed: Seed of the random maps.
        name: The step's name in messages.

    Returns:
        What was compared: each map and ``"parameters"`` or ``"functions"``.

    Raises:
        NotEquivariantError: (an ``AssertionError``) Names the map, the layer and the smallest
            factor that tell the two apart, and a line that replays it.
        UsageError: If no map applies, or the step changes nothing.

    Example:
        A step along ``theta^2 * gradient`` passes, one along the gradient does not:

        >>> import torch
        >>> import invariance as inv
        >>> model = inv.models.mlp([3, 4, 2], dtype=torch.float64).eval()
        >>> x, y = torch.rand(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
        >>> def relative(model, x, y):
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     values = list(model.parameters())
        ...     with torch.no_grad():
        ...         for value, slope in zip(values, torch.autograd.grad(loss, values)):
        ...             value -= 0.1 * value**2 * slope
        >>> half = inv.transforms.LayerScaling([2.0, 0.5])
        >>> assert_equivariant(relative, model, x, y, transforms=half)
        ('LayerScaling([2.0, 0.5]): parameters',)
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and our message
    require_evaluation_mode(model)
    check_data(x, y)
    title = name or str(getattr(step, "__name__", type(step).__name__))
    base, data = cast(model, {"x": x, "y": y}, torch.float64)
    run = Comparison(step, title, base, data["x"], data["y"], rtol)
    named = transforms is not None
    maps = as_transforms(default_transforms(base, seed=seed) if transforms is None else transforms)
    tried: list[str] = []
    with recorded("equivariant", title) as facts:
        for transform in maps:
            try:
                gap = run.gap(transform)
            except InvarianceError:
                if named:
                    raise
                continue
            if gap.broken:
                raise NotEquivariantError(run.message(transform, gap))
            tried.append(f"{transform!r}: {gap.compared}")
        if not tried:
            raise UsageError("Nothing was compared: no transform applies to this model.")
        facts["message"] = f"{title} is equivariant under {', '.join(tried)}"
    return tuple(tried)


class Comparison:
    """One step on one network, trained once, and the ways round it."""

    def __init__(
        self, step: TrainingStep, title: str, model: nn.Module, x: Tensor, y: Tensor, rtol: float
    ) -> None:
        self.step, self.title, self.model, self.x, self.y = step, title, model, x, y
        self.rtol, self.example = rtol, x[:EXAMPLE_ROWS]
        self.trained = self._train(model)
        if _same(model, self.trained):
            raise UsageError(
                f"Training step {title!r} changed no parameter, so nothing can be compared. It "
                "must train the model that it is given, or return the trained one."
            )

    def _train(self, model: nn.Module) -> nn.Module:
        copied = clone(model)
        with isolated():
            found = self.step(copied, self.x.clone(), self.y.clone())
        result = copied if found is None else found
        if not isinstance(result, nn.Module):
            raise MeasureError(
                f"Training step {self.title!r} must return a module or None. Got "
                f"{type(result).__name__}."
            )
        return result.eval()

    def gap(self, transform: Transform) -> Gap:
        """Go both ways round and measure how far apart they end."""
        start = transform.apply(self.model, self.example).model
        after = self._train(start)
        wanted = transform.apply(clone(self.trained), self.example).model
        if FREE.issuperset(transform.groups):
            return self._by_parameters(start, after, wanted)
        return self._by_functions(transform.groups, start, after, wanted)

    def _by_parameters(self, start: nn.Module, after: nn.Module, wanted: nn.Module) -> Gap:
        worst = Gap("parameters", "", 0.0, 1.0)
        begun, ended = dict(start.named_parameters()), dict(after.named_parameters())
        for name, value in wanted.named_parameters():
            off = _largest(ended[name] - value)
            way = _largest(value - begun[name])
            allowed = self.rtol * way + ROUND_OFF * _largest(value)
            if not off <= allowed and not off / max(allowed, 1e-300) <= worst.size / worst.allowed:
                worst = Gap("parameters", name, off, max(allowed, 1e-300))
        return worst

    def _by_functions(
        self, groups: Iterable[Group], start: nn.Module, after: nn.Module, wanted: nn.Module
    ) -> Gap:
        def outputs(module: nn.Module) -> Tensor:
            with torch.no_grad():
                found: Tensor = module(self.x)
            return found.softmax(1) if Group.LOGIT_SHIFT in set(groups) else found

        expected = outputs(wanted)
        allowed = self.rtol * _largest(expected - outputs(start))
        allowed += ROUND_OFF * _largest(expected)
        return Gap("functions", "outputs", _largest(outputs(after) - expected), allowed)

    def message(self, transform: Transform, gap: Gap) -> str:
        """Narrow a failure down to one site and the mildest factor."""
        smallest, site, found = transform, gap.where.rpartition(".")[0], gap
        for ladder in ladders(transform, self.model, self.example):
            broken = self._first_broken(ladder.steps)
            if broken is not None:
                (smallest, found), site = broken, ladder.site
                break
        written = replayable(repr(smallest)) or "transform"
        return (
            f"training step {self.title!r} is not equivariant under {transform!r}.\n"
            f"  smallest   {smallest!r}\n"
            f"  layer      `{site}`\n"
            f"  compared   {found.compared}, `{found.where}`: training the transformed network and "
            f"transforming the trained one end {found.size:.3g} apart (allowed "
            f"{found.allowed:.2g})\n"
            "  replay     import invariance as inv; inv.testing.assert_equivariant(step, model, x, "
            f"y, transforms={written})"
        )

    def _first_broken(self, steps: Iterable[Transform]) -> tuple[Transform, Gap] | None:
        for member in steps:
            try:
                gap = self.gap(member)
            except InvarianceError:
                continue
            if gap.broken:
                return member, gap
        return None


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _largest(value: Tensor) -> float:
    return float(value.detach().abs().max()) if value.numel() else 0.0
