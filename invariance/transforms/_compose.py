"""Several transforms, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from invariance.core._applied import Applied
from invariance.core._errors import TransformError
from invariance.core._groups import Group
from invariance.symmetry._examples import as_inputs
from invariance.symmetry._verify import verify
from invariance.transforms._base import Transform


class Compose(Transform):
    """Apply transforms in order; the whole is verified from the first to the last model.

    Args:
        transforms: At least one transform.

    Example:
        >>> import torch
        >>> import invariance as inv
        >>> model, x = inv.models.from_weights([[[4.0]], [[1.0]]]), torch.ones(1, 1).double()
        >>> twice = Compose([inv.transforms.LayerScaling([0.5, 2.0])] * 2)(model, x)
        >>> [p.tolist() for p in twice.parameters()]
        [[[1.0]], [[4.0]]]
    """

    group = Group.NEURON_SCALING  # the kinds are those of the parts: see ``groups``

    def __init__(self, transforms: Sequence[Transform] | Transform) -> None:
        given: Any = transforms
        one = isinstance(given, (Transform, type)) or not isinstance(given, Iterable)
        self.transforms: tuple[Transform, ...] = (given,) if one else tuple(given)
        if not self.transforms:
            raise TransformError("Compose needs at least one transform, got an empty list.")
        for entry in self.transforms:
            if not isinstance(entry, Transform):
                raise TransformError(
                    f"Compose needs transforms, got {type(entry).__name__}: {entry!r}."
                )

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"

    @property
    def groups(self) -> tuple[Group, ...]:
        """The kinds of symmetry of all parts."""
        return tuple(dict.fromkeys(g for part in self.transforms for g in part.groups))

    def apply(self, model: nn.Module, example_input: Tensor | None = None) -> Applied:
        """See :meth:`Transform.apply`; ``detail["steps"]`` holds every step's result."""
        steps: list[Applied] = []
        current = model
        for part in self.transforms:
            steps.append(part.apply(current, example_input))
            current = steps[-1].model
        action = steps[0].action
        for step in steps[1:]:
            action = None if action is None or step.action is None else action.then(step.action)
        softmax = any(
            step.verification is not None and step.verification.compared == "softmax"
            for step in steps
        )
        verification = verify(
            model, current, as_inputs(model, example_input), repr(self), softmax=softmax
        )
        return Applied(
            model=current,
            verification=verification,
            action=action,
            description="; then ".join(step.description for step in steps),
            detail={"steps": tuple(steps)},
        )

    def inverse(self) -> Compose:
        """Return the inverses in the opposite order."""
        return Compose([part.inverse() for part in reversed(self.transforms)])
