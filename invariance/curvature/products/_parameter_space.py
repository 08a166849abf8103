"""The coordinates of a curvature operator: which parameters, in which order, flat or by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invariance.core._modules import parameter_names


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
    """Choose the coordinates: see :func:`~invariance.core._modules.parameter_names`."""
    chosen = parameter_names(model, parameters)
    unique = dict(model.named_parameters())
    return ParameterSpace(
        names=chosen,
        shapes=tuple(unique[name].shape for name in chosen),
        frozen=tuple(n for n, p in unique.items() if not p.requires_grad and n not in chosen),
    )
