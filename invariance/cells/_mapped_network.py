"""A network and what maps make of it: applied, compared with the original, and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invariance.cells._faults import isolated
from invariance.cells._rows import FunctionRow
from invariance.core._applied import Applied
from invariance.core._errors import TransformError
from invariance.core._groups import KEEP_LOGITS, Group
from invariance.core._modules import clone, evaluation_mode
from invariance.transforms._base import Transform

#: How far a transform may move the outputs, relative to their scale, and still count as
#: function-preserving. The smallest published mistake is 5e-6 (a BatchNorm left in place).
FUNCTION_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}

#: Rows that a map is traced on, and rows that two functions are compared on, at most.
EXAMPLE_ROWS, COMPARED_ROWS = 64, 2_048


class BrokenTransformError(TransformError, AssertionError):
    """A transform under test changes the function, so it tells nothing about a measure.

    Attributes:
        row: The comparison of the two functions.
    """

    def __init__(self, message: str, row: FunctionRow | None = None) -> None:
        super().__init__(message)
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.row))


class MappedNetwork:
    """A network on which measures are tried, and its copies under maps.

    Args:
        model: A private copy of the network, in the precision to work in.
        example: Input rows to trace maps with.
        compared: Input rows to compare functions on; ``example`` by default.
        keep: Keep every copy, for all measures that share this network, not the last alone.
        title: The network's name in rows.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        compared: Tensor | None = None,
        keep: bool = False,
        title: str = "model",
    ) -> None:
        self.model, self.example, self.keep, self.title = model, example, keep, title
        self.compared = example if compared is None else compared
        # By identity; the transform is held too, so that no other can get its address.
        self._kept: dict[int, tuple[Transform, Applied, FunctionRow]] = {}
        self._shared: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def under(self, transform: Transform, measure: str = "any measure") -> Applied:
        """Apply ``transform`` to the network, and verify that the function stayed.

        Args:
            transform: The map.
            measure: What it is to be tried on, for the message.

        Returns:
            The transformed copy with its evidence.

        Raises:
            TransformError: If the transform does not apply.
            BrokenTransformError: If it changes the function.
        """
        return self._put(transform, measure)[0]

    def admits(self, transform: Transform) -> bool:
        """Whether the last map that was tried is this one, and kept the function."""
        return id(transform) in self._kept

    def function_row(self, transform: Transform) -> FunctionRow:
        """Apply ``transform`` and return the comparison of the two functions."""
        return self._put(transform, "any measure")[1]

    def models(self) -> tuple[nn.Module, ...]:
        """Return the network and every transformed copy that is kept."""
        return (self.model, *(applied.model for _, applied, _ in self._kept.values()))

    def scratch(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """Return what the laws of all measures with these inputs share."""
        return self._shared.setdefault(tuple(fields.items()), {})

    def _put(self, transform: Transform, measure: str) -> tuple[Applied, FunctionRow]:
        known = self._kept.get(id(transform))
        if known is not None:
            return known[1:]
        with isolated():
            applied = transform.apply(self.model, self.example)
            row = compare_functions(
                transform, self.model, applied.model, self.compared, title=self.title
            )
        _require_same_function(transform, row, self.compared.dtype, measure)
        if not self.keep:
            self._kept.clear()
        self._kept[id(transform)] = (transform, applied, row)
        return applied, row


def compare_functions(
    transform: Transform, before: nn.Module, after: nn.Module, x: Tensor, *, title: str = "model"
) -> FunctionRow:
    """Compare two models' outputs row by row, on at most 2,048 rows of ``x``, ``(n, d)``."""
    logits = all(group in KEEP_LOGITS for group in transform.groups)
    with torch.no_grad(), evaluation_mode(before), evaluation_mode(after):
        # A copy: a forward pass may count, and this network is shared.
        old, new = clone(before)(x[:COMPARED_ROWS]), after(x[:COMPARED_ROWS])
    if not logits:
        old, new = old.log_softmax(-1), new.log_softmax(-1)
    return FunctionRow(
        transform=transform.name,
        max_abs_logit_diff=float((old - new).abs().max()),
        labels_changed=int((old.argmax(-1) != new.argmax(-1)).sum()),
        bitwise=bool(torch.equal(old, new)),
        rows=int(old.shape[0]),
        compared="logits" if logits else "log-softmax",
        output_scale=float(old.abs().max()),
        model=title,
        label=repr(transform),
    )


def _require_same_function(
    transform: Transform, row: FunctionRow, dtype: torch.dtype, measure: str
) -> None:
    if Group.COORDINATES in transform.groups:
        return  # verified on its own; what it changes is the parameters' meaning
    allowed = FUNCTION_RTOL.get(dtype, 5e-2) * max(row.output_scale, 1e-300)
    if row.max_abs_logit_diff <= allowed:
        return
    relative = row.max_abs_logit_diff / (row.output_scale or math.nan)
    raise BrokenTransformError(
        f"{transform!r} does not keep the function: the {row.compared} move by "
        f"{row.max_abs_logit_diff:.3g} ({100 * relative:.2g} % of their scale) and "
        f"{row.labels_changed} of {row.rows} labels change. It can show nothing about "
        f"{measure!r}; mend the transform first.",
        row,
    )
