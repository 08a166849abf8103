"""Apply elements of symmetry groups to the tensors of a model, and keep track of how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.core._applied import Action, Applied, ParameterAction
from invariance.core._errors import TransformError
from invariance.core._modules import clone
from invariance.symmetry._structures import IntArray, Leg, Symmetries, SymmetryGroup
from invariance.symmetry._verify import verify
from invariance.symmetry.analysis._symmetries import Analysis, analyse

FloatArray = npt.NDArray[np.float64]


class Actor:
    """Edits an analysed copy in place and remembers how its parameters relate to the old.

    Attributes:
        analysis: The analysed copy.
        model: Shorthand for its module.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.model: nn.Module = analysis.model
        self._parameters = dict(self.model.named_parameters())
        self._tensors: dict[str, Tensor] = {**dict(self.model.named_buffers()), **self._parameters}
        self._factors: dict[str, list[Tensor]] = {}
        self._index: dict[str, Tensor] = {}
        self._steps: list[tuple[SymmetryGroup, Callable[[Actor], None]]] = []

    # -- elements --------------------------------------------------------------------

    def scale(self, group: SymmetryGroup, factors: FloatArray) -> None:
        """Multiply the group's units by positive factors.

        Shapes: ``factors (size,)``.
        """
        self._steps.append((group, lambda actor: actor.scale(group, factors)))
        for leg in group.legs:
            self._multiply(leg, _spread(leg, factors**leg.power))

    def flip(self, group: SymmetryGroup, signs: FloatArray) -> None:
        """Multiply the group's units by signs, ``(size,)`` entries of -1 and +1."""
        self._steps.append((group, lambda actor: actor.flip(group, signs)))
        for leg in group.legs:
            self._multiply(leg, _spread(leg, signs**leg.sign_power))

    def permute(self, group: SymmetryGroup, order: IntArray) -> None:
        """Move the group's units: unit ``j`` becomes what unit ``order[j]`` was."""
        self._steps.append((group, lambda actor: actor.permute(group, order)))
        for leg in group.legs:
            self._move(leg, leg_source(leg, order))

    def _multiply(self, leg: Leg, factor: FloatArray) -> None:
        tensor = self._tensors[leg.parameter]
        exact = torch.from_numpy(factor).to(tensor.device)
        with torch.no_grad():
            if leg.shift:
                moved = (tensor.double() + leg.shift) * exact - leg.shift
                if bool((moved < 0).any()):
                    raise TransformError(
                        f"`{leg.parameter}` would become negative ({float(moved.min()):.3g}): a "
                        f"factor this small on the weight before it cannot be compensated "
                        f"exactly, since variance + eps has to stay at least eps = "
                        f"{leg.shift:g}. Use a larger factor."
                    )
                tensor.copy_(moved)
            else:
                tensor.mul_(exact.to(tensor.dtype))
        if leg.parameter in self._parameters:
            self._factors.setdefault(leg.parameter, []).append(exact)

    def _move(self, leg: Leg, source: IntArray) -> None:
        tensor = self._tensors[leg.parameter]
        dims = [d for d, n in enumerate(leg.units.shape) if n > 1]
        index = self._index.get(leg.parameter)
        if index is None and leg.parameter in self._parameters:
            index = torch.arange(tensor.numel()).reshape(tensor.shape)
        flat = torch.from_numpy(source.reshape(-1))
        with torch.no_grad():
            if len(dims) == 1:
                tensor.copy_(tensor.index_select(dims[0], flat.to(tensor.device)))
                if index is not None:
                    index = index.index_select(dims[0], flat)
            else:
                places = _places(source, dims, tuple(tensor.shape))
                tensor.copy_(tensor[tuple(p.to(tensor.device) for p in places)])
                if index is not None:
                    index = index[places]
        if index is not None:
            self._index[leg.parameter] = index

    # -- results ---------------------------------------------------------------------

    def action(self) -> Action:
        """Return how every parameter was acted on."""
        if self._factors and self._index:
            raise TransformError("Scale and permute with two actors, then compose.")
        actions = {}
        for name, parameter in self._parameters.items():
            gradient = torch.ones((), dtype=torch.float64, device=parameter.device)
            for factor in self._factors.get(name, ()):
                gradient = gradient / factor
            actions[name] = ParameterAction(
                name, gradient.expand(parameter.shape), self._index.get(name)
            )
        return Action(actions)

    def finish(
        self,
        original: nn.Module,
        what: str,
        description: str,
        action: Action | None,
        detail: Mapping[str, object] | None = None,
    ) -> Applied:
        """Verify the edited copy against the original and return it with the evidence."""
        try:
            verification = verify(original, self.model, self.analysis.inputs, what)
        except TransformError as error:
            raise TransformError(f"{error}{self._blame(original, what)}") from error
        return Applied(
            model=self.model,
            verification=verification,
            action=action,
            description=description,
            detail=detail or {},
        )

    def _blame(self, original: nn.Module, what: str) -> str:
        """Return which group alone changes the function, in a sentence after a space."""
        analysis = self.analysis
        for group, step in self._steps:
            alone = Actor(Analysis(clone(original), analysis.symmetries, analysis.inputs))
            try:
                step(alone)
                verify(original, alone.model, analysis.inputs, what)
            except TransformError:
                legs = ", ".join(dict.fromkeys(leg.parameter for leg in group.legs))
                return (
                    f" It is the {group.kind} of {group.size} units made by `{group.site}` "
                    f"(acting on {legs}), which was found to be a symmetry and is none: an error "
                    "of this package. Please report it with the model."
                )
        return ""


