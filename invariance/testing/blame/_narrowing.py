"""From a transform that breaks a claim to the smallest members of its kind.

Every entry of a :class:`Ladder` is a family of maps at one site, from the mildest factor
on; a failure is narrowed down by climbing each ladder until the claim breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

import invariance.transforms as T
from invariance.core._errors import InvarianceError
from invariance.core._groups import ABOUT, Group
from invariance.core._modules import weight_layers
from invariance.symmetry._structures import SymmetryGroup
from invariance.testing.blame._at_site import SCALINGS, AtSite, analyse
from invariance.transforms._base import Transform

#: Factors from the mildest on. Powers of two leave the outputs bitwise equal, so that what
#: moves is the measure.
LADDER = (2.0, 0.5, 4.0, 16.0, 256.0)

#: Sites and units that a search looks at, at most.
MAX_SITES = 32
MAX_UNITS = 8


@dataclass(frozen=True)
class Ladder:
    """Maps of one kind at one site.

    Attributes:
        site: The layer whose output is moved, as the model calls it.
        steps: What to try, the mildest first.
        family: Factor to transform, for a scaling; ``None`` for the other kinds.
        finer: Smaller maps (single units) to try once a step has broken the claim.
        layers: Every module whose parameters take part.
    """

    site: str
    steps: tuple[Transform, ...]
    family: Callable[[float], Transform] | None = None
    finer: tuple[Transform, ...] = ()
    layers: tuple[str, ...] = ()


def ladders(transform: Transform, model: nn.Module, example: Tensor) -> Iterator[Ladder]:
    """Break a transform down into its sites."""
    if isinstance(transform, T.LayerScaling):
        yield from layer_ladders(model, example)
    elif isinstance(transform, T.Compose):
        for part in parts(transform):
            yield Ladder(part.name, (part,))
    elif isinstance(transform, AtSite):
        yield Ladder(_module(transform.site), (transform,))
    elif isinstance(transform, (T.SplitUnits, T.DormantUnits)):
        for found in analyse(model, example).of("permutation")[:MAX_SITES]:
            step = type(transform)(1, transform.seed, groups=[found.site])
            yield Ladder(_module(found.site), (step,), layers=_layers(found))
    else:
        for group in transform.groups:
            yield from site_ladders(group, model, example)


def parts(transform: Transform) -> Sequence[Transform]:
    """Return the maps that a composition is made of."""
    found: Sequence[Transform] = getattr(transform, "transforms", ())
    return found


def layer_ladders(model: nn.Module, example: Tensor) -> Iterator[Ladder]:
    """One ladder a hidden layer: it times the factor, the next layer divided by it."""
    names = [name for name, _ in weight_layers(model)]
    for place, name in enumerate(names[:-1][:MAX_SITES]):
        family = _pair(place, len(names))
        try:
            family(2.0).apply(model, example)
        except InvarianceError:
            # Not a plain chain (a residual stream, say): scale the graph's own sites.
            yield from site_ladders(Group.LAYER_SCALING, model, example)
            return
        steps = tuple(family(factor) for factor in LADDER)
        yield Ladder(name, steps, family, layers=(name, names[place + 1]))


def _pair(place: int, layers: int) -> Callable[[float], Transform]:
    def family(factor: float) -> Transform:
        factors = [1.0] * layers
        factors[place], factors[place + 1] = factor, 1 / factor
        return T.LayerScaling(factors)

    return family


def site_ladders(group: Group, model: nn.Module, example: Tensor) -> Iterator[Ladder]:
    """One ladder a site of the model's graph, by the symmetry engine."""
    kinds = ABOUT[group].sites
    if not kinds:
        return
    for found in analyse(model, example).of(*kinds)[:MAX_SITES]:
        kind, site, size = str(found.kind), found.site, min(found.size, MAX_UNITS)
        if kind == "permutation":
            swaps = [AtSite(kind, site, units=(0, unit)) for unit in range(1, size)]
            yield Ladder(_module(site), tuple(swaps), layers=_layers(found))
            continue
        if kind == "sign_flip":
            flips = [AtSite(kind, site, units=(unit,)) for unit in range(size)]
            yield Ladder(_module(site), tuple(flips), layers=_layers(found))
            continue
        singles: list[Transform] = []
        if group is not Group.LAYER_SCALING:
            singles = [AtSite(kind, site, 2.0, units=(unit,)) for unit in range(size)]
        steps: list[Transform] = [AtSite(kind, site, factor) for factor in LADDER]
        # A measure may notice single units only (a whole layer's factor cancels).
        coarse = [
            AtSite(kind, site, factor, units=(unit,))
            for factor in LADDER[:3:2]
            for unit in range(size)
            if group is not Group.LAYER_SCALING
        ]
        yield Ladder(
            _module(site), (*steps, *coarse), _at(kind, site), tuple(singles), _layers(found)
        )


def _module(parameter: str) -> str:
    """Name of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0] or parameter


def _layers(group: SymmetryGroup) -> tuple[str, ...]:
    """Every module whose parameters a group touches, each once."""
    return tuple(dict.fromkeys(_module(leg.parameter) for leg in group.legs))


def _at(kind: str, site: str) -> Callable[[float], Transform]:
    assert kind in SCALINGS

    def family(factor: float) -> Transform:
        return AtSite(kind, site, factor)

    return family


def family_of(transform: Transform) -> Callable[[float], Transform] | None:
    """Return how a scaling depends on its factor alpha, at the same site, if it does."""
    import math

    if isinstance(transform, AtSite) and transform.kind in SCALINGS:
        kind, site, units = transform.kind, transform.site, transform.units
        return lambda alpha: AtSite(kind, site, alpha, units=units)
    if isinstance(transform, T.BatchNormScaling):
        return T.BatchNormScaling
    if isinstance(transform, T.LayerScaling):
        logs = [math.log(float(factor)) for factor in transform.factors]
        lead = next((log for log in logs if log), 0.0)
        if not lead:
            return None
        return lambda alpha: T.LayerScaling([alpha ** (log / lead) for log in logs])
    return None
