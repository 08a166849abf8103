"""The coordinates of a curvature operator: which parameters, in which order, flat or by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invariance.core._errors import MeasureError, unknown_name
from invariance.core._modules import require_module


@dataclass(frozen=True, eq=False)
class ParameterSpace:
    """An ordered choice of a module's parameters, read as one flat vector.

    Attributes:
        names: Qualified parameter names; a shared parameter appears once, under its first.
        shapes: Their shapes.
        frozen: Parameters that were left out because they do not require gradients.
        layers: For each parameter, the module that owns it.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    frozen: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def dim(self) -> int:
        """Number of entries in all."""
        return sum(self.sizes)

    @property
    def layers(self) -> tuple[str, ...]:
        """For each parameter, the qualified name of the module that owns it."""
        return tuple(name.rpartition(".")[0] or name for name in self.names)

    def blocks(self) -> dict[str, tuple[int, int]]:
        """Return parameter name to its ``(start, stop)`` in the flat vector."""
        spans, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            spans[name] = (start, start + size)
            start += size
        return spans

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """View a ``(..., d)`` vector as one tensor a parameter, ``(..., *shape)``."""
        lead = vector.shape[:-1]
        parts = torch.split(vector, list(self.sizes), dim=-1)
        return tuple(
            part.reshape((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)
        )

    def join(self, tensors: Sequence[Tensor], lead: int = 0) -> Tensor:
        """Concatenate one tensor a parameter, with ``lead`` batch dimensions, to ``(..., d)``."""
        return torch.cat([t.reshape((*t.shape[:lead], -1)) for t in tensors], dim=-1)


def select_parameters(model: nn.Module, parameters: Iterable[str] | None = None) -> ParameterSpace:
    """Choose the coordinates.

    Args:
        model: Any module.
        parameters: Names of parameters, or of modules (meaning all their parameters).
            ``None``: every parameter that requires gradients. A frozen parameter is
            included only when it is named.

    Returns:
        The chosen parameters in registration order.

    Raises:
        UsageError: An unknown name; lists the known ones.
        MeasureError: No parameter is left.
    """
    require_module(model)
    unique = dict(model.named_parameters())
    frozen = tuple(name for name, parameter in unique.items() if not parameter.requires_grad)
    if parameters is None:
        chosen = [name for name in unique if name not in frozen]
    else:
        wanted = [parameters] if isinstance(parameters, str) else list(parameters)
        chosen = _resolve_names(model, unique, wanted)
    if not chosen:
        raise MeasureError(
            "There is no parameter to differentiate. "
            + (
                f"All of {', '.join(frozen)} are frozen; name them in parameters= to include them."
                if frozen
                else f"{type(model).__name__} has none."
            )
        )
    return ParameterSpace(
        names=tuple(chosen),
        shapes=tuple(unique[name].shape for name in chosen),
        frozen=tuple(name for name in frozen if name not in chosen),
    )


def _resolve_names(
    model: nn.Module, unique: Mapping[str, nn.Parameter], wanted: Sequence[str]
) -> list[str]:
    """Turn names of parameters, aliases and modules into first names, in model order."""
    first = {id(parameter): name for name, parameter in unique.items()}
    aliases = {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    picked: set[str] = set()
    for name in wanted:
        if name in aliases:
            picked.add(aliases[name])
        elif name in modules:
            prefix = f"{name}." if name else ""
            inside = {full for alias, full in aliases.items() if alias.startswith(prefix)}
            if not inside:
                raise MeasureError(f"Module {name!r} has no parameters. Name another in it.")
            picked |= inside
        else:
            raise unknown_name("parameter", name, [*aliases, *sorted(modules - {""})])
    return [name for name in unique if name in picked]