def _spread(leg: Leg, values: FloatArray) -> FloatArray:
    return np.where(leg.units >= 0, values[np.maximum(leg.units, 0)], 1.0)


def leg_source(leg: Leg, order: IntArray) -> IntArray:
    """Return for every cell of a leg the cell that it takes its value from.

    Shapes: ``order (size,)``.
    """
    shape = np.broadcast_shapes(leg.units.shape, leg.addresses.shape)
    units = np.broadcast_to(leg.units, shape).reshape(-1)
    addresses = np.broadcast_to(leg.addresses, shape).reshape(-1)
    source = np.arange(units.size, dtype=np.int64)
    inside = np.flatnonzero(units >= 0)
    by_unit = inside[np.lexsort((addresses[inside], units[inside]))].reshape(order.size, -1)
    if (addresses[by_unit] != addresses[by_unit[:1]]).any():
        raise TransformError(
            f"The units of `{leg.parameter}` do not own alike entries. Please report this."
        )
    source[by_unit] = by_unit[order]
    return source.reshape(shape)


def _places(source: IntArray, dims: list[int], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Turn cell numbers over ``dims`` into an index of the whole tensor."""
    places = []
    for dim, size in enumerate(shape):
        if dim in dims:
            # By hand: NumPy 2.4.6's unravel_index is wrong with trailing sizes of 1.
            behind = int(np.prod(source.shape[dim + 1 :], dtype=np.int64))
            place = source // behind % source.shape[dim]
        else:
            place = np.arange(size).reshape([size if d == dim else 1 for d in range(len(shape))])
        places.append(torch.from_numpy(np.broadcast_to(place, shape).copy()))
    return tuple(places)


def prepare(model: nn.Module, example_input: Tensor | None) -> Actor:
    """Analyse a model and return an actor on a copy of it."""
    return Actor(analyse(model, example_input))


def none_found(what: str, needs: str, actor: Actor) -> TransformError:
    """Build the error for a model that has no group of the wanted kind, with the reasons."""
    found = actor.analysis.symmetries
    return TransformError(
        f"{what} does not apply to {found.model}: it has no {needs}.{what_stops(found)}"
    )


def what_stops(found: Symmetries) -> str:
    """Return a sentence (after a space) that names every operation where a symmetry stops."""
    reasons = "; ".join(dict.fromkeys(str(stop) for stop in found.stops))
    return f" What stops it: {reasons}." if reasons else ""


def check_factors(what: str, factors: Iterable[float]) -> FloatArray:
    """Return factors as an array after checking that they are positive and finite."""
    try:
        values = np.asarray(list(factors), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TransformError(
            f"{what} needs a list of numbers as factors, got {factors!r}."
        ) from error
    if values.ndim != 1 or values.size == 0:
        raise TransformError(f"{what} needs a non-empty list of factors, got {values.tolist()!r}.")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
        raise TransformError(
            f"{what} needs positive, finite factors; factor {int(bad[0])} is {values[bad[0]]:g}."
        )
    return values
